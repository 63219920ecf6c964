# SPDX-License-Identifier: Apache-2.0
"""A tiny CIRR, made up, in the form of the real files: groups of six images, 24 of train, 18 of val, 54 of test1."""

import gzip
import json
from pathlib import Path

from raw_sets.fashioniq import draw

GROUPS = {"train": 4, "val": 3, "test1": 9}
FIRST_PAIR = {"train": 0, "val": 12060, "test1": 27090}
_COLOURS = ("crimson", "navy", "olive", "orange")


def group(part: str, number: int) -> list[str]:
    """The six images of a group, in the order of its members."""
    stem = "dev" if part == "val" else part
    return [f"{stem}-{number}-{i // 2}-img{i % 2}" for i in (3, 0, 5, 1, 4, 2)]


def pairs(part: str) -> list[dict]:
    """The content of a caption file: two pairs a group."""
    result = []
    for number in range(GROUPS[part]):
        members = group(part, number)
        for reference, target in ((0, 3), (4, 2)):
            item = {"pairid": FIRST_PAIR[part] + len(result), "reference": members[reference]}
            ranks = {"reference_rank": reference}
            if part != "test1":
                item["target_hard"] = members[target]
                item["target_soft"] = {members[target]: 1.0, **({members[1]: 0.5} if reference == 4 else {})}
                ranks["target_rank"] = target
            item["caption"] = f" the same café, seen from {number} metres " if result else " "
            item["img_set"] = {"id": number, "members": members, **ranks}
            result.append(item)
    return result


def make(
    folder: Path, *, place: str = "", images: str | None = "img_raw", train: bool = True, faults: bool = False
) -> Path:
    """Writes the set.

    The captions of val have a byte order mark and Windows line ends, those of test1 are gzipped, nothing has a last
    newline.

    Args:
        place: folder inside `folder` for captions and lists.
        images: folder inside `folder` for train/, dev/ and test1/; None leaves them out.
        train: whether there are captions of train.
        faults: adds entries that a reader has to count.
    """
    for part in GROUPS:
        listed = _paths(part)
        if images is not None:
            for number, path in enumerate(listed.values()):
                draw(folder / images / path, _COLOURS[number % 4], number)
        found = pairs(part)
        if faults and part == "val":
            listed |= {"dev-0-0-img7": 7}
            found[1:1] = _faulty(found[0])
        _write(folder / place / f"image_splits/split.rc2.{part}.json", listed)
        if part != "train" or train:
            _write(
                folder / place / f"captions/cap.rc2.{part}.json", found, windows=part == "val", pack=part == "test1"
            )
    _write(folder / place / "captions_ext/cap.ext.rc2.val.json", [{"pairid": 12060, "caption_extend": {"0": "more"}}])
    return folder


def _paths(part: str) -> dict[str, str]:
    place = {"train": "train/34", "val": "dev", "test1": "test1"}[part]
    return {name: f"./{place}/{name}.png" for number in range(GROUPS[part]) for name in group(part, number)}


def _faulty(pair: dict) -> list:
    """Five copies with an id of their own that are malformed, one with an unknown image, one with a known id."""
    members = pair["img_set"]["members"]
    changes = [
        {"target_hard": None},
        {"caption": None},
        {"img_set": {"id": 0, "members": members[:5]}},
        {"img_set": {"id": 0, "members": [*members[1:], "dev-1-0-img0"]}},
        {"pairid": "x"},
        {"img_set": {"id": 0, "members": [*members[:5], "dev-9-9-img9"]}},
        {"pairid": pair["pairid"], "caption": "said again"},
    ]
    return [{**pair, "pairid": 1 + number, **change} for number, change in enumerate(changes)]


def _write(path: Path, content: list | dict, *, windows: bool = False, pack: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if windows:
        text = "\ufeff" + text.replace("\n", "\r\n")
    if pack:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
