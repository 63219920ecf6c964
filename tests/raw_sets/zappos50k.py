# SPDX-License-Identifier: Apache-2.0
"""A tiny UT-Zap50K with the triplets of CSN, made up, in the true format."""

from pathlib import Path

from PIL import Image, ImageDraw

CLASSES = (("Shoes", "Oxfords"), ("Shoes", "Clogs and Mules"), ("Boots", "Ankle"))
GENDERS = ("Men", "Women")
CLOSURES = ("Lace up", "Slip-On")
HEELS = ("Flat", "1in - 1 3/4in")
# The dot at the end of a folder's name is %2E on the disk, as unzip leaves it.
BRANDS = ("Hide & Seam", "Søndag", "A. Nonimo.", "Plain")
# Images from … to …; those behind the last are in no list.
PARTS = {"train": (0, 24), "val": (24, 48), "test": (48, 96)}
NUM_IMAGES = 100
SEVERAL, NO_GENDER, NO_META = 5, 6, 7  # images whose line in meta-data.csv is out of the ordinary
BAD_TRIPLETS = ("1 2", "", "one two three", "3 3 4", "0 1 9999", "-1 2 3")


def values(i: int) -> dict[str, str]:
    """What image `i` shows."""
    return {
        "class": CLASSES[i % 3][0],
        "closure": CLOSURES[i // 6 % 2],
        "gender": GENDERS[i // 3 % 2],
        "heel": HEELS[i // 12 % 2],
    }


def image_id(i: int) -> str:
    """The path of image `i`, without any prefix."""
    category, subcategory = CLASSES[i % 3]
    return f"{category}/{subcategory}/{BRANDS[i % 4]}/{7000 + i // 2}.{10 + i % 2}.jpg"


def make(folder: Path, *, lists: bool = True, meta: bool = True, images: bool = True, bad_lines: bool = False) -> Path:
    """Writes the set; `bad_lines` adds lines that a reader has to count and leave out."""
    folder.mkdir(parents=True, exist_ok=True)
    if images:
        for i in range(NUM_IMAGES):
            path = folder / "ut-zap50k-images" / image_id(i).replace("./", "%2E/")
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(i).save(path)
    if lists:
        places = _write_filenames(folder / "filenames.json")
        (folder / "tripletlists").mkdir()
        for condition in ("class", "closure", "gender", "heel"):
            for part in PARTS:
                rows = [" ".join(str(places[i]) for i in triplet) for triplet in triplets(condition, part)]
                if bad_lines and (condition, part) == ("class", "train"):
                    rows[2:2] = BAD_TRIPLETS
                # Windows line ends in some, trailing tabs in others, never a last newline.
                joint = {"class": "\r\n", "closure": "\t\n"}.get(condition, "\n")
                path = folder / "tripletlists" / f"{condition}_tripletlist_{part}.txt"
                path.write_bytes(joint.join(rows).encode())
    if meta:
        _write_meta(folder / "ut-zap50k-data" / "meta-data.csv", bad_lines)
    return folder


def triplets(condition: str, part: str) -> list[tuple[int, int, int]]:
    """Anchor, far, close, as images: one for each image of the part."""
    first, end = PARTS[part]
    inside = range(first, end)
    result = []
    for anchor in inside:
        others = [*range(anchor + 1, end), *range(first, anchor)]
        same = [values(i)[condition] == values(anchor)[condition] for i in others]
        result.append((anchor, others[same.index(False)], others[same.index(True)]))
    return result


def _write_filenames(path: Path) -> list[int]:
    """Writes the list with a byte order mark, Windows line ends, a blank line, an image named twice, and no last
    newline; returns the line of each image, from 0."""
    listed, places = [], []
    for i in range(NUM_IMAGES):
        if i == 10:
            listed.append("")
        if i == 20:
            listed.append(image_id(3))
            places[3] = len(listed) - 1
        places.append(len(listed))
        prefix = {1: "./", 2: "ut-zap50k-images/", 4: "./ut-zap50k-images/"}.get(i, "")
        listed.append(prefix + image_id(i) + ("\t" if i == 8 else ""))
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(listed).encode())
    return places


def _write_meta(path: Path, bad_lines: bool) -> None:
    lines = ["CID,Category,SubCategory,HeelHeight,Insole,Closure,Gender,Material,ToeStyle"]
    for i in range(NUM_IMAGES):
        shown = values(i)
        closure = "Slip-On;Zipper" if i == SEVERAL else shown["closure"]
        gender = "" if i == NO_GENDER else shown["gender"]
        cid = f"{7000 + i // 2}-{10 + i % 2}"
        if i != NO_META:
            category, subcategory = CLASSES[i % 3]
            lines.append(f'{cid},{category},{subcategory},{shown["heel"]},,{closure},{gender},"Leather;Suède",')
    if bad_lines:
        lines += ["7000-10,Shoes,Oxfords,Flat,,Buckle,Boys,,", "9999-1,Shoes"]
    path.parent.mkdir()
    path.write_text("\n".join(lines), encoding="utf-8")


def _draw(i: int) -> Image.Image:
    """Labels show: (sub)category as colour, gender as a bar, closure as a square, heel as a line at the foot."""
    shown = values(i)
    image = Image.new("RGB", (24, 24), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((2, 4, 21, 19), fill=("red", "green", "blue")[i % 3])
    draw.point((i % 24, 22), fill="black")  # no two images are alike
    if shown["gender"] == GENDERS[1]:
        draw.rectangle((2, 4, 21, 8), fill="yellow")
    if shown["closure"] == CLOSURES[1]:
        draw.rectangle((9, 10, 14, 15), fill="white")
    if shown["heel"] == HEELS[1]:
        draw.rectangle((2, 17, 21, 19), fill="black")
    return image
