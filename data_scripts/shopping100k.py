# SPDX-License-Identifier: Apache-2.0
"""Shopping100K (Ak et al., WACV 2018): shop photos with 12 attributes, and queries that change one of them (ADDE).

Expected in --source, in splits/Shopping100k/, Shopping100k/ or the folder itself, as in the repository
amzn/fashion-attribute-disentanglement (get its files with git-lfs; without it they are pointers of three lines):
    attr_num.txt                             number of values of each attribute
    imgs_{train,test}.txt                    paths of the images
    labels_{train,test}.txt                  one-hot rows, a row for each image
    ref_test.txt                             the reference of each query: line of imgs_test.txt from 0, or a path
    indfull_test.txt                         -1, 0 or 1 for each value: it goes, stays, comes
    gt_test.txt                              one-hot rows: what is wanted
    triplet_train.txt, triplet_train_ind.txt optional: "reference positive negative", and the change
    attributes.json                          optional: names, {"category": ["…", …], …} as the columns go
The images, on request from the author, in Images/, Shopping100k/Images/ or the folder itself (else see --images).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.image_files import image_file
from data_scripts.formats.increment_lists import attribute_increments
from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.one_hot_files import SHOPPING100K, Change, Vocabulary, read_together, read_vocabulary
from data_scripts.formats.text_files import exists, whole_number
from modeling_mclfir.data.annotations import Again, Annotations, Check, SourceImage, Table, image_path
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.schema import COMPOSED, FURTHER_COLUMNS, table_features
from modeling_mclfir.data.shards import DatasetSummary

NAME = "Shopping100K"
LICENCE = "images: academic use, as far as is known, by request to the author; splits and labels: CC-BY-NC-4.0"
CITATION = """@inproceedings{ak2018efficient,
  title = {Efficient Multi-Attribute Similarity Learning Towards Attribute-Based Fashion Search},
  author = {Ak, Kenan E. and Lim, Joo Hwee and Tham, Jo Yew and Kassim, Ashraf A.},
  booktitle = {IEEE Winter Conference on Applications of Computer Vision},
  year = {2018}
}
@inproceedings{hou2021disentanglement,
  title = {Learning Attribute-Driven Disentangled Representations for Interactive Fashion Retrieval},
  author = {Hou, Yuxin and Vig, Eleonora and Donoser, Michael and Bazzani, Loris},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year = {2021}
}"""
DESCRIPTION = (
    "Shop photos of single garments with 12 attributes. The table `composed` has queries that change one attribute of "
    "a test image; the wanted labels are given, and no single target."
)
FOLDERS = ("splits/Shopping100k", "Shopping100k", ".")
IMAGE_FOLDERS = ("Images", "Shopping100k/Images", ".")
QUERIES = ("ref_test.txt", "indfull_test.txt", "gt_test.txt")
FILES = ("attr_num.txt", "imgs_train.txt", "imgs_test.txt", "labels_train.txt", "labels_test.txt", *QUERIES)
TRIPLETS = ("triplet_train.txt", "triplet_train_ind.txt")
NAMES = "attributes.json"
GALLERY = "test"
# From the sizes of the released files, whose rows all have one width.
PUBLISHED = {"train": 80_586, "test": 20_000, "queries": 14_361, "removing": 11_334}
NOTES = (
    "The split gallery is the published test part: its images are the references too. `wanted` lists all labels of "
    "the wanted row. In the published protocol a hit is an image with exactly that row: its column tags holds just "
    "what is in `wanted`. The reference stays in the gallery. Top 30 and NDCG@30 are usual.",
    "An attribute of an image is null where its group of columns has no 1, or several; the column tags has all.",
)


class Item(NamedTuple):
    """A row of a part: an image, and the columns of its labels."""

    image_id: str
    listed: str
    row: tuple[int, ...]


class Query(NamedTuple):
    """A change of a reference image, and what is wanted; a training triplet has a target and a negative instead."""

    reference: str
    changes: tuple[Change, ...]
    wanted: tuple[int, ...] = ()
    target: str | None = None
    negative: str | None = None


class Part(NamedTuple):
    """Train or test: image id → image, each once, and the id of every line (None where the line is bad)."""

    items: dict[str, Item]
    by_line: list[str | None]

    def named(self, cell: str) -> str | None:
        """The id of the image that a line number from 0, or a path, stands for; None where there is none."""
        line = whole_number(cell)
        if line is not None:
            return self.by_line[line] if line < len(self.by_line) else None
        name = str(image_path(cell))
        return name if name in self.items else None


def read(source: Path, *, images: Path | None = None) -> Annotations:
    """Reads labels, queries and, where they are there, triplets.

    Args:
        source: see the head of this file.
        images: folder that the listed paths are in; None: looked for.

    Raises:
        FileNotFoundError: expected files are missing.
        ValueError: a path leaves the folder, files do not fit together, or names do not fit attr_num.txt.
    """
    folder = next((source / name for name in FOLDERS if exists(source / name, FILES[1])), source)
    require_files(folder, FILES)
    names = next((path for path in (folder / NAMES, source / NAMES) if path.is_file()), None)
    vocabulary = read_vocabulary(folder, names)
    bad_rows, counters = BadRows(), {"query": LineCounter(), "triplet": LineCounter()}
    train, test = (_read_part(folder, part, vocabulary, bad_rows) for part in ("train", "test"))
    composed = {"query": _read_queries(folder, test, vocabulary, counters["query"])}
    if all(exists(folder, name) for name in TRIPLETS):
        composed["train"] = _read_triplets(folder, train, vocabulary, counters["triplet"])
    root = images or _image_folder(source, train)
    return Annotations(
        attributes=tuple(vocabulary.values),
        increments=attribute_increments(tuple(vocabulary.values)),
        splits={
            "train": Again(_rows, root, vocabulary, train, []),
            "gallery": Again(_rows, root, vocabulary, test, [GALLERY]),
        },
        counts={"train": len(train.items), "gallery": len(test.items)},
        columns={name: FURTHER_COLUMNS[name] for name in ("image_id", "galleries", "tags")},
        tables={"composed": _table(vocabulary, composed)},
        checks=_checks(vocabulary, train, test, composed["query"]),
        notes=NOTES,
        bad_rows=bad_rows,
        bad_lines=bad_lines(counters),
    )


def _checks(vocabulary: Vocabulary, train: Part, test: Part, queries: list[Query]) -> list[Check]:
    rows = {item.row for item in test.items.values()}
    items = [*train.items.values(), *test.items.values()]
    several = sum(max(vocabulary.count(item.row).values(), default=0) > 1 for item in items)
    astray = sum(_changed(vocabulary, test, query) != set(vocabulary.tags(query.wanted)) for query in queries)
    removing = sum(any(change.removed for change in query.changes) for query in queries)
    return [
        Check("attributes", len(vocabulary.values), len(SHOPPING100K)),
        Check("values of all attributes", len(vocabulary.columns), sum(SHOPPING100K.values())),
        Check("lines of labels_train.txt", len(train.by_line), PUBLISHED["train"]),
        Check("lines of labels_test.txt", len(test.by_line), PUBLISHED["test"]),
        Check("queries", len(queries), PUBLISHED["queries"]),
        Check("queries that remove a value", removing, PUBLISHED["removing"]),
        Check("queries whose change leads from the reference to another row than the wanted one", astray),
        Check("queries whose wanted row no test image has", sum(query.wanted not in rows for query in queries)),
        Check("images with several values of an attribute", several),
    ]


def _changed(vocabulary: Vocabulary, test: Part, query: Query) -> set[str]:
    """The labels of the reference with the change made."""
    labels = set(vocabulary.tags(test.items[query.reference].row))
    for change in query.changes:
        labels -= {f"{change.attribute}={value}" for value in change.removed}
        labels |= {f"{change.attribute}={value}" for value in change.added}
    return labels


def _read_part(folder: Path, part: str, vocabulary: Vocabulary, bad_rows: BadRows) -> Part:
    """The images of train or test with their labels."""
    items: dict[str, Item] = {}
    by_line: list[str | None] = []
    for (place, listed), (_, line) in read_together(folder, (f"imgs_{part}.txt", f"labels_{part}.txt")):
        row = vocabulary.row(line)
        image_id = str(image_path(listed))
        by_line.append(None if row is None else image_id)
        if row is None:
            bad_rows.add("malformed", f"labels of {place}")
        elif image_id in items:
            bad_rows.add("duplicate", place)
        else:
            items[image_id] = Item(image_id, listed, row)
    return Part(items, by_line)


def _read_queries(folder: Path, test: Part, vocabulary: Vocabulary, counter: LineCounter) -> list[Query]:
    queries = []
    for (place, cell), (_, change), (_, row) in read_together(folder, QUERIES):
        counter.read += 1
        reference, changes, wanted = test.named(cell), vocabulary.changes(change), vocabulary.row(row)
        if changes is None or wanted is None:
            counter.add("malformed", f"change or wanted row of {place}")
        elif reference is None:
            counter.add("unknown_image", place)
        else:
            queries.append(Query(reference, changes, wanted))
    return queries


def _read_triplets(folder: Path, train: Part, vocabulary: Vocabulary, counter: LineCounter) -> list[Query]:
    triplets = []
    for (place, line), (_, change) in read_together(folder, TRIPLETS):
        counter.read += 1
        cells, changes = line.split(), vocabulary.changes(change)
        if changes is None or len(cells) != 3:
            counter.add("malformed", place)
            continue
        reference, positive, negative = map(train.named, cells)
        if reference is None or positive is None or negative is None:
            counter.add("unknown_image", place)
        else:
            triplets.append(Query(reference, changes, target=positive, negative=negative))
    return triplets


def _image_folder(source: Path, train: Part) -> Path:
    """Where the first images of the list are; the first folder that there is, if none of them is found."""
    folders = [source / name for name in IMAGE_FOLDERS if (source / name).is_dir()]
    listed = [item.listed for item in islice(train.items.values(), 100)]
    return next((folder for folder in folders if any(image_file(folder, name) for name in listed)), folders[0])


def _rows(root: Path, vocabulary: Vocabulary, part: Part, galleries: list[str]) -> Iterator[dict]:
    for item in part.items.values():
        yield {
            "image": SourceImage(root, item.listed),
            "attributes": vocabulary.labels(item.row),
            "tags": vocabulary.tags(item.row),
            "image_id": item.image_id,
            "galleries": galleries,
        }


def _table(vocabulary: Vocabulary, splits: Mapping[str, Sequence[Query]]) -> Table:
    """The queries; training triplets keep their negative in a further column."""
    columns = {**COMPOSED, "negative": "string"} if "train" in splits else COMPOSED
    rows = {split: Again(_composed_rows, vocabulary, split, queries) for split, queries in splits.items()}
    return Table(table_features(columns), rows)


def _composed_rows(vocabulary: Vocabulary, split: str, queries: Sequence[Query]) -> Iterator[dict]:
    for number, query in enumerate(queries):
        yield {
            "query_id": f"{split}-{number}",
            "reference": query.reference,
            "target": query.target,
            "modification_texts": ["; ".join(change.text for change in query.changes)],
            "gallery": GALLERY if split == "query" else None,
            **({"hit": "wanted", "wanted": vocabulary.tags(query.wanted)} if split == "query" else {"hit": "target"}),
            **({"negative": query.negative} if split == "train" else {}),
        }


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("shopping100k", __doc__, source="folder with the files above")
    command.add_argument("--images", type=Path, default=None, help="folder that the listed paths are in")
    options = command.parse_args(arguments)
    annotations = read(options.source, images=options.images)
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
