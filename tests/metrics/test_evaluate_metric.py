"""`evaluate.load` takes the metric from its folder without a network, and gives what the functions give."""

import socket
from pathlib import Path

import pytest
import torch

from modeling_mclfir import metrics

datasets = pytest.importorskip("datasets")
evaluate = pytest.importorskip("evaluate")

PATH = Path(metrics.__file__).parent / "mclfir_retrieval"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A loader that fails on any attempt to connect and keeps its rows in `tmp_path`."""

    def refuse(*args, **kwargs):
        raise OSError("this test must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda **options: evaluate.load(str(PATH), cache_dir=str(tmp_path), **options)


@pytest.fixture
def sides():
    torch.manual_seed(0)
    return {
        "query_embeds": torch.randn(6, 5),
        "gallery_embeds": torch.randn(17, 5),
        "query_labels": torch.tensor([0, 1, 2, 0, 1, 9]),
        "gallery_labels": torch.randint(0, 3, (17,)),
    }


def expected(sides, no_positives="skip", cut_offs=(1, 5, 10)):
    ranks = metrics.first_relevant_rank(**sides)
    labels = sides["query_labels"], sides["gallery_labels"]
    mean = lambda values: metrics.mean_over_queries(values, no_positives)  # noqa: E731
    result = {
        "mean_average_precision": mean(metrics.average_precision(**sides)),
        "label_prior": mean(metrics.label_prior(*labels)),
        "expected_average_precision": mean(metrics.expected_average_precision(*metrics.count_relevant(*labels))),
        "num_queries": 6,
        "num_gallery": 17,
        "num_without_positives": 1,
    }
    for k in cut_offs:
        result[f"recall_at_{k}"] = metrics.recall_at_k(ranks, k, no_positives)
        result[f"precision_at_{k}"] = mean(metrics.precision_at_k(**sides, k=k))
    return result


def test_two_sides(load, sides):
    metric = load()
    assert metric.compute(**sides) == expected(sides)
    assert metric.compute(**sides, no_positives="zero", k=[2], chunk_size=2) == expected(sides, "zero", [2])
    assert metric.compute(**{name: side.tolist() for name, side in sides.items()}, k=3) == expected(sides, "skip", [3])
    assert metric.compute(**{name: side.numpy() for name, side in sides.items()}) == expected(sides)


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_rows_added_in_batches(load, sides, keep_in_memory):
    metric = load(keep_in_memory=keep_in_memory)
    metric.add_batch(embeds=sides["gallery_embeds"], labels=sides["gallery_labels"], is_query=[False] * 17)
    for embed, label in zip(sides["query_embeds"][:2], sides["query_labels"][:2], strict=True):
        metric.add(embeds=embed, labels=label, is_query=True)
    metric.add_batch(embeds=sides["query_embeds"][2:].numpy(), labels=sides["query_labels"][2:], is_query=[True] * 4)
    assert metric.compute() == expected(sides)
    rows = {
        "embeds": torch.cat([sides["query_embeds"], sides["gallery_embeds"]]).tolist(),
        "labels": torch.cat([sides["query_labels"], sides["gallery_labels"]]).tolist(),
        "is_query": [True] * 6 + [False] * 17,
    }
    assert metric.compute(**rows) == expected(sides)  # the rows of the first call are gone


def test_description(load):
    metric = load()
    assert metric.name == "mclfir_retrieval"
    assert "mean average precision" in metric.description
    assert "2603.20648" in metric.citation
    assert "is_query" in metric.inputs_description
    assert set(metric.features) == {"embeds", "labels", "is_query"}


def test_the_worked_example(load):
    sides = {"query_embeds": [[1.0, 0.0]], "gallery_embeds": [[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]]}
    result = load().compute(**sides, query_labels=[7], gallery_labels=[7, 3, 7])
    assert result["mean_average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_mistakes_are_named(load, sides):
    with pytest.raises(ValueError, match="Give all of"):
        load().compute(query_embeds=sides["query_embeds"])
    with pytest.raises(ValueError, match="a label for each embedding"):
        load().compute(**{**sides, "query_labels": [0]})
    with pytest.raises(ValueError, match="some of each"):
        load().compute(embeds=[[1.0]], labels=[0], is_query=[True])
    with pytest.raises(ValueError, match="must all have the same"):
        load().compute(embeds=[[1.0], [1.0, 2.0]], labels=[0, 0], is_query=[True, False])
