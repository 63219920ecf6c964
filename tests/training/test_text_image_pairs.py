# SPDX-License-Identifier: Apache-2.0
"""Numbers of test pairs and what a random order of them scores; which captions and photos are shown, and how."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mclfir.metrics import caption_codes, cross_modal_recall, first_match_rank
from modeling_mclfir.training.text_image_examples import pair_examples
from modeling_mclfir.training.text_image_pages import lines_of, plot_pair_examples
from modeling_mclfir.training.text_image_pairs import (
    TestPairs,
    count_captioned,
    describe_tests,
    random_figures,
    read_test_pairs,
)
from modeling_mclfir.training.text_image_plots import draw_text_image_plots
from modeling_mclfir.training.text_image_scores import TextImageScores

TestPairs.__test__ = False  # to pytest: it is no class of tests
GREEN = (0, 158, 115)
CAPTIONS = [["red shirt"], ["blue shirt", "a blue one"], ["red  shirt"], ["green dress"], ["belt"], ["red shirt", "x"]]


class Table:
    """As much of an `ImageTable` as these functions read: photo n is of the colour (n, n, n)."""

    def __init__(self, captions, first: int = 0):
        self.all_captions, self.first = captions, first

    def __len__(self):
        return len(self.all_captions)

    def image(self, row: int) -> Image.Image:
        return Image.new("RGB", (30, 40), (self.first + row,) * 3)


def make_test(captions, tables_at=()) -> tuple[TestPairs, list[Table]]:
    """Pairs of the captions of some images, which lie in tables cut at `tables_at`."""
    parts = np.split(np.arange(len(captions)), tables_at)
    tables = [Table([captions[row] for row in part], int(part[0])) for part in parts]
    texts = [text for one in captions for text in one]
    owners = torch.from_numpy(np.repeat(np.arange(len(captions)), [len(one) for one in captions]))
    return TestPairs([np.arange(len(part)) for part in parts], texts, owners, caption_codes(texts)), tables


def shuffled_recall(test: TestPairs, rounds: int = 1500) -> dict[str, float]:
    """Mean recall of random orders."""
    generator, total = torch.Generator().manual_seed(0), None
    for _ in range(rounds):
        scores = torch.rand(len(test.texts), test.num_images, generator=generator)
        found = cross_modal_recall(None, None, test.codes, test.owners, scores=scores)
        flat = [found[way][f"recall_at_{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
        total = np.array(flat) if total is None else total + flat
    return total / rounds


def test_chance_is_what_random_orders_score():
    test, _ = make_test([*CAPTIONS, *([f"thing {number}"] for number in range(8))])
    found = random_figures(test.sides, test.sides)
    flat = [found[way][f"recall_at_{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert flat == pytest.approx(shuffled_recall(test), abs=0.01)
    assert found["mean_recall"] == pytest.approx(np.mean(flat)) and "median_rank" not in found["text_to_image"]


def test_pairs_of_each_increment(tmp_path):
    tests = [make_test(CAPTIONS[:4])[0], make_test(CAPTIONS[4:])[0]]
    codes = caption_codes(tests[0].texts + tests[1].texts).split([5, 3])
    tests = [TestPairs(one.rows, one.texts, one.owners, part) for one, part in zip(tests, codes, strict=True)]
    increments = [SimpleNamespace(name=name) for name in ("tops", "rest")]
    found = describe_tests(increments, tests, learned=2)
    assert [(one["increment"], one["captions"], one["photos"]) for one in found] == [("tops", 5, 4), ("rest", 3, 2)]
    # Of "belt", "red shirt" and "x" the second has 3 matching photos of all 6, the others 1.
    unknown = found[1]["random_order"]["unknown"]["text_to_image"]["recall_at_1"]
    assert unknown == pytest.approx((1 / 6 + 3 / 6 + 1 / 6) / 3)
    # The photos: "belt" has 1 of 8 texts, "red shirt" and "x" are 4 of them.
    assert found[1]["random_order"]["unknown"]["image_to_text"]["recall_at_1"] == pytest.approx((1 / 8 + 4 / 8) / 2)
    # Its own photos alone: of 5 texts 2 have 2 matching ones of 4, the others 1.
    known = found[0]["random_order"]["known"]["text_to_image"]["recall_at_1"]
    assert known == pytest.approx((2 * 2 / 4 + 3 * 1 / 4) / 5)
    first = describe_tests(increments, tests, learned=1)
    assert first[0]["random_order"]["unknown"] == first[0]["random_order"]["known"]
    assert first[1]["random_order"]["unknown"] is None and describe_tests(increments, tests, 0)[0]["captions"] == 5


def test_rows_with_a_caption_are_counted():
    assert count_captioned({"train": Table([["a"], [], ["b", "c"]]), "val": Table([])}) == {"train": 2, "val": 0}


def shown(test, tables, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    texts, images = (torch.randn(n, 6, generator=generator) for n in (len(test.texts), test.num_images))
    return texts, images, pair_examples(test, tables, texts, images, **settings)


def test_examples_follow_the_metric():
    test, tables = make_test([*CAPTIONS, *([f"thing {number}"] for number in range(20))], (9,))
    texts, images, found = shown(test, tables, num_captions=50, num_photos=50, k=100)
    assert found["num_captions"] == len(test.texts) and found["num_photos"] == 26
    cosines = torch.nn.functional.normalize(texts) @ torch.nn.functional.normalize(images).T
    for example in found["captions"]:
        row = [" ".join(text.split()) for text in test.texts].index(example["caption"])
        numbers = [result["image"].getpixel((0, 0))[0] for result in example["results"]]
        assert sorted(numbers) == list(range(26))  # photos of both tables, each once
        assert [result["score"] for result in example["results"]] == pytest.approx(
            cosines[row, numbers].tolist(), abs=1e-6
        )
        right = [number for number, result in zip(numbers, example["results"], strict=True) if result["correct"]]
        assert sorted(right) == sorted({int(o) for o in test.owners[test.codes == test.codes[row]]})
        assert example["place"] == 1 + numbers.index(right[0])
    for example in found["photos"]:
        number = example["image"].getpixel((0, 0))[0]
        assert sorted(example["captions"]) == sorted(
            " ".join(text.split()) for text in tables_captions(tables)[number]
        )
        listed = [result["caption"] for result in example["results"]]
        assert len(set(listed)) == len(listed) == len(test.codes.unique())  # of equal captions one
        assert {r["caption"] for r in example["results"] if r["correct"]} == set(example["captions"])
    ranks = first_match_rank(cosines.double(), *test.sides)
    for example in found["captions"]:
        assert example["place"] == ranks[[" ".join(text.split()) for text in test.texts].index(example["caption"])]
    ranks = first_match_rank(cosines.T.double(), *test.sides[::-1])
    for example in found["photos"]:
        assert example["place"] == ranks[example["image"].getpixel((0, 0))[0]]


def tables_captions(tables):
    return [captions for table in tables for captions in table.all_captions]


def test_queries_are_spread_and_the_same_whatever_is_found():
    test, tables = make_test([[f"thing {number}"] for number in range(50)])
    asked = []
    for seed in (0, 1):
        found = shown(test, tables, seed)[2]
        captions = [int(example["caption"].split()[1]) for example in found["captions"]]
        photos = [example["image"].getpixel((0, 0))[0] for example in found["photos"]]
        asked.append((captions, photos))
    assert asked[0] == asked[1]
    assert [number // 10 for number in captions] == [0, 1, 2, 3, 4]
    assert len(photos) == 4 and not set(captions) & set(photos)
    assert all(len(example["results"]) == 5 for example in found["captions"] + found["photos"])


def test_few_pairs_are_shown_twice_and_equal_captions_once():
    test, tables = make_test([["same"], ["same"], ["other"]])
    found = shown(test, tables)[2]
    assert sorted(example["caption"] for example in found["captions"]) == ["other", "same"]
    assert len(found["photos"]) == 2 and len(found["photos"][0]["results"]) == 2
    same = next(example for example in found["captions"] if example["caption"] == "same")
    assert sum(result["correct"] for result in same["results"]) == 2


def has_green(path) -> bool:
    return any(colour == GREEN for _, colour in Image.open(path).convert("RGB").getcolors(1 << 24))


def page(correct: bool, caption: str = "a $5 belt") -> dict:
    result = {"caption": caption, "correct": correct, "score": 0.5}
    photo = Image.new("RGB", (30, 40), (9, 9, 9))
    return {
        "increment": "tops", "num_captions": 1200, "num_photos": 400,
        "captions": [{"caption": caption, "place": 1 if correct else 17, "results": [result | {"image": photo}] * 5}],
        "photos": [{"image": photo, "captions": [caption], "place": 1 if correct else 17, "results": [result] * 5}],
    }  # fmt: skip


@pytest.mark.parametrize("correct", [True, False])
def test_right_ones_are_framed(correct, tmp_path):
    plot_pair_examples(page(correct), tmp_path / "page.png")
    assert has_green(tmp_path / "page.png") == correct
    with Image.open(tmp_path / "page.png") as image:
        assert 900 < image.width < 2500 and 500 < image.height < 3000


def test_a_page_of_one_side_and_an_empty_one(tmp_path):
    plot_pair_examples(page(True) | {"photos": []}, tmp_path / "page.png")
    with pytest.raises(ValueError, match="no examples of retrieval"):
        plot_pair_examples(page(True) | {"captions": [], "photos": []}, tmp_path / "page.png")


def test_captions_are_cut_between_words():
    assert lines_of("navy blue check shirt for men", 12, 2) == ["navy blue", "check …"]
    assert lines_of("a $5 belt", 12, 2) == [r"a \$5 belt"]


def test_a_run_draws_its_pages_and_says_how_many_pairs_there_are(tiny_data, tmp_path):
    from tiny_text_runs import DOMAINS, train_pairs

    report = train_pairs(tiny_data, tmp_path / "run", domains=DOMAINS[:1], epochs=0.2, plots=True)
    text = (tmp_path / "run" / "report.md").read_text()
    assert [(one["captions"], one["photos"]) for one in report["tests"]] == [(24, 24)]
    assert report["random_order"]["known"]["text_to_image"]["recall_at_1"] == pytest.approx(1 / 24)
    assert report["random_order"]["unknown"]["mean_recall"] == pytest.approx((1 + 5 + 10) / 3 / 24)
    assert report["data"]["captioned"]["train"] == 64 and "64 train, 64 with a caption; 16 val" in text
    assert "(plots/retrievals_tops.png)" in text and (tmp_path / "run/plots/retrievals_tops.png").is_file()


def test_pairs_are_read_from_the_tables(tiny_data):
    from modeling_mclfir.data.increments import Increment
    from modeling_mclfir.data.table import load_tables

    tables = load_tables(tiny_data)
    tests = read_test_pairs([Increment("all", ())], [tables["query"], tables["gallery"]])
    assert [len(part) for part in tests[0].rows] == [16, 32] and tests[0].num_images == len(tests[0].texts) == 48
    assert tests[0].texts[16] == tables["gallery"].all_captions[0][0]


def test_a_page_is_drawn_anew_where_vectors_moved(tmp_path):
    test, tables = make_test([[f"thing {number}"] for number in range(12)])
    drawn = []
    scores = object.__new__(TextImageScores)
    increments = [SimpleNamespace(name=name) for name in ("tops", "rest")]
    scores.run = SimpleNamespace(output_dir=tmp_path, data=SimpleNamespace(increments=increments))
    scores.tests, scores.tables, scores.shown = [test, test], tables, {}
    first, second, moved = ((torch.randn(12, 4), torch.randn(12, 4)) for _ in range(3))
    for embeds in ([first], [first, second], [moved, second]):
        scores.embeds = embeds
        drawn += [path.name for path in draw_text_image_plots({}, scores.examples(len(embeds) - 1), tmp_path)]
    assert drawn == ["retrievals_tops.png", "retrievals_rest.png", "retrievals_tops.png"]
