# SPDX-License-Identifier: Apache-2.0
"""What a run of attribute retrieval is scored by, before it begins and after each increment."""

import torch

from ..evaluation import Evaluator, mean_score, summarise
from .attention_examples import attention_examples
from .examples import retrieval_examples
from .fused_spaces import unknown_scores


class AttributeScores:
    """
    Scores of every attribute seen so far, put down in the run's progress.

    Args:
        run: `Run`.
        method: `ContinualMethod`.
    """

    def __init__(self, run, method):
        data, data_args = run.data, run.data_args
        self.run, self.method = run, method
        self.evaluator = Evaluator(
            data.tables, data_args.evaluate_on, run.processor, run.cache, run.accelerator, run.args.eval_batch_size,
            data.triplets["evaluation"],
        )  # fmt: skip
        self.sides, self.embeds = [], {}

    def before_training(self) -> None:
        """Score the trunk as it was handed in, by its pooled features, on all that is to come: what must be beaten."""
        run = self.run
        self.sides = self.evaluator.prepare(run.model)
        if run.progress.initial_trunk is not None:
            return
        pooled = [self.evaluator.embed(run.model, side, None, pooled=True) for side in self.sides]
        rows = [self.evaluator.score(self.sides, pooled, increment) for increment in run.data.increments]
        run.progress.initial_trunk = summarise([row for group in rows for row in group])
        run.progress.zero_shot = [mean_score(group) for group in rows]

    def after_increment(self, increment_id: int) -> None:
        """Every attribute seen so far, and what the pooled features know of the next increment."""
        run, increments = self.run, self.run.data.increments
        self.sides = self.evaluator.prepare(run.model)
        rows, scores = [], []
        for seen_id, seen in enumerate(increments[: increment_id + 1]):
            self.embeds[seen.name] = tuple(self._embed(side, seen_id) for side in self.sides)
            rows.append(self.evaluator.score(self.sides, self.embeds[seen.name], seen))
            scores.append(mean_score(rows[-1]))
        self._score_unknown(scores)
        if increment_id + 1 < len(increments):
            scores.append(mean_score(self._pooled_rows(increments[increment_id + 1])))
        run.progress.scores.append(scores + [None] * (len(increments) - len(scores)))
        run.progress.history.append([row for group in rows for row in group])

    def examples(self, increment_id: int) -> dict[str, list]:
        """What the pictures of the report show: retrievals, and where attributes look."""
        model, learned = self.run.model, self.run.data.increments[: increment_id + 1]
        attentions = []
        if not self.method.by_pooled_features:
            attentions = attention_examples(model, self.evaluator, self.sides, self.embeds, learned)
        found = retrieval_examples(model, self.evaluator, self.sides, self.embeds, learned)
        return {"retrievals": found, "attentions": attentions}

    def _embed(self, side, increment_id: int) -> torch.Tensor:
        """Embeddings of a side for the attributes of an increment that is learned, (N, A, D); (N, 1, C) if pooled."""
        serving = self.run.serving(increment_id)
        return self.evaluator.embed(self.run.model, side, serving, pooled=self.method.by_pooled_features)

    def _score_unknown(self, known: list[float]) -> None:
        """Scores where nobody says with which increment a value came, beside those `known` where somebody does."""
        run, increments = self.run, self.run.data.increments
        if not any(increment.new_values for increment in increments) or run.data_args.streaming:
            return
        scores = list(known)  # of features that serve every increment alike both are the same
        if not self.method.by_pooled_features:
            learned = increments[: len(known)]
            scores = unknown_scores(run.model, self.evaluator, self.sides, self.embeds, learned, known)
        run.progress.scores_unknown.append(scores + [None] * (len(increments) - len(scores)))

    def _pooled_rows(self, increment) -> list[dict]:
        """Scores of an increment that is not learned yet, by the trunk's pooled features."""
        model = self.run.model
        current = len(model.heads) - 1
        shared = model.config.adapter_policy in ("shared", "stacked", "prompts")
        adapter_of = current if shared and current >= 0 else None
        pooled = [self.evaluator.embed(model, side, adapter_of, pooled=True) for side in self.sides]
        return self.evaluator.score(self.sides, pooled, increment)
