# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import TRUNKS
from torch.nn.functional import normalize
from transformers import AutoConfig

from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor, ValueIndex, ValuePrediction
from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.training.feature_cache import load_pixels
from modeling_mclfir.voting_mclfir import vote

VALUES = {"neckline": ("round", "square", "v"), "colour": ("red", "blue")}


def random_index(seed: int = 0, size: int = 12, dim: int = 16) -> ValueIndex:
    generator = torch.Generator().manual_seed(seed)
    embeds = {name: normalize(torch.randn(size, dim, generator=generator), dim=-1) for name in VALUES}
    labels = {name: torch.randint(-1, len(values), (size,), generator=generator) for name, values in VALUES.items()}
    return ValueIndex.from_embeds(embeds, labels, VALUES)


@pytest.fixture
def model(make_model):
    model = make_model("resnet")
    model.add_increment("top", ["neckline", "colour"])
    return model.eval()


# ---- the vote


def slow_vote(query, embeds, labels, num_values, k, temperature):
    items = [
        (sum(p * q for p, q in zip(query, vector, strict=True)), label)
        for vector, label in zip(embeds, labels, strict=True)
        if label >= 0
    ]
    nearest = sorted(items, reverse=True)[:k]
    weights = [0.0] * num_values
    for cosine, label in nearest:
        weights[label] += math.exp(cosine / temperature)
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_vote_equals_a_slow_loop(k, temperature):
    generator = torch.Generator().manual_seed(k)
    queries, embeds = (normalize(torch.randn(n, 6, generator=generator), dim=-1) for n in (5, 30))
    labels = torch.randint(-1, 4, (30,), generator=generator)
    shares = vote(queries, embeds, labels, 4, k, temperature)
    for query, row in zip(queries.double().tolist(), shares.tolist(), strict=True):
        expected = slow_vote(query, embeds.double().tolist(), labels.tolist(), 4, k, temperature)
        assert row == pytest.approx(expected, abs=1e-5)


def test_nothing_labelled_nothing_voted():
    queries = torch.ones(2, 1)
    assert torch.equal(vote(queries, torch.ones(3, 1), torch.full((3,), -1), 4, 2, 0.1), torch.zeros(2, 4))
    assert torch.equal(vote(queries, torch.ones(0, 1), torch.ones(0).long(), 4, 2, 0.1), torch.zeros(2, 4))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"embeds": torch.ones(3, 2)}, r"got \(2, 1\), \(3, 2\), \(3,\)"),
        ({"labels": torch.zeros(2).long()}, r"labels \(G,\)"),
        ({"labels": torch.tensor([0, 1, 2])}, "below the number of values, 2; got 2"),
    ],
)
def test_bad_votes(changes, message):
    good = {"embeds": torch.ones(3, 1), "labels": torch.zeros(3).long(), "num_values": 2, "k": 1, "temperature": 0.1}
    with pytest.raises(ValueError, match=message):
        vote(torch.ones(2, 1), **(good | changes))


# ---- predictions


def test_each_attribute_is_voted_on_in_its_own_space(model, images):
    index = random_index()
    predictions = model.predict_values(images, index, k=5, temperature=0.2)
    with torch.no_grad():
        embeds = model(images).embeds
    assert len(predictions) == len(images)
    for row, found in enumerate(predictions):
        assert list(found) == ["neckline", "colour"]
        for place, (name, values) in enumerate(VALUES.items()):
            gallery = index.embeds[name].double().tolist(), index.labels[name].tolist()
            shares = slow_vote(embeds[row, place].double().tolist(), *gallery, len(values), 5, 0.2)
            assert found[name].value == values[shares.index(max(shares))]
            assert found[name].confidence == pytest.approx(max(shares), abs=1e-5)


def test_a_gallery_item_is_itself_with_full_confidence(model, images):
    with torch.no_grad():
        embeds = model(images).embeds
    labels = torch.tensor([2, 0, 1, 0])
    names = {"neckline": ("round", "square", "v")}
    index = ValueIndex.from_embeds({"neckline": embeds[:, 0]}, {"neckline": labels}, names)
    found = model.predict_values(images, index, k=1, attribute_ids=[0])
    assert [row["neckline"] for row in found] == [(value, 1.0) for value in ("v", "round", "square", "round")]
    assert isinstance(found[0]["neckline"], ValuePrediction)


