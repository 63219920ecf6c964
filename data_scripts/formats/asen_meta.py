# SPDX-License-Identifier: Apache-2.0
"""The lists of ASEN (Ma et al., AAAI 2020), which all later papers use for FashionAI, DARN and DeepFashion.

meta.json names the attributes of each data set and their numbers of values. A data set's folder holds
filenames_{train,valid,test}.txt (line k, from 0, is the path of image k), label_train.txt ("image attribute value" and
further pairs of attribute and value), and {query,candidate}_{valid,test}.txt ("image attribute value").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_scripts.formats.text_files import exists, find, lines, read_json
from modeling_mclfir.data.annotations import BadLines, Check, image_path
from modeling_mclfir.data.images import BadRows

# List → our split and the galleries its images belong to; an image of "val" without any is a query.
SPLIT_OF = {
    "train": ("train", ()),
    "query_valid": ("val", ()),
    "candidate_valid": ("val", ("val",)),
    "query_test": ("query", ()),
    "candidate_test": ("gallery", ("test",)),
}
_STEMS = ("query_valid", "candidate_valid", "query_test", "candidate_test")
_REQUIRED = (*_STEMS, "filenames_valid", "filenames_test")


@dataclass(frozen=True, slots=True)
class Listed:
    """One label of a list, joined with the path of its image.

    Attributes:
        image: path as it is listed.
        attribute: condition id, an index into `MetaSplit.attributes`.
        value: value id within the attribute.
    """

    image: str
    attribute: int
    value: int


@dataclass(frozen=True)
class MetaSplit:
    """The lists of one data set.

    Attributes:
        attributes: names, in the order of the condition ids.
        num_values: values of each.
        lists: "train" (absent where its files are), "query_valid", "candidate_valid", "query_test", "candidate_test"
            → labels in the order of the file.
        folder: where the lists are.
        num_images: "valid", "test" and, where it is there, "train" → lines of the file of names.
        train_pairs: labels of label_train.txt by attribute, also counted where the names are absent; () without it.
        bad_lines: labels of label_train.txt that cannot be used.
        notes: what is absent, in words.
    """

    attributes: tuple[str, ...]
    num_values: tuple[int, ...]
    lists: dict[str, list[Listed]]
    folder: Path
    num_images: dict[str, int] = field(default_factory=dict)
    train_pairs: tuple[int, ...] = ()
    bad_lines: Mapping[str, BadLines] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def second_values(self) -> int:
        """Labels of train for an attribute that the same image has another value of."""
        train = self.lists.get("train", ())
        return len(train) - len({(item.image, item.attribute) for item in train})


def find_lists(folder: Path, dataset: str) -> Path | None:
    """The folder of the lists of `dataset`: `folder/dataset`, `folder/data/dataset` or `folder` itself; None for none.

    One of the six files that every set has is enough to be taken for it.
    """
    for place in (folder / dataset, folder / "data" / dataset, folder):
        if any(exists(place, f"{stem}.txt") for stem in _REQUIRED):
            return place
    return None


def read_meta(folder: Path, dataset: str, bad_rows: BadRows) -> MetaSplit:
    """Reads the lists of one data set.

    Ids of images begin at 0 in each of train, valid and test. Trailing tabs, CRLF and gzipped files are taken.

    Args:
        folder: has meta.json and a folder named `dataset` with the lists, or a folder data/ with both; the folder of
            the lists itself will do as well, with meta.json in it or beside it.
        dataset: "FashionAI", "DARN" or "DeepFashion".
        bad_rows: counts lines that are "malformed" (wrong number of words, not whole numbers), labels with an
            "unknown_image", "unknown_attribute" or "unknown_value" (an id that is out of range), and labels that stand
            in the list before ("duplicate"). Those of label_train.txt are counted in `MetaSplit.bad_lines` instead:
            a line may have several labels, an image several lines.

    Raises:
        FileNotFoundError: the message names all files that are missing.
        ValueError: meta.json is of another form or does not have `dataset`; an image path leaves its folder.
    """
    place = find_lists(folder, dataset) or folder / dataset
    meta = next((path for path in (place, place.parent) if exists(path, "meta.json")), None)
    missing = [] if meta else ["meta.json"]
    missing += [f"{dataset}/{stem}.txt" for stem in _REQUIRED if not exists(place, f"{stem}.txt")]
    if missing:
        raise FileNotFoundError(
            f"{folder} has not all of ASEN's lists of {dataset}; missing: {', '.join(missing)}. Expected meta.json "
            f"and a folder {dataset} (data/ of github.com/Maryeon/asen); data_scripts/README.md says more."
        )
    attributes, num_values = _read_attributes(find(meta, "meta.json"), dataset)
    names = {part: _read_names(find(place, f"filenames_{part}.txt")) for part in ("valid", "test")}
    reader = _Reader(num_values, bad_rows)
    lists = {stem: list(reader.labels(find(place, f"{stem}.txt"), names[stem.split("_")[1]])) for stem in _STEMS}
    num_images = {part: len(paths) for part, paths in names.items()}

    absent = [name for name in ("filenames_train.txt", "label_train.txt") if not exists(place, name)]
    notes, train_pairs, bad_lines = (), (), {}
    if absent:
        notes = (f"ASEN's lists of {dataset} come without {' and '.join(absent)}: they name no image of train.",)
    if "label_train.txt" not in absent:
        paths = None if absent else _read_names(find(place, "filenames_train.txt"))
        counter = BadRows()
        train = list(_Reader(num_values, counter).labels(find(place, "label_train.txt"), paths, several=True))
        bad_lines = {"train label": BadLines(counter, len(train) + counter.total)}
        counted = Counter(item.attribute for item in train)
        train_pairs = tuple(counted[i] for i in range(len(attributes)))
        if paths is not None:
            lists["train"], num_images["train"] = train, len(paths)
    return MetaSplit(attributes, num_values, lists, place, num_images, train_pairs, bad_lines, notes)


def meta_checks(meta: MetaSplit, published: Mapping[str, Any]) -> list[Check]:
    """What was counted in the lists, beside what was published.

    Args:
        meta: the lists.
        published: any of "queries", "candidates", "images" (of valid and of test, one number), "train", "train_pairs"
            and "test_queries" (a number for each attribute), "lonely_valid", "lonely_test" (queries whose value no
            candidate has).
    """
    checks = []
    for part, split in (("valid", "val"), ("test", "test")):
        queries, candidates = meta.lists[f"query_{part}"], meta.lists[f"candidate_{part}"]
        there = {(item.attribute, item.value) for item in candidates}
        lonely = sum((item.attribute, item.value) not in there for item in queries)
        checks += [
            Check(f"{split} images listed", meta.num_images[part], published.get("images")),
            Check(f"{split} queries", len(queries), published.get("queries")),
            Check(f"{split} candidates", len(candidates), published.get("candidates")),
            Check(f"{split} queries whose value no candidate has", lonely, published.get(f"lonely_{part}")),
        ]
    counted = Counter(item.attribute for item in meta.lists["query_test"])
    expected = published.get("test_queries", ())
    checks += _by_attribute(
        "test queries", meta.attributes, [counted[i] for i in range(len(meta.attributes))], expected
    )
    if meta.train_pairs:
        expected = published.get("train_pairs", ())
        checks.append(Check("train labels", sum(meta.train_pairs), published.get("train")))
        checks += _by_attribute("train labels", meta.attributes, meta.train_pairs, expected)
        checks.append(Check("train labels beside another one of image and attribute", meta.second_values))
    return checks


def _read_attributes(path: Path, dataset: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    content = read_json(path)
    if not isinstance(content, dict) or dataset not in content:
        known = ", ".join(content) if isinstance(content, dict) else "nothing of that form"
        raise ValueError(f"{path} has no data set {dataset!r}; it has: {known}")
    entry = content[dataset]
    names = entry.get("ATTRIBUTES") if isinstance(entry, dict) else None
    sizes = entry.get("ATTRIBUTES_NUM") if isinstance(entry, dict) else None
    if not isinstance(names, list) or not isinstance(sizes, dict) or not all(_is_count(sizes, n) for n in names):
        raise ValueError(
            f"{path}, {dataset}: expected ATTRIBUTES, a list of names, and ATTRIBUTES_NUM, name → number of values"
        )
    return tuple(names), tuple(sizes[name] for name in names)


def _is_count(sizes: dict, name: Any) -> bool:
    return isinstance(name, str) and isinstance(sizes.get(name), int) and sizes[name] > 0


def _read_names(path: Path) -> dict[int, str]:
    """Image id → path; a blank line keeps its number, so that those after it are not shifted."""
    names = {}
    for number, line in lines(path):
        image_path(line.strip())
        names[number - 1] = line.strip()
    return names


@dataclass(frozen=True)
class _Reader:
    """Reads lists of labels and counts what is wrong in them."""

    num_values: tuple[int, ...]
    bad_rows: BadRows

    def labels(self, path: Path, names: Mapping[int, str] | None, *, several: bool = False) -> Iterator[Listed]:
        """Yields the labels; with `names` None, those of images whose paths are not known, as ""."""
        seen: set[tuple[int, int, int]] = set()
        for number, line in lines(path):
            where = f"{path.name} line {number}"
            numbers = _whole_numbers(line)
            if len(numbers) < 3 or len(numbers) % 2 == 0 or (len(numbers) > 3 and not several):
                self.bad_rows.add("malformed", where)
                continue
            image = numbers[0]
            if names is not None and image not in names:
                self.bad_rows.add("unknown_image", f"{where}: {image}")
                continue
            for attribute, value in zip(numbers[1::2], numbers[2::2], strict=True):
                cause = self._cause(attribute, value)
                if cause is None and (image, attribute, value) in seen:
                    cause = "duplicate"
                if cause:
                    self.bad_rows.add(cause, f"{where}: attribute {attribute}, value {value}")
                    continue
                seen.add((image, attribute, value))
                yield Listed(names[image] if names is not None else "", attribute, value)

    def _cause(self, attribute: int, value: int) -> str | None:
        if not 0 <= attribute < len(self.num_values):
            return "unknown_attribute"
        return None if 0 <= value < self.num_values[attribute] else "unknown_value"


def _whole_numbers(line: str) -> list[int]:
    """The numbers of a line; none where one of the words is something else."""
    try:
        return [int(word) for word in line.split()]
    except ValueError:
        return []


def _by_attribute(
    what: str, attributes: Sequence[str], counted: Sequence[int], expected: Sequence[int]
) -> list[Check]:
    published = list(expected) or [None] * len(attributes)
    return [Check(f"{what} {n}", c, p) for n, c, p in zip(attributes, counted, published, strict=True)]
