# SPDX-License-Identifier: Apache-2.0
"""DeepFashion split by the lists of ASEN: one sampled tag an image of val and test, all tags where they are known."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from data_scripts.formats.asen_meta import SPLIT_OF, Listed, MetaSplit, meta_checks
from data_scripts.formats.deepfashion_files import (
    IMAGE_TAGS,
    TAG_NAMES,
    TYPES,
    Box,
    ImageTags,
    OfficialFiles,
    Vocabulary,
)
from data_scripts.formats.deepfashion_rows import Item, Rows, image_root, tag_checks
from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.text_files import exists, find, lines
from modeling_mclfir.data.annotations import Annotations, Check, image_path
from modeling_mclfir.data.schema import SPLITS

# ASEN's lists: counted in them. Of the queries' relevant images, the papers count the "positives" only.
PUBLISHED = {
    "queries": 5_525,
    "candidates": 22_100,
    "images": 27_625,
    "test_queries": (1_008, 1_483, 1_097, 1_022, 915),
    "lonely_valid": 29,
    "lonely_test": 23,
}
POSITIVES, HIDDEN_POSITIVES = 805_021, 603_851

_LABEL_LINES = "image tag"


@dataclass
class Known:
    """What is known of the tags; where nothing is, `tags` has the sampled ones only."""

    vocabulary: Vocabulary
    tags: ImageTags = field(default_factory=dict)
    all_known: bool = True


def read_asen(
    files: OfficialFiles, meta: MetaSplit, protocol: str, boxes: Mapping[str, Box], notes: list[str]
) -> Annotations:
    """The annotations by ASEN's lists.

    Args:
        files: the official files, as far as they are there.
        meta: the lists.
        protocol: "one-tag" or "all-tags".
        boxes: image → its box, where there is one.
        notes: on the boxes.

    Raises:
        ValueError: a file has another form, a path leaves its folder, or all tags are asked for and not known.
    """
    if len(meta.attributes) != len(TYPES):
        raise ValueError(f"meta.json gives DeepFashion {len(meta.attributes)} attributes; expected {', '.join(TYPES)}")
    known = _known_tags(files, meta)
    if protocol == "all-tags" and not known.all_known:
        raise ValueError(
            f"--protocol all-tags needs all tags of the images: {IMAGE_TAGS} and {TAG_NAMES} in {files.source}/Anno, "
            f"or whole label_valid.txt and label_test.txt in {meta.folder}. Add them, or take --protocol one-tag."
        )
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for name, (split, galleries) in SPLIT_OF.items():
        if split != "train":
            splits[split] += ((item.image, (_tag(known, item),), galleries) for item in meta.lists[name])
    checks = [
        *tag_checks(known.vocabulary),
        *meta_checks(meta, PUBLISHED),
        *(_sampled_checks(splits, known) if known.all_known else ()),
        *files.checks,
    ]
    notes = [*_protocol_notes(protocol, known), *notes]
    splits["train"], train_note = _train(files, meta, known, splits)
    notes += [train_note, *several_tags_note(known.vocabulary, splits["train"])]
    root = image_root(files.source, meta.folder)
    rows = Rows(root, known.vocabulary, known.tags, protocol, boxes, columns=("galleries", "tags"))
    checks.append(Check("train images", len(splits["train"])))
    lines_read = {**meta.bad_lines, **bad_lines(files.line_counters)}
    return rows.annotations(splits, checks=checks, notes=notes, bad_rows=files.bad_rows, bad_lines=lines_read)


def _known_tags(files: OfficialFiles, meta: MetaSplit) -> Known:
    counter = files.line_counters[_LABEL_LINES]
    if not files.find(TAG_NAMES):
        labels, types = read_label_files(meta, counter)
        vocabulary = _vocabulary_of(meta, types)
        return Known(_numbered(meta), {}, False) if vocabulary is None else Known(vocabulary, labels)
    vocabulary = files.tag_names()
    counts = tuple(len(tags) for tags in vocabulary.by_type)
    if counts != meta.num_values:
        raise ValueError(
            f"{files.find(TAG_NAMES)} has {', '.join(map(str, counts))} tags of the types 1 to 5, meta.json says "
            f"{', '.join(map(str, meta.num_values))}; expected the file of Anno or Anno_coarse, unchanged"
        )
    vocabulary = Vocabulary(meta.attributes, vocabulary.types, vocabulary.names)
    labels, _ = read_label_files(meta, counter, vocabulary)
    if files.find(IMAGE_TAGS):
        labels |= files.image_tags(vocabulary)
    return Known(vocabulary, labels, bool(labels))


def _tag(known: Known, item: Listed) -> int:
    """The number of the tag: value ids are ranks within a type."""
    return known.vocabulary.by_type[item.attribute][item.value]


def _train(
    files: OfficialFiles, meta: MetaSplit, known: Known, splits: Mapping[str, list[Item]]
) -> tuple[list[Item], str]:
    """Items of the split train, and a note on where they are from; `splits` has the items of the others."""
    if "train" in meta.lists:
        listed: dict[str, list[int]] = {}
        for item in meta.lists["train"]:
            listed.setdefault(item.image, []).append(_tag(known, item))
        for image, tags in listed.items():
            known.tags.setdefault(image, array("I", tags))
        return [(image, tags, ()) for image, tags in listed.items()], "The split train is that of label_train.txt."
    absent = "filenames_train.txt or label_train.txt of ASEN's lists is absent"
    if not files.find(IMAGE_TAGS):
        return [], f"{absent}: the split train is empty. With {IMAGE_TAGS} it would be made of all other images."
    taken = {image for items in splits.values() for image, *_ in items}
    rest = {str(image_path(image)): image for image in known.tags if image not in taken}
    items = [(image, known.tags[image], ()) for image in rest.values() if known.tags[image]]
    return items, (
        f"{absent}: the split train is made of the images of {IMAGE_TAGS} that are in no list of valid or test. "
        f"{len(rest) - len(items)} images without any tag are left out. "
        "The papers' own split train may differ."
    )


def several_tags_note(vocabulary: Vocabulary, train: Sequence[Item]) -> list[str]:
    """What of the tags of train is no label, where there is something."""
    types = [[vocabulary.types[tag] for tag in tags] for _, tags, _ in train]
    images = sum(len(set(kinds)) < len(kinds) for kinds in types)
    lost = sum(len(kinds) - len(set(kinds)) for kinds in types)
    if not images:
        return []
    return [
        f"In train {images} images have several tags of one type: one of them, drawn by a hash of path and type, is "
        f"the label, {lost} others are in the column tags only."
    ]


def _sampled_checks(splits: Mapping[str, list[Item]], known: Known) -> list[Check]:
    """How far the sampled tags agree with all tags, and what that costs: see the note on the protocol."""
    parts = {"val": splits["val"], "test": splits["query"] + splits["gallery"]}
    checks = []
    for part, items in parts.items():
        among = sum(sampled in known.tags.get(image, ()) for image, (sampled,), _ in items)
        checks.append(Check(f"{part} images whose sampled tag is among their tags", among, PUBLISHED["images"]))
    types = known.vocabulary.types
    positives = Counter(sampled for _, (sampled,), _ in splits["gallery"])
    # A query is compared with the candidates that are labelled for its attribute.
    carriers = Counter(
        tag
        for image, (sampled,), _ in splits["gallery"]
        for tag in {*known.tags.get(image, ()), sampled}
        if types[tag] == types[sampled]
    )
    counted = sum(positives[sampled] for _, (sampled,), _ in splits["query"])
    hidden = sum(carriers[sampled] for _, (sampled,), _ in splits["query"]) - counted
    return checks + [
        Check("test candidates with the query's tag: counted as relevant", counted, POSITIVES),
        Check("test candidates with the query's tag: counted as not relevant", hidden, HIDDEN_POSITIVES),
    ]


def _protocol_notes(protocol: str, known: Known) -> list[str]:
    notes = [
        "Split: ASEN's lists; val and test have one sampled tag an image. Queries of val have no gallery, its other "
        "images the gallery val; the images of gallery have the gallery test."
    ]
    if protocol == "one-tag":
        notes.append(
            "Protocol one-tag, as in the papers: in val and test only the sampled tag is a label. Many candidates "
            "have the query's tag too and count as not relevant; the counts of this card say how many. An image of "
            "train has a label for each type that it has a tag of: ASEN's code learns from every pair of a line of "
            "label_train.txt."
        )
    else:
        notes.append(
            "Protocol all-tags: an image has a label for each type that it has a tag of: the listed one for its "
            "type, for the others one drawn by a hash of path and type. An image is relevant where its column tags "
            "holds the query's."
        )
    if not known.all_known:
        notes.append("All tags of the images are not known: the column tags has the listed ones only.")
    return notes


def read_label_files(
    meta: MetaSplit, counter: LineCounter, vocabulary: Vocabulary | None = None
) -> tuple[ImageTags, dict[int, int]]:
    """All tags of the images of valid and test, from label_valid.txt and label_test.txt, where both are there.

    A line is an image's number and pairs of a type, from 1, and the number of a tag.

    Args:
        meta: the lists beside them.
        counter: counts the tags, lines that are "malformed" or of an "unknown_image", and tags that do not exist or
            have another type ("unknown_value").
        vocabulary: the tags, where they are known.

    Returns:
        image → its tags, and tag → index of its type.
    """
    parts = ("valid", "test")
    tags: ImageTags = {}
    types = dict(enumerate(vocabulary.types)) if vocabulary else {}
    if not all(exists(meta.folder, f"label_{part}.txt") for part in parts):
        return {}, {}
    for part in parts:
        path = find(meta.folder, f"label_{part}.txt")
        images = {number - 1: line.strip() for number, line in lines(find(meta.folder, f"filenames_{part}.txt"))}
        for number, line in lines(path):
            where = f"{path.name} line {number}"
            image, pairs = _label_line(line)
            counter.read += max(1, len(pairs))
            if image not in images:
                counter.add("malformed" if image is None else "unknown_image", where)
                continue
            found = set(tags.get(images[image], ()))
            for kind, tag in pairs:
                known = 1 <= kind <= len(meta.attributes) and 0 <= tag < sum(meta.num_values)
                if known and types.setdefault(tag, kind - 1) == kind - 1:
                    found.add(tag)
                else:
                    counter.add("unknown_value", f"{where}: type {kind}, tag {tag}")
            tags[images[image]] = array("I", sorted(found))
    return tags, types


def _label_line(line: str) -> tuple[int | None, list[tuple[int, int]]]:
    """The number of the image and pairs of type and tag; (None, []) for a line of another form."""
    try:
        image, *rest = (int(word) for word in line.split())
    except ValueError:
        return None, []
    return (image, list(zip(rest[::2], rest[1::2], strict=True))) if rest and len(rest) % 2 == 0 else (None, [])


def _vocabulary_of(meta: MetaSplit, types: Mapping[int, int]) -> Vocabulary | None:
    """The tags as ASEN's label files have them, named by rank; None where they do not name every tag of every type."""
    counts = Counter(types.values())
    if tuple(counts[i] for i in range(len(meta.num_values))) != meta.num_values:
        return None
    return _ranked(meta, [types[tag] for tag in range(sum(meta.num_values))])


def _numbered(meta: MetaSplit) -> Vocabulary:
    """Tags named by rank, where nothing says which number each one has: those of the first type come first."""
    return _ranked(meta, [i for i, count in enumerate(meta.num_values) for _ in range(count)])


def _ranked(meta: MetaSplit, types: Sequence[int]) -> Vocabulary:
    ranks = [count() for _ in meta.attributes]
    return Vocabulary(meta.attributes, tuple(types), tuple(str(next(ranks[i])) for i in types))
