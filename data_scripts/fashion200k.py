# SPDX-License-Identifier: Apache-2.0
"""Fashion200K (Han et al., ICCV 2017): product photos with a description, and composed retrieval as in TIRG.

Expected in --source:
    labels/{dress,jacket,pants,skirt,top}_{train,test}_detect_all.txt   path, detection score, description; tabs
    women/<category>/<subcategory>/<product>/<product>_<n>.jpeg         the images, cut to the garment as released
    test_queries.txt                                                    optional, TIRG's queries: "source target"
    detection/*.txt                                                     for --crop: path, then a tab and
                                                                        kind_score_x1_x2_y1_y2 for each box
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.detection_boxes import Box, pixel_box, read_boxes, to_number
from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.one_word_differences import WordChange, draw_pairs, first_difference
from data_scripts.formats.stable_hash import share
from data_scripts.formats.text_files import exists, find, lines
from modeling_mclfir.data.annotations import Again, Annotations, Check, SourceImage, Table, image_path
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.schema import COMPOSED, FURTHER_COLUMNS, table_features
from modeling_mclfir.data.shards import DatasetSummary

NAME = "Fashion200K"
LICENCE = "not stated, as far as is known; take it as research only, do not pass it on; the photos belong to the shops"
CITATION = """@inproceedings{han2017automatic,
  title = {Automatic Spatially-Aware Fashion Concept Discovery},
  author = {Han, Xintong and Wu, Zuxuan and Huang, Phoenix X. and Zhang, Xiao and Zhu, Menglong and Li, Yuan and
            Zhao, Yang and Davis, Larry S.},
  booktitle = {IEEE International Conference on Computer Vision},
  year = {2017}
}
@inproceedings{vo2019composing,
  title = {Composing Text and Image for Image Retrieval - An Empirical Odyssey},
  author = {Vo, Nam and Jiang, Lu and Sun, Chen and Murphy, Kevin and Li, Li-Jia and Fei-Fei, Li and Hays, James},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2019}
}"""
DESCRIPTION = (
    "Photos of dresses, jackets, pants, skirts and tops with the shop's description. The table `composed` has pairs "
    "whose descriptions differ in one word, with the text 'replace A with B'."
)
CATEGORIES = ("dress", "jacket", "pants", "skirt", "top")
LABELS = "labels/{}_{}_detect_all.txt"
QUERIES = "test_queries.txt"
# Lines of the label files as TIRG's code counts them, and the queries of its paper.
PUBLISHED = {"train": 172_049, "test": 29_789, "queries": 33_480}
INCREMENTS = {
    "attributes": [{"name": "category", "attributes": ["category"]}],
    "domains": [{"name": name, "where": {"category": [name]}} for name in CATEGORIES],
}
GALLERIES = {"val": "val", "gallery": "test"}
NOTES = (
    "The split gallery is the published test part: its images are the queries too, named by the table `composed`. A "
    "hit is any image whose caption equals the target's, not the target alone; the reference image is left out of the "
    "ranking. R@1, R@10 and R@50 are reported.",
    "Training pairs: a caption that shares all words but one with the reference's, in the same order, drawn evenly "
    "from all such captions, then one of its images; TIRG draws anew at each step, and cuts strings instead of words. "
    "Given queries have TIRG's text: the first word of each caption that the other lacks, its last word where there "
    "is none. Captions are kept as they are; TIRG writes '.', '?', '&' and '*' as words.",
)


class Item(NamedTuple):
    """A line of a label file: a photo of a product."""

    image_id: str
    listed: str
    category: str
    score: float
    caption: str | None

    @property
    def product_id(self) -> str:
        """The folder that the photos of one product share."""
        return self.image_id.rpartition("/")[0].rpartition("/")[2] or self.image_id


def read(
    source: Path, *, pairs_per_image: int = 1, val_fraction: float = 0.0, seed: int = 0, crop: bool = False
) -> Annotations:
    """Reads the label files and the queries.

    Args:
        source: see the head of this file.
        pairs_per_image: targets drawn for each training image that has one.
        val_fraction: share of the training products that become the split val.
        seed: of the pairs and of the split.
        crop: cut the images to the box with the label file's score: whole photos only, the released ones are cut.

    Raises:
        FileNotFoundError: expected files are missing.
        ValueError: a path leaves the folder, or an argument is out of its range.
    """
    if pairs_per_image < 0 or not 0 <= val_fraction < 1:
        raise ValueError(
            f"{pairs_per_image} pairs an image, val fraction {val_fraction}; expected 0 or more, and 0 to below 1"
        )
    require_files(source, [LABELS.format(name, part) for part in ("train", "test") for name in CATEGORIES])
    bad_rows, checks = BadRows(), []
    counters = {"query": LineCounter(), "detection": LineCounter()}
    train = _read_labels(source, "train", bad_rows, checks)
    test = _read_labels(source, "test", bad_rows, checks)
    parts: dict[str, list[Item]] = {"train": [], "val": [], "gallery": test}
    for item in train:
        parts["val" if share(f"{seed}\0{item.product_id}") < val_fraction else "train"].append(item)
    pairs = {
        "train": _draw(parts["train"], pairs_per_image, seed),
        "val": _draw(parts["val"], 1, seed),
        "query": _queries(source, test, seed, counters["query"], checks),
    }
    boxes = {}
    if crop:
        scores = {item.image_id: item.score for item in train + test}
        boxes = read_boxes(source, scores, counters["detection"])
        checks.append(Check("images without a box, left whole", len(scores.keys() - boxes.keys())))
    used = {split: items for split, items in parts.items() if items}
    drawn = f"Pairs of a training image: {pairs_per_image} at most. Seed: {seed}. Val fraction: {val_fraction}."
    return Annotations(
        attributes=("category",),
        increments=INCREMENTS,
        splits={split: Again(_rows, source, split, items, boxes) for split, items in used.items()},
        counts={split: len(items) for split, items in used.items()},
        columns={name: FURTHER_COLUMNS[name] for name in ("image_id", "galleries")},
        tables={"composed": _table(parts, pairs)},
        checks=[*checks, *_further_checks(train, test)],
        notes=[*NOTES, drawn],
        bad_rows=bad_rows,
        bad_lines=bad_lines(counters),
    )


def _further_checks(train: list[Item], test: list[Item]) -> list[Check]:
    images = train + test
    return [
        Check("training captions, each counted once", len({item.caption for item in train} - {None})),
        Check("images without a caption", sum(item.caption is None for item in images)),
        Check("images both in train and in test", len(images) - len({item.image_id for item in images})),
    ]


def _read_labels(source: Path, part: str, bad_rows: BadRows, checks: list[Check]) -> list[Item]:
    """The images of train or test, each once; the lines for them are counted."""
    items: dict[str, Item] = {}
    count = 0
    for category in CATEGORIES:
        path = find(source, LABELS.format(category, part))
        for number, line in lines(path):
            cells = [cell.strip() for cell in line.split("\t")]
            score = to_number(cells[1]) if len(cells) > 2 else None
            if score is None or not cells[0]:
                bad_rows.add("malformed", f"{path.name} line {number}")
                continue
            count += 1
            image_id = str(image_path(cells[0]))
            if image_id in items:
                bad_rows.add("duplicate", f"{path.name} line {number}")
            else:
                items[image_id] = Item(image_id, cells[0], category, score, cells[2] or None)
    checks.append(Check(f"lines of the {part} label files", count, PUBLISHED[part]))
    return list(items.values())


def _queries(source: Path, test: list[Item], seed: int, counter: LineCounter, checks: list[Check]) -> list[WordChange]:
    """The queries of test_queries.txt, with TIRG's texts; drawn from the test images where there is no such file."""
    if not exists(source, QUERIES):
        drawn = _draw(test, 1, seed)
        checks.append(Check("queries, drawn for want of test_queries.txt", len(drawn)))
        return drawn
    places = {item.image_id: place for place, item in enumerate(test)}
    path = find(source, QUERIES)
    queries, alike = [], 0
    for number, line in lines(path):
        counter.read += 1
        names = _two_names(line.strip(), places)
        captions = [test[places[name]].caption for name in names]
        if not names or None in captions:
            cause = "no_caption" if names else "unknown_image" if len(line.split()) > 1 else "malformed"
            counter.add(cause, f"{path.name} line {number}")
            continue
        old, new, differ = first_difference(*captions)
        queries.append(WordChange(places[names[0]], places[names[1]], old, new))
        alike += not differ
    checks.append(Check("queries", len(queries), PUBLISHED["queries"]))
    checks.append(Check("queries where a caption has no word of its own", alike))
    return queries


