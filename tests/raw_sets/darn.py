# SPDX-License-Identifier: Apache-2.0
"""A tiny DARN: photos by number of the shop's category, and ASEN's lists, with content made up for tests."""

from pathlib import Path

from raw_sets.asen_meta import draw, write

SIZES = {
    "clothes category": 20,
    "clothes button": 13,
    "clothes color": 55,
    "clothes length": 7,
    "clothes pattern": 28,
    "clothes shape": 11,
    "collar shape": 26,
    "sleeve length": 8,
    "sleeve shape": 17,
}
TRAIN, VALUES = 12, 2


def make(folder: Path, *, train: bool = True, images: bool = True) -> Path:
    """Writes 12 images of train with all 9 labels each, and for each of valid and test 18 queries, 36 candidates.

    Args:
        train: False leaves out what the public lists lack: filenames_train.txt and label_train.txt.
        images: False writes the lists only.
    """
    training = [
        (f"pic/50025233/{i}_47_1.jpg", [(attribute, (i + attribute) % VALUES) for attribute in range(len(SIZES))])
        for i in range(TRAIN)
    ]
    evaluation = {part: _evaluation(part) for part in ("valid", "test")}
    write(folder, "DARN", SIZES, evaluation, training if train else None)
    if images:
        for i, (path, _) in enumerate(training):
            draw(folder / path, i % VALUES, i)
        for lists in evaluation.values():
            for i, (path, _, value) in enumerate([*lists[0], *lists[1]]):
                draw(folder / path, value, i)
    return folder


def _evaluation(part: str) -> tuple[list, list]:
    # A name with a blank and one beyond ASCII: shops do that.
    names = {0: "Größe M_1.jpg"} if part == "valid" else {}
    listed = [(a, v, copy) for copy in range(3) for a in range(len(SIZES)) for v in range(VALUES)]
    rows = [
        (f"pic/{50000000 + a}/{names.get(i, f'{part}_{i}_{copy}.jpg')}", a, v) for i, (a, v, copy) in enumerate(listed)
    ]
    queries = len(SIZES) * VALUES
    return rows[:queries], rows[queries:]
