# SPDX-License-Identifier: Apache-2.0
"""DARN (Huang et al., ICCV 2015): photos from online shops and streets, 9 attributes, split by the lists of ASEN.

Expected in --source:
  pic/<number>/<name>.jpg                 downloaded before, from the addresses that the authors of DARN hand out
  meta.json, DARN/                        ASEN's lists (or --meta): query_, candidate_ and filenames_{valid,test}.txt;
                                          filenames_train.txt and label_train.txt to train on it

Nothing is downloaded. Many addresses are dead: with --urls FILE, images that are not there are left out and told of in
the card instead of being counted as bad rows.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_scripts.command import parser, run, write_annotations
from data_scripts.formats.asen_meta import meta_checks, read_meta
from data_scripts.formats.asen_rows import Labelled, image_root, labelled_rows, listed_splits, second_values_note
from data_scripts.formats.image_files import image_file
from data_scripts.formats.increment_lists import attribute_increments
from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.text_files import lines
from modeling_mclfir.data.annotations import Again, Annotations, Check, image_path
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.schema import FURTHER_COLUMNS, table_features
from modeling_mclfir.data.shards import DatasetSummary

NAME = "DARN"
LICENCE = "none stated, as far as is known; research use, cite the paper; the photos belong to shops and customers"
CITATION = """@inproceedings{huang2015cross,
  title = {Cross-Domain Image Retrieval with a Dual Attribute-Aware Ranking Network},
  author = {Huang, Junshi and Feris, Rogerio S. and Chen, Qiang and Yan, Shuicheng},
  booktitle = {International Conference on Computer Vision},
  year = {2015}
}"""
DESCRIPTION = (
    "Upper-body clothes with 9 attributes, split by the lists of ASEN (Ma et al., AAAI 2020). An image of val, query "
    "and gallery has one label; queries are compared with the images that are labelled for the same attribute. Values "
    "are numbers, as in the lists."
)
# From the lists themselves; a query whose value no candidate has counts 0 in the papers.
PUBLISHED = {
    "queries": 4_293,
    "candidates": 17_168,
    "images": 21_461,
    "test_queries": (476, 448, 491, 448, 463, 533, 509, 483, 442),
    "lonely_valid": 4,
    "lonely_test": 3,
}
_BEFORE_URL = re.compile(r"[\t ,]+(?=(?:https?:)?//)", re.IGNORECASE)


def read(source: Path, meta: Path | None = None, urls: Path | None = None) -> Annotations:
    """Reads the lists.

    Args:
        source: folder with the images; none of them needs to be there.
        meta: folder with ASEN's lists; `source` where None.
        urls: list with the address of each image, "path<tab, blank or comma>address". Given, images that are not in
            `source` are left out; where none at all is there, every row stays, for its annotations.

    Raises:
        FileNotFoundError: lists are missing; all of them are named.
        ValueError: a file has another form, or a path leaves its folder.
    """
    bad_rows, addresses = BadRows(), LineCounter()
    lists = read_meta(meta or source, "DARN", bad_rows)
    splits = listed_splits(lists)
    checks = [*meta_checks(lists, PUBLISHED), Check("train images", len(splits["train"]))]
    notes = [f"{note} The split train is empty; to train, both files are needed." for note in lists.notes]
    notes += second_values_note(lists, "The first one of the line is the label.")
    root = image_root(source, lists.folder, ("pic",))
    if urls is not None:
        splits, absent, note = _only_present(root, splits, _read_urls(urls, addresses), urls.name)
        checks.append(Check("listed images that are absent", absent))
        notes.append(note)
    value_names = [[str(value) for value in range(count)] for count in lists.num_values]
    return Annotations(
        attributes=lists.attributes,
        increments=attribute_increments(lists.attributes),
        splits={
            split: Again(labelled_rows, root, lists.attributes, value_names, items) for split, items in splits.items()
        },
        counts={split: len(items) for split, items in splits.items()},
        columns=table_features({"galleries": FURTHER_COLUMNS["galleries"]}),
        checks=checks,
        notes=notes,
        bad_rows=bad_rows,
        bad_lines={**lists.bad_lines, **bad_lines({"address": addresses})},
    )


def _read_urls(path: Path, counter: LineCounter) -> set[str]:
    """The paths that an address is known for."""
    known = set()
    for number, line in lines(path):
        counter.read += 1
        name, *address = _BEFORE_URL.split(line.strip(), maxsplit=1)
        if name and address:
            known.add(str(image_path(name)))
        else:
            counter.add("malformed", f"{path.name} line {number}")
    return known


def _only_present(
    root: Path, splits: Mapping[str, list[Labelled]], known: set[str], list_name: str
) -> tuple[dict[str, list[Labelled]], int, str]:
    """The rows whose image is there, the number of those that are not, and a note on them."""
    kept = {split: [item for item in items if image_file(root, item.image)] for split, items in splits.items()}
    total, there = (sum(map(len, part.values())) for part in (splits, kept))
    if not there:
        return dict(splits), total, f"None of {total} listed images is in --source; every row is kept, to be counted."
    present = {item.image for items in kept.values() for item in items}
    absent = [item.image for items in splits.values() for item in items if item.image not in present]
    addressed = sum(str(image_path(image)) in known for image in absent)
    note = (
        f"{total - there} of {total} listed images are not in --source and left out; {list_name} has an address for "
        f"{addressed} of them. The protocol asks for all of them: figures differ from the published ones by that."
    )
    return kept, total - there, note


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("darn", __doc__, source="folder with the files above")
    command.add_argument("--meta", type=Path, default=None, help="folder of meta.json and DARN/ (default: --source)")
    command.add_argument(
        "--urls", type=Path, default=None, help="list 'path<tab, blank or comma>address'; absent images are left out"
    )
    options = command.parse_args(arguments)
    annotations = read(options.source, options.meta, options.urls)
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
