# SPDX-License-Identifier: Apache-2.0
"""FashionAI attributes (Zou et al., CVPR workshops 2019): 180,335 photos, each with one of 8 attributes.

Expected in --source:
  fashionAI_attributes_train1/Annotations/label.csv       path, <attribute>_labels, one letter (y, n, m) for each value
  fashionAI_attributes_train1/Images/<attribute>_labels/*.jpg
  fashionAI_attributes_train2/                            the same
  meta.json, FashionAI/                                   optional (or --meta): the lists of ASEN, which the papers use

--split asen takes val, query and gallery from these lists, and train from filenames_train.txt and label_train.txt, or
else from all rows of label.csv that the lists do not name. --split hash needs label.csv only. --labels FILE reads one
file of that form, such as that of a test round, whose paths begin at the folder above its own or at --source.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.asen_meta import find_lists, meta_checks, read_meta
from data_scripts.formats.asen_rows import Labelled, image_root, labelled_rows, listed_splits, second_values_note
from data_scripts.formats.fashionai_letters import ATTRIBUTES, NUM_VALUES, VALUES, read_letters
from data_scripts.formats.increment_lists import attribute_increments
from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.text_files import exists, find
from modeling_mclfir.data.annotations import Again, Annotations, Check, image_path
from modeling_mclfir.data.folder import split_by_hash
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.schema import FURTHER_COLUMNS, SPLITS, table_features
from modeling_mclfir.data.shards import DatasetSummary

NAME = "FashionAI"
LICENCE = "as far as is known: terms of the Tianchi platform, research only, no redistribution; photos © their owners"
CITATION = """@inproceedings{zou2019fashionai,
  title = {{FashionAI}: A Hierarchical Dataset for Fashion Understanding},
  author = {Zou, Xingxing and Kong, Xiangheng and Wong, Waikeung and Wang, Congde and Liu, Yuguang and Cao, Yang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year = {2019}
}"""
DESCRIPTION = (
    "Photos of women's clothes, each labelled for one of 8 attributes; the others are null. The label is the value "
    "marked y; the column tags has it and those marked m (maybe)."
)
PUBLISHED = {
    "queries": 3_600,
    "candidates": 14_400,
    "images": 18_000,
    "test_queries": (422, 623, 535, 422, 341, 289, 703, 265),
    "train": 144_335,
    "train_pairs": (17_428, 24_546, 20_563, 17_199, 13_961, 12_782, 26_770, 11_086),
    "lonely_valid": 0,
    "lonely_test": 0,
}
FOLDERS = ("fashionAI_attributes_train1", "fashionAI_attributes_train2")
LABELS = "Annotations/label.csv"


def read(
    source: Path, *, meta: Path | None = None, split: str | None = None, labels: Path | None = None
) -> Annotations:
    """Reads the label files and the lists.

    Args:
        source: folder with the two folders of the set; no image needs to be there.
        meta: folder with ASEN's lists; `source` where None.
        split: "asen" or "hash"; None: "asen" where the lists are there and `labels` is None.
        labels: one file to read instead of the two label.csv, split by hash.

    Raises:
        FileNotFoundError: files are missing; all of them are named.
        ValueError: a file has another form, a path leaves its folder, or "asen" is asked for with `labels`.
    """
    if split == "asen" and labels is not None:
        raise ValueError("--labels has a file of its own, which ASEN's lists do not name; use --split hash with it")
    if split is None:
        with_lists = labels is None and (meta is not None or find_lists(source, "FashionAI") is not None)
        split = "asen" if with_lists else "hash"
    bad_rows = BadRows()
    return _read_asen(source, meta or source, bad_rows) if split == "asen" else _read_hash(source, labels, bad_rows)


def _read_asen(source: Path, meta_folder: Path, bad_rows: BadRows) -> Annotations:
    meta = read_meta(meta_folder, "FashionAI", bad_rows)
    if (meta.attributes, meta.num_values) != (ATTRIBUTES, NUM_VALUES):
        raise ValueError(
            f"meta.json has other attributes of FashionAI, or numbers of values: {meta.attributes}, "
            f"{meta.num_values}; expected {ATTRIBUTES}, {NUM_VALUES}"
        )
    root = image_root(source, meta.folder, FOLDERS)
    files = {folder: find(root / folder, LABELS) for folder in FOLDERS if exists(root / folder, LABELS)}
    splits, checks, notes = listed_splits(meta), meta_checks(meta, PUBLISHED), list(meta.notes)
    notes += second_values_note(meta, "The first one is the label; the column tags has all.")
    counter, listed_train = LineCounter(), "train" in meta.lists
    comparison = _compare(splits, files, counter if listed_train else bad_rows)
    lines_read = dict(meta.bad_lines)
    if listed_train:  # no row is made of the lines of label.csv
        counter.read = comparison.lines
        lines_read |= bad_lines({"label.csv": counter})
    if files:
        checks.append(Check("listed images with another value in label.csv, or none", comparison.disagree, 0))
        notes.append(comparison.note(list(files)))
    if not listed_train and files:
        splits["train"] = comparison.others
        checks += _label_checks("train images", comparison.others, PUBLISHED["train"], PUBLISHED["train_pairs"])
        notes.append(
            "Train is every row of label.csv that is in no list for validation or test. That is how ASEN's train list "
            "must have come about: 180,335 rows less 2 × 18,000 are the 144,335 labels of its label_train.txt."
        )
    elif not listed_train:
        notes.append("There is no label.csv either: the split train is empty.")
    annotations = _annotations(root, splits, comparison.maybe, ("galleries", "tags"), checks, notes, bad_rows)
    return replace(annotations, bad_lines=lines_read)


def _read_hash(source: Path, labels: Path | None, bad_rows: BadRows) -> Annotations:
    if labels is None:
        require_files(source, [f"{folder}/{LABELS}" for folder in FOLDERS])
        root, published = source, PUBLISHED["train"] + 2 * PUBLISHED["images"]
        files = {folder: find(source / folder, LABELS) for folder in FOLDERS}
    elif not labels.is_file():
        raise FileNotFoundError(f"{labels}: no such file; expected lines 'path,<attribute>_labels,<letters>'")
    else:
        above = labels.absolute().parent.parent
        root, published, files = above if (above / "Images").is_dir() else source, None, {"": labels}
    comparison = _compare({}, files, bad_rows)
    splits: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
    for item in comparison.others:
        splits[split_by_hash(image_path(item.image).name)].append(item)
    checks = [
        *_label_checks("labelled images", comparison.others, published),
        Check("labelled images with a value marked m", len(comparison.maybe)),
    ]
    note = "The splits are made here, by a hash of the image's file name (60/10/8/22 %); they are not the papers'."
    # Nobody said which images of val are queries: there is no column of galleries.
    return _annotations(root, splits, comparison.maybe, ("tags",), checks, [note], bad_rows)


@dataclass
class _Comparison:
    """The label files beside the lists.

    Attributes:
        others: rows that no list names.
        maybe: image → (attribute, value) of what is marked m, where something is.
        disagree: listed images whose row has another value, or none that can be read.
        lacking: listed images that the files do not have.
        lines: lines of the files.
    """

    others: list[Labelled] = field(default_factory=list)
    maybe: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    disagree: int = 0
    lacking: int = 0
    lines: int = 0

    def note(self, folders: Sequence[str]) -> str:
        """What was found, in a sentence."""
        return (
            f"The lists compared with label.csv of {' and '.join(folders)}: {self.disagree} images have another value "
            f"there, or none (that of the lists is kept); {self.lacking} are not there; {len(self.others)} rows are "
            "in no list."
        )


def _compare(splits: Mapping[str, Sequence[Labelled]], files: Mapping[str, Path], bad_rows: BadRows) -> _Comparison:
    """Reads the label files (name of the folder that the paths are in → file) beside the rows of the lists."""
    listed = {str(image_path(item.image)): item.labels for items in splits.values() for item in items}
    lacking, result = set(listed), _Comparison()
    for folder, path in files.items():
        for row in read_letters(path, folder):
            result.lines += 1
            name = str(image_path(row.image))
            if name in listed and row.cause != "duplicate":
                lacking.discard(name)
                result.disagree += row.cause is not None or (row.attribute, row.value) not in listed[name]
            elif row.cause is None:
                result.others.append(Labelled(row.image, ((row.attribute, row.value),)))
            else:
                bad_rows.add(row.cause, row.where)
            if row.maybe:
                result.maybe[name] = tuple((row.attribute, value) for value in row.maybe)
    result.lacking = len(lacking)
    return result


def _label_checks(
    what: str, items: Sequence[Labelled], published: int | None, by_attribute: Sequence[int] = ()
) -> list[Check]:
    counted = Counter(attribute for item in items for attribute, _ in item.labels)
    expected = by_attribute or [None] * len(ATTRIBUTES)
    return [
        Check(what, len(items), published),
        *(Check(f"{what} {name}", counted[i], expected[i]) for i, name in enumerate(ATTRIBUTES)),
    ]


def _annotations(
    root: Path,
    splits: Mapping[str, Sequence[Labelled]],
    maybe: Mapping[str, Sequence[tuple[int, int]]],
    columns: Sequence[str],
    checks: Sequence[Check],
    notes: Sequence[str],
    bad_rows: BadRows,
) -> Annotations:
    return Annotations(
        attributes=ATTRIBUTES,
        increments=attribute_increments(ATTRIBUTES),
        splits={split: Again(_rows, root, items, maybe) for split, items in splits.items()},
        counts={split: len(items) for split, items in splits.items()},
        columns=table_features({name: FURTHER_COLUMNS[name] for name in columns}),
        checks=checks,
        notes=notes,
        bad_rows=bad_rows,
    )


def _rows(
    root: Path, items: Sequence[Labelled], maybe: Mapping[str, Sequence[tuple[int, int]]]
) -> Iterator[dict[str, Any]]:
    rows = labelled_rows(root, ATTRIBUTES, list(VALUES.values()), items)
    for item, row in zip(items, rows, strict=True):
        holds = sorted({*item.labels, *maybe.get(str(image_path(item.image)), ())})
        yield row | {"tags": [f"{ATTRIBUTES[i]}={VALUES[ATTRIBUTES[i]][value]}" for i, value in holds]}


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("fashionai", __doc__, source="folder with the files above")
    command.add_argument(
        "--meta", type=Path, default=None, help="folder of meta.json and FashionAI/ (default: --source)"
    )
    command.add_argument(
        "--split", choices=("asen", "hash"), default=None, help="default: asen where the lists are there, else hash"
    )
    command.add_argument(
        "--labels", type=Path, default=None, help="one label file to read instead of the two label.csv"
    )
    options = command.parse_args(arguments)
    annotations = read(options.source, meta=options.meta, split=options.split, labels=options.labels)
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
