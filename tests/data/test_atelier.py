"""The embedded data set: determinism, balance, honest captions, and pictures that pixels alone do not give away."""

import io
import re
import types
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from modeling_mclfir.data import atelier
from modeling_mclfir.data.atelier import ATTRIBUTES, INCREMENTS, PHRASES, SPLIT_SIZES, generate_row, generate_split

PROBE_TRAIN, PROBE_TEST = 700, 300


def pixels(row, size):
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32).ravel() / 255


@pytest.fixture(scope="module")
def rows():
    """A little of the train split and of the gallery, small pictures: drawn once for all tests that look at many."""
    return {
        "train": list(generate_split("train", num_rows=PROBE_TRAIN, image_size=48)),
        "gallery": list(generate_split("gallery", num_rows=PROBE_TEST, image_size=48)),
    }


def test_a_row_is_a_pure_function_of_seed_and_index():
    in_order = [generate_row(i, seed=3) for i in range(4)]
    assert [generate_row(i, seed=3) for i in (3, 1, 0, 2)] == [in_order[i] for i in (3, 1, 0, 2)]
    assert list(islice(generate_split("train", seed=3, num_rows=500), 4)) == in_order
    assert generate_row(np.int64(2), seed=np.int64(3)) == in_order[2]


def test_seeds_and_views_differ():
    first, other = generate_row(0, seed=0), generate_row(0, seed=1)
    assert first["image"]["bytes"] != other["image"]["bytes"]
    assert first["product_id"] != other["product_id"]
    second_view = generate_row(1, seed=0)
    assert second_view["product_id"] == first["product_id"]
    assert second_view["attributes"] == first["attributes"]
    assert second_view["image"]["bytes"] != first["image"]["bytes"]
    assert generate_row(2, seed=0)["product_id"] != first["product_id"]


def test_the_form_of_a_row():
    row = generate_row(123)
    assert set(row) == {"image", "attributes", "caption", "product_id"}
    assert row["image"]["path"] == "atelier/000123.jpg"
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))
    assert list(row["attributes"]) == list(ATTRIBUTES)


@pytest.mark.parametrize("image_size", [32, 75, 224])
def test_other_sizes_show_the_same_garment(image_size):
    row, usual = generate_row(5, image_size=image_size), generate_row(5)
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (image_size, image_size)
    assert {k: row[k] for k in row if k != "image"} == {k: usual[k] for k in usual if k != "image"}
    # The same scene too: pictures of any size agree where they are made small.
    assert np.abs(pixels(row, 8) - pixels(usual, 8)).mean() < 0.06


def test_increments_hold_every_attribute_once():
    named = [name for increment in INCREMENTS for name in increment["attributes"]]
    assert len(INCREMENTS) == 3
    assert sorted(named) == sorted(ATTRIBUTES)
    assert len({increment["name"] for increment in INCREMENTS}) == 3
    assert all(len(set(values)) == len(values) >= 4 for values in ATTRIBUTES.values())
    assert {name: tuple(words) for name, words in PHRASES.items()} == ATTRIBUTES


def test_values_are_near_uniform():
    counts = {name: Counter() for name in ATTRIBUTES}
    for product in range(1200):
        for name, value in atelier._attributes(product, seed=0).items():
            counts[name][value] += 1
    for name, values in ATTRIBUTES.items():
        assert set(counts[name]) - {None} == set(values)
        share = (1200 - counts[name][None]) / len(values)
        assert all(abs(counts[name][value] - share) < 0.2 * share for value in values), (name, counts[name])


def test_a_value_where_it_applies_and_none_elsewhere():
    for product in range(300):
        attributes = atelier._attributes(product, seed=0)
        upper = attributes["category"] in ("dress", "jumpsuit", "shirt", "sweater")
        assert (attributes["neckline"] is not None) == upper
        assert (attributes["sleeve_length"] is not None) == upper
        assert (attributes["hem_length"] is None) == (attributes["category"] in ("shirt", "sweater"))
        assert (attributes["closure"] is None) == (attributes["category"] == "trousers")
        assert None not in [attributes[name] for name in ("category", "fit", "pattern", "colour", "pocket")]


