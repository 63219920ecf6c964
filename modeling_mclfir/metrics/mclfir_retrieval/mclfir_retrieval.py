"""Retrieval metrics as an `evaluate` metric: `evaluate.load(PATH_OF_THIS_FOLDER)`, without a network.

`evaluate` copies this file to its cache before it imports it: only absolute imports, and one a line.
"""

import datasets
import evaluate
import torch

import modeling_mclfir.metrics as metrics

_DESCRIPTION = """\
Retrieval of fashion images by attribute: mean average precision of the full ranking by cosine similarity (equal
scores resolved by gallery order), recall and precision at k, and beside them what no knowledge at all would score: the
share of relevant items and the expected average precision of a random ranking. Two images are relevant to each other
when their labels are equal. All results are shares, 0 to 1. One call scores one attribute (one gallery).
"""

_CITATION = """\
@article{xiao2026multihead,
  title = {A Multihead Continual Learning Framework for Fine-Grained Fashion Image Retrieval with Contrastive Learning
           and Exponential Moving Average Distillation},
  author = {Xiao, Ling and Yamasaki, Toshihiko},
  journal = {arXiv preprint arXiv:2603.20648},
  year = {2026}
}
"""

_KWARGS_DESCRIPTION = """
One row an image, so that query and gallery may differ in number and that several processes may add theirs:

Args:
    embeds: list of embeddings, each a list of D numbers (kept as float32; any length, cosine is used).
    labels: list of integers from 0, the value of the attribute.
    is_query: list of bool, True for a query and False for a gallery image. An image that is both is two rows.
    k: list of cut-offs of recall and precision, default [1, 5, 10].
    no_positives: "skip" leaves a query without a relevant image out of every mean, "zero" counts it as 0.
    chunk_size: queries ranked at a time, default 256.

`compute` also takes the two sides apart, in place of the rows: query_embeds, gallery_embeds, query_labels,
gallery_labels.

Returns:
    mean_average_precision, recall_at_K and precision_at_K for each K, label_prior, expected_average_precision,
    num_queries, num_gallery, num_without_positives.

Examples:
    >>> metric = evaluate.load("modeling_mclfir/metrics/mclfir_retrieval")
    >>> sides = {"query_embeds": [[1.0, 0.0]], "gallery_embeds": [[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]]}
    >>> metric.compute(**sides, query_labels=[7], gallery_labels=[7, 3, 7])["mean_average_precision"]
    0.8333333333333333
"""

_SIDES = ("query_embeds", "gallery_embeds", "query_labels", "gallery_labels")


def _rows(query_embeds, gallery_embeds, query_labels, gallery_labels) -> dict:
    """The two sides as rows, queries first."""
    sizes = [len(side) for side in (query_embeds, gallery_embeds, query_labels, gallery_labels)]
    if sizes[0] != sizes[2] or sizes[1] != sizes[3]:
        given = dict(zip(_SIDES, sizes, strict=True))
        raise ValueError(f"Each side needs a label for each embedding, but the lengths are {given}.")
    return {
        "embeds": [*torch.as_tensor(query_embeds).tolist(), *torch.as_tensor(gallery_embeds).tolist()],
        "labels": [*torch.as_tensor(query_labels).tolist(), *torch.as_tensor(gallery_labels).tolist()],
        "is_query": [True] * sizes[0] + [False] * sizes[1],
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MclfirRetrieval(evaluate.Metric):
    """Mean average precision, recall and precision of one gallery, with their random baselines."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "embeds": datasets.Sequence(datasets.Value("float32")),
                    "labels": datasets.Value("int64"),
                    "is_query": datasets.Value("bool"),
                }
            ),
        )

    def compute(self, **kwargs):
        """Score the rows added so far, or those given here: rows, or the two sides apart (all four of them)."""
        sides = {name: kwargs.pop(name) for name in _SIDES if name in kwargs}
        if sides:
            missing = [name for name in _SIDES if name not in sides]
            if missing or "embeds" in kwargs:
                raise ValueError(f"Give all of {', '.join(_SIDES)} or the rows; given: {', '.join(sides)}.")
            kwargs.update(_rows(**sides))
        return super().compute(**kwargs)

    def _compute(self, embeds, labels, is_query, k=(1, 5, 10), no_positives="skip", chunk_size=256):
        lengths = sorted({len(row) for row in embeds})
        if len(lengths) > 1:
            raise ValueError(f"embeds have lengths {lengths}, but must all have the same.")
        embeds, labels, is_query = torch.tensor(embeds), torch.tensor(labels), torch.tensor(is_query)
        sides = embeds[is_query], embeds[~is_query], labels[is_query], labels[~is_query]
        if 0 in (len(sides[0]), len(sides[1])):
            raise ValueError(
                f"{len(sides[0])} queries and {len(sides[1])} gallery images were added, but there must be some of "
                "each; is_query says which is which."
            )
        cut_offs = [k] if isinstance(k, int) else list(k)
        average_precision = metrics.average_precision(*sides, chunk_size=chunk_size)
        ranks = metrics.first_relevant_rank(*sides, chunk_size=chunk_size)
        counts = metrics.count_relevant(*sides[2:], chunk_size=chunk_size)
        per_query = {
            "mean_average_precision": average_precision,
            **{f"precision_at_{n}": metrics.precision_at_k(*sides, n, chunk_size=chunk_size) for n in cut_offs},
            "label_prior": metrics.label_prior(*sides[2:], chunk_size=chunk_size),
            "expected_average_precision": metrics.expected_average_precision(*counts),
        }
        return {
            **{name: metrics.mean_over_queries(values, no_positives) for name, values in per_query.items()},
            **{f"recall_at_{n}": metrics.recall_at_k(ranks, n, no_positives) for n in cut_offs},
            "num_queries": len(ranks),
            "num_gallery": len(sides[1]),
            "num_without_positives": int((ranks == 0).sum()),
        }
