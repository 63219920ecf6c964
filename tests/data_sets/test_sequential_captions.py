# SPDX-License-Identifier: Apache-2.0
import json
import tracemalloc

import pytest

from data_scripts.formats.sequential_captions import dict_items, dominant, list_items, read_groups
from data_scripts.formats.stable_hash import share, split_by_shares
from data_scripts.secoco import SUPERCATEGORIES


def test_shares_of_a_split_by_hash_hold_and_never_change():
    places = [split_by_shares(str(number), {"val": 1, "gallery": 2}) for number in range(6000)]
    assert places.count("val") == pytest.approx(2000, rel=0.1)
    # By `printf 139 | b2sum -l 64`, modulo 3.
    found = [split_by_shares(image_id, {"val": 1, "gallery": 2}) for image_id in ("139", "285", "632", "724")]
    assert found == ["gallery", "val", "val", "gallery"]


def test_shares_are_even_and_never_reach_one(monkeypatch):
    shares = [share(f"name {number}") for number in range(6000)]
    assert all(0 <= value < 1 for value in shares)
    assert sum(value < 0.25 for value in shares) == pytest.approx(1500, rel=0.1)
    assert share("name 7") == shares[7]
    monkeypatch.setattr("data_scripts.formats.stable_hash.hash_number", lambda key: 2**64 - 1)
    assert share("the largest") < 1


def test_largest_group_wins_by_its_sum_and_the_first_of_equals():
    groups = {"one": ("a", "b"), "two": ("c",)}
    assert dominant({"a": 2, "b": 3, "c": 4}, groups) == ("one", "b")
    assert dominant({"a": 2, "b": 2, "c": 4}, groups) == ("one", "a")
    assert dominant({"c": 0, "z": 9}, groups) == ("two", "c")
    assert dominant({"z": 9}, groups) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ["vehicle"], "b": ["vehicle"]}', "listed twice: vehicle"),
        ('{"a": ["dragon"]}', "unknown super-categories dragon; known: person"),
        ('{"a": "vehicle"}', "list of super-categories"),
        ("[1]", "list of super-categories"),
        ('{"a b": ["vehicle"]}', "letters, digits"),
        ("{}", "non-empty"),
        ("{", "not JSON"),
    ],
)
def test_wrong_groups_are_refused(tmp_path, content, message):
    path = tmp_path / "groups.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_groups(path, SUPERCATEGORIES)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 10_000])
def test_lists_of_an_object_are_the_same_for_every_chunk(tmp_path, chunk):
    content = {
        "info": {"a": [1, {"b": "]}"}], "ü": None},
        "none": [],
        "skipped": [[1, 2], {"x": "…"}],
        "numbers": [1234567890, -1.5e-7, 0, True, None],
        "count": 42,
        "texts": ['quote " and \\', "café\n\ud83d\ude00", "", {"deep": [[[]]]}],
    }
    wanted = [(key, index, item) for key in ("numbers", "texts") for index, item in enumerate(content[key])]
    path = tmp_path / "a.json"
    for indent in (None, 3):
        for ascii_only in (True, False):
            text = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
            if not ascii_only:
                text = text.replace("\ud83d\ude00".encode("utf-8", "surrogatepass"), "😀".encode())
            path.write_bytes(text.replace(b"\n", b"\r\n") + b"\r\n")
            found = [
                (key, index, item if item != "café\n😀" else "café\n\ud83d\ude00")
                for key, index, item in dict_items(path, ("texts", "numbers"), chunk=chunk)
            ]
            assert found == wanted


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "instances.json"
    item = {"id": 1, "segmentation": [[float(number) for number in range(50)]], "area": 1.5}
    with open(path, "w") as file:
        file.write('{"images": [], "annotations": [' + ", ".join([json.dumps(item)] * 8000) + "]}")
    assert path.stat().st_size > 2_400_000
    tracemalloc.start()
    count = sum(1 for _ in dict_items(path, ("annotations",), chunk=1 << 14))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8000
    assert peak < 400_000


ITEMS = [{"id": 1, "text": 'a "] , [" \\ é漢😀'}, [], {}, 123456, -0.25, "1e5", [[1], {"b": None}], True, 7]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 16, 1000])
@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_items_of_a_list_are_the_same_for_every_chunk(tmp_path, chunk, indent, newline):
    path = tmp_path / "list.json"
    text = json.dumps(ITEMS, ensure_ascii=False, indent=indent).replace("\n", newline)
    for around in ("{}", "{}\r\n\t ", "\ufeff \n{}"):
        path.write_bytes(around.replace("{}", text).encode())
        assert list(list_items(path, chunk=chunk)) == ITEMS
    path.write_text(" [ ] ")
    assert list(list_items(path, chunk=chunk)) == []


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_list_cut_anywhere_or_followed_by_text_is_an_error_that_names_the_file(tmp_path, chunk):
    path = tmp_path / "list.json"
    whole = json.dumps(ITEMS, ensure_ascii=False).encode()
    for broken in (*(whole[:length] for length in range(len(whole))), whole + b"]", whole + b" 1"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="list.json is not the expected JSON"):
            list(list_items(path, chunk=chunk))


@pytest.mark.parametrize("text", ['{"a": []}', "7", "[1, 2,]", "[1 2]", "[1: 2]", "[nul]", "[" * 100_000, "<html>"])
def test_what_is_no_list_is_an_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="list.json is not the expected JSON"):
        list(list_items(path))


def test_items_before_the_end_of_a_cut_list_are_read(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"a": 1}, {"a": 2}, {"a"')
    items = list_items(path, chunk=4)
    assert [next(items), next(items)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="at character 21"):
        next(items)
