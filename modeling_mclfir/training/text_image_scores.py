# SPDX-License-Identifier: Apache-2.0
"""What a run of text-image retrieval is scored by: captions among images and images among captions, both ways."""

import copy
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ..data.augmentation import Augmentation
from .caption_tokens import tokenize
from .drift import diagnose_increment
from .feature_cache import load_pixels
from .open_pairs import test_tables
from .report import write_atomically
from .text_image_examples import pair_examples
from .text_image_pairs import TestPairs, read_test_pairs
from .text_image_policies import POLICIES, LearnedPairs, average_policies, policy_scores

INDEXED = "indexed"
_CALIBRATION = 200  # stored items of an increment and side that are embedded again, to see where they went


class TextImageScores:
    """
    After each increment the recalls of all so far, under each reindex policy, with the increment known and unknown;
    and what became of the towers. The score a[i][j] is the mean of recall at 1, 5 and 10 over both directions, with
    the increment known and everything embedded anew.

    Galleries as they were indexed when their increment was learned are kept in `output_dir/indexed`.

    Args:
        run: `TextImageRun`.
        method: `ContinualMethod`.
    """

    def __init__(self, run, method):
        self.run, self.method = run, method
        self.tables = test_tables(run.data.tables, run.data_args.evaluate_on)
        self.tests = read_test_pairs(run.data.increments, self.tables)
        self.features: list[np.ndarray | None] = []
        self.embeds: list[tuple[Tensor, Tensor]] = []  # texts and images of each increment so far, in its own space
        self.shown: dict[str, tuple[Tensor, Tensor]] = {}  # increment → those that its page was drawn from
        self.folder = Path(run.output_dir) / INDEXED

    def before_training(self) -> None:
        """Score the towers as they were handed in, with projections as the first increment's are drawn (or taken)."""
        run = self.run
        self._prepare()
        if run.progress.initial_trunk is not None:
            return
        probe = run.model
        if not len(probe.heads):
            probe = copy.deepcopy(run.model)
            set_seed(int(np.random.SeedSequence((run.args.seed, 0)).generate_state(1)[0]))
            probe.add_increment("untrained")
        figures = [self._score(probe, test) for test in self.tests]
        run.progress.initial_trunk = average_policies(figures)["full"]["known"]
        run.progress.zero_shot = [one["full"]["known"]["mean_recall"] for one in figures]

    def after_increment(self, increment_id: int) -> None:
        """Every increment so far, and what its newest space knows of the next one."""
        run, model = self.run, self.run.model
        self._prepare()
        names = [increment.name for increment in run.data.increments]
        several = len(model.heads) > 1
        learned, self.embeds = [], []
        for place in range(increment_id + 1):
            spaces = list(range(len(model.heads))) if several else [run.serving(place)]
            texts, images, weights = self._embed(model, self.tests[place], spaces, several)
            own = spaces.index(run.serving(place))
            self.embeds.append((texts[own], images[own]))
            if place == increment_id:
                self._index(names[place], texts[own], images[own])
            learned.append(self._learned(names[place], self.tests[place], texts, images, own, weights))
        scales = [float(head.logit_scale.exp()) for head in model.heads]
        figures = policy_scores(learned, policies=(*POLICIES, "mean_drift"), scales=scales)
        drift = [self._drift(names, learned, place, place if several else 0) for place in range(increment_id)]
        self._put_down(increment_id, figures, drift)

    def _learned(self, name: str, test: TestPairs, texts, images, own: int, weights) -> LearnedPairs:
        indexed = load_file(self._file(name))
        chosen = {side: _chosen(len(rows)) for side, rows in indexed.items()}
        calibration = {
            direction: (indexed[side][chosen[side]], now[own][chosen[side]])
            for direction, side, now in (("text_to_image", "images", images), ("image_to_text", "texts", texts))
        }
        stored = indexed["texts"], indexed["images"]
        return LearnedPairs(test.codes, test.owners, texts, images, *stored, calibration, weights)

    @staticmethod
    def _drift(names: list[str], learned: list[LearnedPairs], place: int, space: int) -> dict:
        """What became of an increment's pairs since it was learned, in its own space."""
        one = learned[place]
        others = [(it.texts[space], it.images[space]) for it in learned if it is not one]
        before, now = (one.indexed_texts, one.indexed_images), (one.texts[space], one.images[space])
        return {"increment": names[place]} | diagnose_increment(before, now, one.captions, one.owners, others)

    def _put_down(self, increment_id: int, figures: list[dict], drift: list[dict]) -> None:
        run = self.run
        progress, count = run.progress, len(run.data.increments)
        scores = [one["full"]["known"]["mean_recall"] for one in figures]
        unknown = [one["full"]["unknown"]["mean_recall"] for one in figures]
        if increment_id + 1 < count:
            ahead = self._score(run.model, self.tests[increment_id + 1])
            scores.append(ahead["full"]["known"]["mean_recall"])
        progress.scores.append(scores + [None] * (count - len(scores)))
        progress.scores_unknown.append(unknown + [None] * (count - len(unknown)))
        progress.history.append(figures)
        progress.drift.append(drift)

    def examples(self, increment_id: int) -> dict[str, list]:
        """
        What some captions and photos find, for `draw_plots`, by the vectors of `after_increment`.

        Returns:
            "retrievals": `pair_examples` and the name of each increment so far whose vectors moved since it was asked
            for last; the pages of the others stand.
        """
        shown = []
        for increment, test, embeds in zip(self.run.data.increments, self.tests, self.embeds, strict=False):
            before, self.shown[increment.name] = self.shown.get(increment.name), embeds
            if before is not None and all(map(torch.equal, before, embeds)):
                continue
            shown.append({"increment": increment.name} | pair_examples(test, self.tables, *embeds))
        return {"retrievals": shown}

    def _score(self, model, test: TestPairs) -> dict:
        """Figures of pairs in the newest space alone."""
        texts, images, _ = self._embed(model, test, [len(model.heads) - 1], False)
        return policy_scores([LearnedPairs(test.codes, test.owners, texts, images, texts[0], images[0])])[0]

    def _prepare(self) -> None:
        """The shared features of the test's photos, cached where the cap allows."""
        run = self.run
        if self.features or run.cache is None or run.model.mclfir.units.opaque:
            self.features = self.features or [None] * len(self.tables)
            return
        self.features = [
            run.cache.open(run.model, run.processor, table, 0, run.accelerator, augmentation=Augmentation(), seed=0,
                           dtype="float32")
            for table in self.tables
        ]  # fmt: skip

    @torch.no_grad()
    def _embed(
        self, model, test: TestPairs, spaces: list[int], routed: bool
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor] | None]:
        """Of each space texts (T, D) and images (G, D); where asked, what each space counts for each query."""
        model.eval()
        texts, images, weights = [], [], {"text_to_image": [], "image_to_text": []}
        for batch in self._photos(test):
            output = model(**batch, attribute_ids=spaces)
            images.append(output.image_embeds.float().cpu())
            if routed:
                pooled = model.mclfir(shared_features=output.shared_features).pooled
                weights["image_to_text"].append(model.route(pooled, "image").cpu())
        for batch in self._captions(test):
            output = model(**batch, attribute_ids=spaces)
            texts.append(output.text_embeds.float().cpu())
            if routed:
                pooled = model.text.increment_forward(output.shared_text, *batch.values(), None)
                weights["text_to_image"].append(model.route(pooled, "text").cpu())
        routes = {direction: torch.cat(parts) for direction, parts in weights.items()} if routed else None
        return list(torch.cat(texts).unbind(1)), list(torch.cat(images).unbind(1)), routes

    def _photos(self, test: TestPairs):
        size, device = self.run.args.eval_batch_size, self.run.accelerator.device
        for table, features, rows in zip(self.tables, self.features, test.rows, strict=True):
            starts = range(0, len(rows), size)
            for start in tqdm(starts, desc=f"embedding {table.split}", unit="batch", leave=False,
                              disable=not self.run.accelerator.is_main_process):  # fmt: skip
                chunk = rows[start : start + size]
                if features is not None:
                    yield {"shared_features": torch.from_numpy(np.array(features[chunk])).to(device)}
                else:
                    pixels = load_pixels(table, chunk, 0, self.run.processor, Augmentation(), 0)
                    yield {"pixel_values": pixels.to(device)}

    def _captions(self, test: TestPairs):
        size, device = self.run.args.eval_batch_size, self.run.accelerator.device
        length = self.run.model_args.max_text_length
        for start in range(0, len(test.texts), size):
            tokens = tokenize(self.run.tokenizer, test.texts[start : start + size], length)
            yield {name: part.to(device) for name, part in tokens.items()}

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _index(self, name: str, texts: Tensor, images: Tensor) -> None:
        """Keep an increment's galleries as its own model embeds them."""
        if self.run.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = save({"texts": texts.contiguous(), "images": images.contiguous()})
            write_atomically(self._file(name), content)
        self.run.accelerator.wait_for_everyone()


def _chosen(count: int) -> np.ndarray:
    """Places of stored items to embed again: the same ones each time."""
    return np.sort(np.random.default_rng(0).permutation(count)[:_CALIBRATION])
