# SPDX-License-Identifier: Apache-2.0
"""Captions that differ in one word, and the pairs drawn from them."""

import time

import pytest

from data_scripts.formats.one_word_differences import draw_pairs, first_difference, parents


def test_a_parent_lacks_one_whole_word():
    assert parents("red tailored dress") == {
        ("tailored", "dress"): "red",
        ("red", "dress"): "tailored",
        ("red", "tailored"): "dress",
    }
    # the string "red" is in "tailored" and must stay there; of a repeated word, one goes
    assert parents("black black dress") == {("black", "dress"): "black", ("black", "black"): "dress"}
    assert parents("dress") == {(): "dress"}


def changes(captions, **settings):
    names = [f"image {i}" for i in range(len(captions))]
    pairs = draw_pairs(names, captions, **{"per_image": 8, "seed": 0, **settings})
    return {(captions[pair.reference], pair.text, captions[pair.target]) for pair in pairs}


def test_pairs_of_captions_with_a_repeated_word():
    assert changes(["black black dress", "black red dress"]) == {
        ("black black dress", "replace black with red", "black red dress"),
        ("black red dress", "replace red with black", "black black dress"),
    }


def test_no_pair_by_part_of_a_word_by_order_or_by_two_words():
    assert changes(["red tailored dress", "blue tailo dress"]) == set()
    assert changes(["red dress", "dress red", "red  dress"]) == set()
    assert changes(["red dress", "blue skirt"]) == set()
    assert changes(["", None, "   "]) == set()


def test_captions_of_one_word_and_of_another_place_of_the_word_pair():
    assert {text for _, text, _ in changes(["dress", "skirt"])} == {
        "replace dress with skirt",
        "replace skirt with dress",
    }
    assert ("red dress", "replace red with blue", "dress blue") in changes(["red dress", "dress blue"])


def test_draws_do_not_depend_on_the_order_of_the_images():
    captions = [f"{colour} {kind}" for colour in ("red", "blue", "green") for kind in ("dress", "skirt", "top")]
    names = [f"image {i}" for i in range(9)]

    def named(order):
        pairs = draw_pairs([names[i] for i in order], [captions[i] for i in order], per_image=2, seed=3)
        return {(names[order[pair.reference]], names[order[pair.target]], pair.text) for pair in pairs}

    assert named(range(9)) == named([5, 3, 8, 0, 1, 7, 2, 6, 4])


def test_every_other_caption_is_drawn_about_equally_often():
    captions = ["red dress"] * 600 + ["blue dress", "green dress", "red skirt"]
    pairs = draw_pairs([str(i) for i in range(603)], captions, per_image=1, seed=0)
    targets = [captions[pair.target] for pair in pairs if captions[pair.reference] == "red dress"]
    assert all(150 < targets.count(caption) < 250 for caption in captions[600:])


def test_pairs_of_many_captions_of_one_parent_take_linear_time():
    captions = [f"w{i} dress" for i in range(20_000)]
    start = time.perf_counter()
    pairs = draw_pairs([str(i) for i in range(20_000)], captions, per_image=1, seed=0)
    assert len(pairs) == 20_000
    assert time.perf_counter() - start < 10  # all pairs of captions would be 400 million


@pytest.mark.parametrize(
    ("reference", "target", "expected"),
    [
        ("red long dress", "blue long dress", ("red", "blue", True)),
        ("red long dress", "blue short dress", ("red", "blue", True)),
        ("black black dress", "black red dress", ("dress", "red", False)),
        ("red dress", "red dress", ("dress", "dress", False)),
    ],
)
def test_the_text_of_a_given_query_follows_tirg(reference, target, expected):
    assert first_difference(reference, target) == expected
