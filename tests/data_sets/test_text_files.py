# SPDX-License-Identifier: Apache-2.0
"""Annotation files in the state in which they are found, and the images that they list."""

import gzip

import pytest

from data_scripts.formats.image_files import image_file
from data_scripts.formats.text_files import exists, find, lines, read_json, whole_number


def test_a_gzipped_copy_stands_for_a_file(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "folder").mkdir()
    assert exists(tmp_path, "a.txt") and exists(tmp_path, "folder") and not exists(tmp_path, "b.txt")
    assert list(lines(find(tmp_path, "a.txt"))) == [(1, "one")]
    with pytest.raises(FileNotFoundError, match="b.txt.gz"):
        find(tmp_path, "b.txt")


@pytest.mark.parametrize("read", [read_json, lambda path: list(lines(path))])
def test_a_damaged_gzip_file_is_told_by_name(tmp_path, read):
    content = bytearray(gzip.compress(b"[1, 2, 3]" * 99))
    content[10:14] = b"\xff" * 4  # no block of deflate begins so
    path = tmp_path / "a.json.gz"
    for data in (bytes(content), gzip.compress(b"[1]")[:-9], b"no gzip"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="a.json.gz"):
            read(path)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 5000, "{", "\ud800"])
def test_what_is_no_json_is_told_by_name(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match="a.json is not JSON"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 5000, None), ("", None), ("-1", None)]
    + [("1.0", None), (" 1", None), ("²", None), ("x", None)],
)
def test_whole_numbers_are_decimal_digits_of_a_sensible_length(text, number):
    assert whole_number(text) == number


def test_a_listed_image_is_found_with_either_separator_inside_its_folder_only(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").touch()
    (tmp_path / "a" / "c.jpg").touch()
    assert image_file(tmp_path, "a\\b.jpg") == image_file(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"
    (tmp_path / "a\\c.jpg").touch()  # on POSIX a backslash may be part of a name
    assert image_file(tmp_path, "a\\c.jpg") == tmp_path / "a\\c.jpg"
    assert image_file(tmp_path, "a/d.jpg") is None and image_file(tmp_path, "a") is None
    with pytest.raises(ValueError, match="leaves the source folder"):
        image_file(tmp_path, "../a.jpg")