def test_what_nobody_knows_is_unknown(model, images):
    index = random_index()
    unlabelled = ValueIndex.from_embeds(
        index.embeds, {name: torch.full_like(labels, -1) for name, labels in index.labels.items()}, VALUES
    )
    without = ValueIndex.from_embeds(*({"colour": part["colour"]} for part in (index.embeds, index.labels, VALUES)))
    for row in model.predict_values(images, unlabelled):
        assert row == {"neckline": (None, 0.0), "colour": (None, 0.0)}
    for row, whole in zip(model.predict_values(images, without), model.predict_values(images, index), strict=True):
        assert row["neckline"] == (None, 0.0) and row["colour"] == whole["colour"] and row["colour"].confidence > 0


def test_batches_and_shared_features_make_no_difference(model, images):
    index = random_index()
    whole = model.predict_values(images, index)
    parts = [model.predict_values(images[row : row + 1], index)[0] for row in range(len(images))]
    with torch.no_grad():
        shared = model(images).shared_features
    for other in (parts, model.predict_values(index=index, shared_features=shared)):
        for one, two in zip(whole, other, strict=True):
            assert {name: found.value for name, found in one.items()} == {name: two[name].value for name in one}
            assert all(one[name].confidence == pytest.approx(two[name].confidence, abs=1e-5) for name in one)


def test_any_object_with_the_three_mappings_will_do(model, images):
    index = random_index()
    plain = SimpleNamespace(embeds=index.embeds, labels=index.labels, values=index.values)
    assert model.predict_values(images, plain) == model.predict_values(images, index)


def test_an_attribute_with_several_spaces_is_asked_for_by_its_id(model, images):
    model.add_increment("more", ["colour"], new_values=True)
    model.eval()
    with pytest.raises(ValueError, match=r"\['colour'\] have several spaces"):
        model.predict_values(images, random_index())
    first, second = (model.predict_values(images, random_index(), attribute_ids=[place]) for place in (1, 2))
    assert list(first[0]) == list(second[0]) == ["colour"]
    with pytest.raises(ValueError, match="needs an index"):
        model.predict_values(images)


# ---- the index


def test_unlabelled_items_are_left_out():
    embeds = torch.eye(3)
    index = ValueIndex.from_embeds(
        {"colour": embeds}, {"colour": torch.tensor([1, -1, 0])}, {"colour": ["red", "blue"]}
    )
    assert torch.equal(index.embeds["colour"], embeds[[0, 2]]) and index.labels["colour"].tolist() == [1, 0]
    assert index.values == {"colour": ("red", "blue")}