def test_captions_say_what_is_true(rows):
    for row in rows["train"] + rows["gallery"]:
        caption, attributes = row["caption"], row["attributes"]
        for name, phrases in PHRASES.items():
            said = [v for v, words in phrases.items() if re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", caption)]
            assert said in ([], [attributes[name]]), caption
            assert said or name not in ("category", "pattern", "colour"), caption
        assert "  " not in caption and not re.search(r"\ba [aeiou]", caption), caption
    assert len({row["caption"] for row in rows["train"]}) > 0.9 * PROBE_TRAIN


def test_splits_share_no_product():
    assert SPLIT_SIZES["train"] >= 2000 and all(size % atelier.VIEWS_PER_PRODUCT == 0 for size in SPLIT_SIZES.values())
    assert atelier.SPLIT_STRIDE % atelier.VIEWS_PER_PRODUCT == 0
    seen = {}
    for split in SPLIT_SIZES:
        for row in generate_split(split, num_rows=6, image_size=32):
            assert seen.setdefault(row["product_id"], split) == split
            assert seen.setdefault(row["image"]["path"], split) == split
    assert len(seen) == len(SPLIT_SIZES) * (3 + 6)


def test_a_split_is_a_stream(monkeypatch):
    drawn = []
    original = atelier.generate_row
    monkeypatch.setattr(atelier, "generate_row", lambda index, *a: drawn.append(index) or original(index, *a))
    stream = generate_split("query", image_size=32)
    assert isinstance(stream, types.GeneratorType) and drawn == []
    next(stream), next(stream)
    assert len(drawn) == 2
    assert sum(1 for _ in generate_split("val", num_rows=0)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate_split("test"), r"`split` is 'test'.*train, val, query, gallery"),
        (lambda: generate_split("val", num_rows=-1), r"`num_rows` is -1, expected an integer from 0"),
        (lambda: generate_split("val", num_rows=10**7), r"`num_rows` is 10000000"),
        (lambda: generate_split("val", image_size=8), r"`image_size` is 8, expected an integer from 32"),
        (lambda: generate_split("val", seed="a"), r"`seed` is 'a'"),
        (lambda: generate_row(-1), r"`index` is -1"),
        (lambda: generate_row(1.5), r"`index` is 1.5"),
        (lambda: generate_row(0, seed=-4), r"`seed` is -4"),
        (lambda: generate_row(0, image_size=True), r"`image_size` is True"),
    ],
)
def test_bad_arguments_are_told_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def ridge_accuracy(train, train_labels, test, test_labels, classes):
    """A linear model on standardised pixels, fitted in closed form (dual)."""
    targets = np.eye(classes)[train_labels]
    weights = np.linalg.solve(train @ train.T + 3000.0 * np.eye(len(train)), targets - targets.mean(0))
    return float(((test @ (train.T @ weights) + targets.mean(0)).argmax(1) == test_labels).mean())


def test_a_linear_probe_on_pixels_fails(rows):
    features = {split: np.stack([pixels(row, 24) for row in rows[split]]) for split in rows}
    mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-3
    features = {split: (values - mean) / deviation for split, values in features.items()}
    gains = {}
    for name, values in ATTRIBUTES.items():
        labels = {split: [row["attributes"][name] for row in rows[split]] for split in rows}
        kept = {split: [i for i, value in enumerate(labels[split]) if value is not None] for split in rows}
        x = {split: features[split][kept[split]] for split in rows}
        y = {split: np.array([values.index(labels[split][i]) for i in kept[split]]) for split in rows}
        accuracy = ridge_accuracy(x["train"], y["train"], x["gallery"], y["gallery"], len(values))
        gains[name] = accuracy * len(values)
    # 1 is chance. Colour is nearly linear by nature; everything else has to be seen.
    colour = gains.pop("colour")
    assert colour < 6, colour
    assert np.mean(list(gains.values())) < 1.5 and max(gains.values()) < 2.1, gains