def _two_names(line: str, known: Mapping[str, int]) -> tuple[str, ...]:
    """Source and target of a line, which may have spaces in their names; nothing where one of them is not known."""
    for place, character in enumerate(line):
        if character.isspace():
            names = tuple(str(image_path(part.strip())) for part in (line[:place], line[place:]))
            if all(name in known for name in names):
                return names
    return ()


def _draw(items: Sequence[Item], per_image: int, seed: int) -> list[WordChange]:
    return draw_pairs([item.image_id for item in items], [item.caption for item in items], per_image, seed)


def _rows(source: Path, split: str, items: Sequence[Item], boxes: Mapping[str, Box]) -> Iterator[dict]:
    galleries = [GALLERIES[split]] if split in GALLERIES else []
    for item in items:
        box = boxes.get(item.image_id)
        yield {
            "image": SourceImage(source, item.listed, box and pixel_box(source, item.listed, box)),
            "attributes": {"category": item.category},
            "caption": item.caption,
            "product_id": item.product_id,
            "image_id": item.image_id,
            "galleries": galleries,
        }


def _table(parts: Mapping[str, Sequence[Item]], pairs: Mapping[str, Sequence[WordChange]]) -> Table:
    items = {**parts, "query": parts.get("gallery", [])}
    splits = {split: Again(_composed_rows, split, items[split], pairs[split]) for split in pairs if items.get(split)}
    return Table(table_features(COMPOSED), splits)


def _composed_rows(split: str, items: Sequence[Item], pairs: Sequence[WordChange]) -> Iterator[dict]:
    for number, pair in enumerate(pairs):
        yield {
            "query_id": f"{split}-{number}",
            "reference": items[pair.reference].image_id,
            "target": items[pair.target].image_id,
            "modification_texts": [pair.text],
            "gallery": {"query": GALLERIES["gallery"], **GALLERIES}.get(split),
            "hit": "caption",
        }


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("fashion200k", __doc__, source="folder with the files above")
    command.add_argument(
        "--pairs-per-image", type=int, default=1, help="targets drawn for each training image (default: 1)"
    )
    command.add_argument(
        "--val-fraction", type=float, default=0.0, help="share of the training products to put into val (default: 0)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the pairs and of val (default: 0)")
    command.add_argument(
        "--crop",
        action="store_true",
        help="cut whole photos to their detection box; the released ones are cut already",
    )
    options = command.parse_args(arguments)
    annotations = read(
        options.source,
        pairs_per_image=options.pairs_per_image,
        val_fraction=options.val_fraction,
        seed=options.seed,
        crop=options.crop,
    )
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