def test_an_index_survives_its_folder(tmp_path):
    names = {"col/our": ("rød", "blue"), "": ("a",)}  # attributes and values may be any text
    embeds = {name: torch.randn(4, 3) for name in names}
    index = ValueIndex.from_embeds(embeds, {name: torch.zeros(4).long() for name in names}, names)
    for _ in range(2):  # the second replaces the first
        index.save(tmp_path / "index")
    loaded = ValueIndex.load(tmp_path / "index")
    assert loaded.values == index.values and list(loaded.values) == list(names)
    for part in ("embeds", "labels"):
        assert all(torch.equal(getattr(index, part)[name], getattr(loaded, part)[name]) for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    with pytest.raises(FileNotFoundError, match="holds no index"):
        ValueIndex.load(tmp_path)


def test_means_are_one_unit_vector_a_value_that_has_items():
    index = random_index(seed=3)
    labels = index.labels | {"colour": torch.ones_like(index.labels["colour"])}  # no red
    means = ValueIndex.from_embeds(index.embeds, labels, VALUES).means()
    assert means.values == index.values and means.labels["colour"].tolist() == [1]
    for name in VALUES:
        vectors, codes = index.embeds[name].double().numpy(), labels[name].numpy()
        assert means.labels[name].tolist() == sorted(set(codes.tolist()))
        for vector, value in zip(means.embeds[name], means.labels[name].tolist(), strict=True):
            mean = vectors[codes == value].mean(axis=0)
            assert vector.numpy() == pytest.approx(mean / (mean @ mean) ** 0.5, abs=1e-6)


def test_the_nearest_mean_tags_an_image(model, images):
    index = random_index()
    with torch.no_grad():
        embeds = model(images).embeds.double().numpy()
    found = model.predict_values(images, index.means(), k=1)
    for row, tags in zip(embeds, found, strict=True):
        for place, (name, values) in enumerate(VALUES.items()):
            vectors, codes = index.embeds[name].double().numpy(), index.labels[name].numpy()
            means = [vectors[codes == value].mean(axis=0) for value in range(len(values))]
            cosines = [row[place] @ mean / (mean @ mean) ** 0.5 for mean in means]
            assert tags[name] == (values[cosines.index(max(cosines))], 1.0)


def test_an_empty_index_has_empty_means():
    index = ValueIndex.from_embeds({"a": torch.ones(2, 3)}, {"a": [-1, -1]}, {"a": ["x"]})
    assert index.means().embeds["a"].shape == (0, 3) and len(index.means().labels["a"]) == 0


@pytest.mark.parametrize(
    "embeds, labels, values, message",
    [
        ({"a": torch.ones(2, 3)}, {"b": [0, 0]}, {"a": ["x"]}, r"same attributes; got \['a'\], \['b'\], \['a'\]"),
        ({"a": torch.ones(2, 3)}, {"a": [0]}, {"a": ["x"]}, r"of 'a'; got \(2, 3\) and \(1,\)"),
        ({"a": torch.ones(2)}, {"a": [0, 0]}, {"a": ["x"]}, r"Expected embeds \(G, D\)"),
        ({"a": torch.ones(2, 3)}, {"a": [0, 1]}, {"a": ["x"]}, "below its 1 values; got 1"),
    ],
)
def test_bad_indexes(embeds, labels, values, message):
    with pytest.raises(ValueError, match=message):
        ValueIndex.from_embeds(embeds, labels, values)


@pytest.fixture(scope="module")
def gallery_model(tiny_data):
    torch.manual_seed(0)
    trunk = dict(TRUNKS["vit"])
    trunk = AutoConfig.for_model(trunk.pop("model_type"), **trunk)
    model = MclfirForImageRetrieval.from_trunk(trunk, embed_dim=16, gate_dim=8, lora_rank=2)
    model.add_increment("cut", ["colour", "hat"])
    return model.eval(), MclfirImageProcessor.for_trunk(None, 32, 32), load_tables(tiny_data)["gallery"]


def test_from_a_table(gallery_model):
    model, processor, table = gallery_model
    index = ValueIndex.from_table(model, table, processor, batch_size=12)
    assert list(index.values) == ["colour"] and index.values["colour"] == table.values("colour")
    known = torch.from_numpy(table.labels("colour")) >= 0
    assert 0 < len(index.labels["colour"]) == known.sum()
    pixels = load_pixels(table, range(len(table)), 0, processor, Augmentation(), 0)
    with torch.no_grad():
        expected = model(pixels, attribute_ids=[0]).embeds[:, 0][known]
    assert torch.allclose(index.embeds["colour"], expected, atol=1e-5)
    found = model.predict_values(pixels, index, k=1, attribute_ids=[0])
    names = [None if code < 0 else table.values("colour")[code] for code in table.labels("colour")]
    right = [row["colour"].value == name for row, name in zip(found, names, strict=True) if name is not None]
    assert sum(right) >= len(right) - 2  # each finds itself; two rows may look alike to a random model


def test_from_a_table_without_the_attribute(gallery_model):
    model, processor, table = gallery_model
    with pytest.raises(ValueError, match=r"Attributes \['hat'\] are not in both"):
        ValueIndex.from_table(model, table, processor, attributes=["hat"])
    with pytest.raises(ValueError, match=r"Attributes \[\] are not in both|Attributes to predict are not in both"):
        ValueIndex.from_table(model, table, processor, attributes=[])
