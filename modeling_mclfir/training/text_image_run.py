# SPDX-License-Identifier: Apache-2.0
"""A run of text-image retrieval: two towers, captions, domains."""

import math
import time
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import torch
from accelerate.logging import get_logger

from ..data.collators import local_slice
from ..modeling_mclfir_text import MclfirForTextImageRetrieval
from ..processing_mclfir_text import MclfirProcessor
from ..routing_mclfir import unit_length
from .caption_tokens import CaptionTokens
from .cost import Cost, count_flops
from .open_pairs import pair_rows
from .open_towers import open_towers
from .pair_batches import PairBatches
from .run import Run
from .solved_projections import solve_projections

logger = get_logger(__name__)
_PROTOTYPES = 16  # of an increment and tower: a domain has no values to take means of
_MOST_ROWS, _MOST_PAIRS = 10_000, 2000  # of an increment: for its prototypes, for the spread of its cosines
_TOKENS = ("input_ids", "attention_mask")


class TextImageRun(Run):
    """As `Run`: a domain is an increment of the one task, whose space it opens or, where one is shared, learns on."""

    model_class = MclfirForTextImageRetrieval

    def _open_prompts(self) -> None:
        return None  # --text_encoder is the tower here

    def _open_model(self):
        # A tokeniser that is learned here knows no more than the first increment's words.
        table = self.data.tables["train"]
        captions = (table.all_captions[row] for row in pair_rows(self.data.increments[0], table))
        model, image_processor, self.tokenizer = open_towers(self.model_args, captions)
        return model, image_processor

    def _open_processor(self, folder: Path) -> None:
        processor = MclfirProcessor.from_pretrained(folder)
        self.processor, self.tokenizer = processor.image_processor, processor.tokenizer

    @property
    def saved_processor(self) -> MclfirProcessor:
        """Of photos and captions."""
        return MclfirProcessor(self.processor, self.tokenizer)

    @cached_property
    def captions(self) -> CaptionTokens:
        """Of the training rows."""
        return CaptionTokens(self.data.tables["train"], self.tokenizer, self.model_args.max_text_length)

    def batches(self, increment_id: int, method) -> tuple[PairBatches, Cost]:
        """See `Run`."""
        for size in (self.args.batch_size, self.args.replay_batch_size):  # now, not when exemplars come up
            local_slice(size, self.accelerator.process_index, self.accelerator.num_processes)
        views, filling = self.cached_views(self.data.tables["train"])
        filling.add(self._cached_captions())
        replay = [
            self._pairs(method.exemplars[old], views, (self.args.seed, increment_id, 1 + old), self.serving(old),
                        self.args.replay_batch_size)
            for old in method.exemplars
        ]  # fmt: skip
        first = 0 if method.retrains else increment_id
        serving = None if method.retrains else self.serving(increment_id)
        batches = self._pairs(
            self._rows(first, increment_id), views, (self.args.seed, increment_id), serving, self.args.batch_size,
            teacher=method.needs_teacher_view, replay=replay,
        )  # fmt: skip
        return batches, filling

    def _rows(self, first: int, last: int) -> np.ndarray:
        table = self.data.tables["train"]
        return np.unique(np.concatenate([pair_rows(one, table) for one in self.data.increments[first : last + 1]]))

    def _pairs(self, rows: np.ndarray, views, seed: tuple[int, ...], serving: int | None, size: int, **more):
        return PairBatches(
            self.data.tables["train"], rows, self.captions, views, self.data_args.num_views, self.processor,
            self.augmentation, self.accelerator, increment_id=serving, plan_seed=seed, batch_size=size, **more,
        )  # fmt: skip

    def _cached_captions(self) -> Cost:
        """Have what the frozen part of the text tower gives, and the bill of it."""
        if self.cache is None or self.model.text.opaque:
            return Cost()
        started, captions = time.perf_counter(), self.captions
        name = captions.fill(self.model, self.cache.folder, self.cache.max_bytes, self.accelerator)
        # A run pays for each file once, whoever filled it: a resumed run costs what an unbroken one does.
        if name is None or name in self.progress.cached:
            return Cost()
        self.progress.cached.append(name)
        one = {key: captions.inputs(np.arange(1))[key].to(self.accelerator.device) for key in _TOKENS}
        with torch.no_grad():
            hidden, flops = count_flops(lambda: self.model.text.shared_forward(*one.values()))
        return Cost(flops=flops * captions.num_filled // hidden.shape[1], seconds=time.perf_counter() - started)

    def _open_space(self, increment) -> None:
        """A domain opens a space of its own; with one adapter that keeps learning, the one space learns on."""
        if not (increment.new_values and self.model.config.adapter_policy == "shared"):
            self.model.add_increment(increment.name, increment.attributes, new_values=increment.new_values)

    def _lay_refinements_aside(self, increment_id: int, method) -> None:
        """There are none."""

    def start_heads(self, increment_id: int, method, batches) -> Cost:
        """New projections begin as `--head_start` says: as the increment before left them (drawn, or the towers' own,
        in the first one), or solved; gives the bill of it."""
        if not self._solves(method, "head_start"):
            return Cost()
        started = time.perf_counter()
        _, flops = count_flops(lambda: solve_projections(self.model, self.new_heads[-1], batches))
        return Cost(flops=flops * self.accelerator.num_processes, seconds=time.perf_counter() - started)

    def _solves(self, method, setting: str) -> bool:
        """Whether new projections are to be solved, at their start or finish; where none are new they learn on."""
        if getattr(self.args, setting) != "ridge" or not method.trains:
            return False
        if not len(self.new_heads) and not self.args.epochs:
            raise ValueError(
                "With --epochs 0 only new projections are learned, and with --adapter_policy 'shared' one space "
                "serves all increments; take 'frozen' or 'per_increment'."
            )
        return len(self.new_heads) > 0

    def finish_spaces(self, increment_id: int, method, batches) -> None:
        """The temperature that the space was learned with, and what tells it from others."""
        if self._solves(method, "head_finish"):
            solve_projections(self.model, self.new_heads[-1], batches)
        settings, learned = self.args, getattr(method.loss, "logit_scale", None)
        scale = math.log(1 / settings.temperature) if learned is None else float(learned.detach())
        self.model.heads[self.serving(increment_id)].logit_scale.fill_(scale)
        config = self.model.config
        if config.adapter_policy == "shared" or method.retrains:
            return
        for place, increment in enumerate(config.increments):
            if "router" not in increment:
                describe_pairs(self.model, place, batches)

    def num_values(self, increment_id: int, method) -> None:
        """A caption is not one of so many values."""


@torch.no_grad()
def describe_pairs(model: MclfirForTextImageRetrieval, increment_id: int, batches: PairBatches) -> None:
    """`model.describe_increment` with prototypes and spreads of the pairs that the increment was learned from."""
    model.eval()
    images, texts, embeds = [], [], []
    for batch in batches.chunks(most=_MOST_ROWS):
        inputs = {key: value for key, value in batch["inputs"].items() if key != "increment_id"}
        output = model(**inputs, **batch["text_inputs"], increment_id=increment_id)
        embeds.append(torch.stack([output.text_embeds[:, 0], output.image_embeds[:, 0]]).float().cpu())
        images.append(model.mclfir(shared_features=output.shared_features).pooled.float().cpu())
        tokens = (batch["text_inputs"][key] for key in _TOKENS)
        texts.append(model.text.increment_forward(output.shared_text, *tokens, None).float().cpu())
    text_embeds, image_embeds = torch.cat(embeds, dim=1)
    spread = _cross_spread(text_embeds, image_embeds)
    model.describe_increment(increment_id, cluster(torch.cat(images)), cluster(torch.cat(texts)), [spread, spread])


def cluster(features: torch.Tensor, count: int = _PROTOTYPES) -> torch.Tensor:
    """
    Unit-length centres (P, C) of spherical k-means of features (n, C), P at most `count` and n / 4. Features that are
    all 0 have no direction and are left out.
    """
    directions = _with_direction(unit_length(features)).numpy()
    if not len(directions):
        return features[:0]
    count = max(1, min(count, len(directions) // 4))
    means = faiss.Kmeans(directions.shape[1], count, niter=20, seed=0, spherical=True, min_points_per_centroid=1)
    means.train(directions)
    return _with_direction(unit_length(torch.from_numpy(np.array(means.centroids))))


def _with_direction(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows.norm(dim=1) > 0.5]  # of unit length, or 0


def _cross_spread(texts: torch.Tensor, images: torch.Tensor) -> float:
    """Standard deviation of the cosines of a text and another image; 1 where there is no other."""
    cosines = texts[:_MOST_PAIRS] @ images[:_MOST_PAIRS].T
    others = ~torch.eye(len(cosines), dtype=torch.bool)
    return float(cosines[others].std(correction=0)) if others.any() else 1.0
