# SPDX-License-Identifier: Apache-2.0
"""A tiny DeepFashion (Category and Attribute Prediction) in its raw form, with ASEN's lists; all content is made up.

120 images. In ASEN's lists 60–89 are valid and 90–119 test, the first ten of each are queries; the official partition
has 0–59 in train, 60–79 in val and 80–119 in test. Image i has the tag of type i % 5 and value i // 5 % 2, which is
the sampled one, that of the next type with value i // 3 % 2, and where 4 divides i both of its own type; image 5 has
none.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

ATTRIBUTES = ("texture-related", "fabric-related", "shape-related", "part-related", "style-related")
# Name and type from 1; the place is the number of the tag. Types are mixed: a rank is not a place.
TAGS = (
    ("big dots", 1), ("crinkled", 2), ("cuff", 4), ("felted", 2), ("fine stripe", 1),
    ("harbour", 5), ("kimono", 3), ("soirée", 5), ("two zips", 4), ("wrap", 3),
)  # fmt: skip
LABELS = [f"{ATTRIBUTES[kind - 1]}={name}" for name, kind in TAGS]
CATEGORIES = (("Tee", 1), ("Button Down", 1), ("Culottes", 2))
UNTAGGED = 5
EMPTY_BOX, WIDE_BOX = 3, 4
IMAGES = range(120)


def path_of(i: int) -> str:
    """The path of image i, as listed."""
    return f"img/{('Café_Tee', 'Wide_Trousers', 'Plain Shirt')[i % 3]}/img_{i:08d}.jpg"


def sampled_of(i: int) -> tuple[int, int]:
    """Attribute and value of the sampled tag of image i."""
    return i % 5, i // 5 % 2


def tags_of(i: int) -> list[int]:
    """Numbers of all tags of image i."""
    if i == UNTAGGED:
        return []
    own, value = sampled_of(i)
    found = {_number(own, value), _number((i + 1) % 5, i // 3 % 2)}
    return sorted(found | ({_number(own, 1 - value)} if i % 4 == 0 else set()))


def make(folder: Path, *, images: bool = True, official: bool = True, lists: bool = True, train: bool = False) -> Path:
    """Writes the set.

    Args:
        folder: to write, made where it is not there.
        images: draw the images.
        official: write Anno/ and Eval/.
        lists: write ASEN's lists.
        train: with ASEN's lists of train, which name images 0–59 with all their tags.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if images:
        for i in IMAGES:
            _draw(folder / path_of(i), i)
    if official:
        _write_official(folder)
    if lists:
        _write_lists(folder, train)
    return folder


def rows_of(annotations) -> dict[str, list]:
    """split → rows of annotations; fails where the counts are not those of the rows."""
    rows = {split: list(part) for split, part in annotations.splits.items()}
    assert {split: len(part) for split, part in rows.items()} == dict(annotations.counts)
    return rows


def number(row) -> int:
    """The number of a row's image."""
    return int(row["image"].listed[-12:-4])


def labels(row) -> dict[str, str]:
    """Attribute → value, without those that are not known."""
    return {name: value for name, value in row["attributes"].items() if value is not None}


def _number(attribute: int, value: int) -> int:
    return [tag for tag, (_, kind) in enumerate(TAGS) if kind == attribute + 1][value]


def _draw(path: Path, i: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    attribute, value = sampled_of(i)
    colour = (40 + 40 * attribute, 60 + 120 * value, (37 * i) % 256)
    picture = Image.new("RGB", (24, 24), colour)
    picture.paste((255, 255, 255), (i % 12, 4, i % 12 + 6, 20))
    picture.save(path, "JPEG")


def _write_official(folder: Path) -> None:
    anno, evaluation = folder / "Anno", folder / "Eval"
    anno.mkdir()
    evaluation.mkdir()
    _table(anno / "list_attr_cloth.txt", "attribute_name  attribute_type", [f"{n:<30} {k}" for n, k in TAGS], "\r\n")
    _table(anno / "list_attr_img.txt", "image_name  attribute_labels", [_flags(i) for i in IMAGES], "\n")
    _table(anno / "list_category_cloth.txt", "category_name  category_type", [f"{n:<14}{k}" for n, k in CATEGORIES])
    _table(
        anno / "list_category_img.txt", "image_name  category_label", [f"{path_of(i)}   {i % 3 + 1}" for i in IMAGES]
    )
    _table(anno / "list_bbox.txt", "image_name  x_1  y_1  x_2  y_2", [_box(i) for i in IMAGES], "\r\n")
    parts = [f"{path_of(i):<70} {'train' if i < 60 else 'val' if i < 80 else 'test'}" for i in IMAGES]
    _table(evaluation / "list_eval_partition.txt", "image_name  evaluation_status", parts)


def _table(path: Path, columns: str, rows: list[str], end: str = "\n") -> None:
    """With a BOM and without the last newline."""
    path.write_bytes(("\ufeff" + end.join([str(len(rows)), columns, *rows])).encode())


def _flags(i: int) -> str:
    others = "0" if i % 7 == 0 else "-1"
    return f"{path_of(i):<70}" + " ".join("1" if tag in tags_of(i) else others for tag in range(len(TAGS))) + "  "


def _box(i: int) -> str:
    box = {EMPTY_BOX: "010 010 010 020", WIDE_BOX: "-05 004 040 040"}.get(i, "002 004 020 024")
    return f"{path_of(i):<70} {box}"


def _write_lists(folder: Path, train: bool) -> None:
    counts = {name: sum(kind == i for _, kind in TAGS) for i, name in enumerate(ATTRIBUTES, start=1)}
    meta = {"DeepFashion": {"ATTRIBUTES": list(ATTRIBUTES), "ATTRIBUTES_NUM": counts}}
    (folder / "meta.json").write_text(json.dumps(meta, indent="\t"))
    lists = folder / "DeepFashion"
    lists.mkdir()
    for part, first in (("valid", 60), ("test", 90)):
        # As in the true lists, candidates come first.
        order = [*range(first + 10, first + 30), *range(first, first + 10)]
        (lists / f"filenames_{part}.txt").write_text("\n".join(map(path_of, order)), encoding="utf-8")
        for name, members in (("query", order[20:]), ("candidate", order[:20])):
            rows = [" ".join(map(str, (order.index(i), *sampled_of(i)))) for i in members]
            (lists / f"{name}_{part}.txt").write_text("\n".join(rows) + "\n")
        rows = ["\t".join(map(str, (place, *_pairs(i)))) + "\t" * 6 for place, i in enumerate(order)]
        (lists / f"label_{part}.txt").write_bytes(("\r\n".join(rows) + "\r\n").encode())
    if train:
        (lists / "filenames_train.txt").write_text("\n".join(map(path_of, range(60))) + "\n", encoding="utf-8")
        rows = [" ".join(map(str, (i, *_ranks(i)))) for i in range(60) if i != UNTAGGED]
        (lists / "label_train.txt").write_bytes("\r\n".join(rows).encode())


def _pairs(i: int) -> list[int]:
    """Type from 1 and number of each tag."""
    return [number for tag in tags_of(i) for number in (TAGS[tag][1], tag)]


def _ranks(i: int) -> list[int]:
    """Attribute and value of each tag, as in the lists."""
    kinds = [kind for _, kind in TAGS]
    return [number for tag in tags_of(i) for number in (kinds[tag] - 1, kinds[:tag].count(kinds[tag]))]
