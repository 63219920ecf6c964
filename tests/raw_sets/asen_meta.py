# SPDX-License-Identifier: Apache-2.0
"""Lists in the form of ASEN's, with content made up for tests: ids from 0 in each part, one label a line."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("white", "red", "green", "navy", "olive", "orange")

Listed = tuple[str, int, int]  # path, attribute, value


def make(folder: Path, dataset: str = "DARN", sizes: Mapping[str, int] | None = None, *, train: bool = True) -> Path:
    """Writes meta.json and the lists of a data set of two attributes and ten images a part, without images.

    Candidates come before queries; the files have Windows line ends, trailing tabs, no last newline, or are gzipped.
    """
    sizes = sizes or {"sleeve length": 3, "colour": 2}
    evaluation = {part: _evaluation(part) for part in ("valid", "test")}
    training = [(f"pic/train/{i}.jpg", [(0, i % 3), (1, i % 2)]) for i in range(10)] if train else None
    return write(folder, dataset, sizes, evaluation, training)


def _evaluation(part: str) -> tuple[list[Listed], list[Listed]]:
    listed = [(f"pic/{part}/a {i}.jpg", i % 2, i // 2 % 2) for i in range(10)]
    return listed[8:], listed[:8]


def write(
    folder: Path,
    dataset: str,
    sizes: Mapping[str, int],
    evaluation: Mapping[str, tuple[Sequence[Listed], Sequence[Listed]]],
    training: Sequence[tuple[str, Sequence[tuple[int, int]]]] | None = None,
) -> Path:
    """Writes meta.json and `folder/dataset`.

    Args:
        sizes: attribute → number of values.
        evaluation: "valid" and "test" → queries, candidates.
        training: path, (attribute, value) of each label; None leaves both files out.
    """
    place = folder / dataset
    place.mkdir(parents=True, exist_ok=True)
    content = {dataset: {"ATTRIBUTES": list(sizes), "ATTRIBUTES_NUM": dict(sizes)}}
    (folder / "meta.json").write_text(json.dumps(content, indent="\t"), encoding="utf-8-sig", newline="\r\n")
    for part, (queries, candidates) in evaluation.items():
        listed = [*candidates, *queries]
        names = "\n".join(path for path, _, _ in listed)
        # One as it is, one gzipped; neither has a last newline.
        if part == "valid":
            (place / "filenames_valid.txt").write_text(names, encoding="utf-8")
        else:
            with gzip.open(place / f"filenames_{part}.txt.gz", "wt", encoding="utf-8", newline="\r\n") as file:
                file.write(names)
        lines = [f"{i} {attribute} {value}" for i, (_, attribute, value) in enumerate(listed)]
        (place / f"candidate_{part}.txt").write_bytes(_text(lines[: len(candidates)], "\r\n"))
        # As in the real lists, the ids of queries may stand in any order.
        (place / f"query_{part}.txt").write_bytes(_text(reversed(lines[len(candidates) :]), "\n"))
    if training is not None:
        (place / "filenames_train.txt").write_bytes(_text([path for path, _ in training], "\r\n"))
        lines = ["\t".join(str(n) for n in (i, *sum(labels, ()))) + "\t\t" for i, (_, labels) in enumerate(training)]
        (place / "label_train.txt").write_bytes(_text([*lines, ""], "\r\n"))
    return folder


def draw(path: Path, colour: int, number: int) -> None:
    """Writes a picture of 24×24 pixels: a square in a colour that is told from others, placed by the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (24, 24), "grey")
    x, y = number % 7, number // 7 % 7
    ImageDraw.Draw(picture).rectangle((x, y, x + 16, y + 16), fill=COLOURS[colour % len(COLOURS)])
    picture.save(path, "JPEG")


def _text(lines, newline: str) -> bytes:
    return "".join(line + newline for line in lines).encode()
