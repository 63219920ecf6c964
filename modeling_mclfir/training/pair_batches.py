# SPDX-License-Identifier: Apache-2.0
"""The training batches of text-image retrieval: captions and their images, from a table or from cached features."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from ..data.augmentation import Augmentation
from ..data.collators import local_slice
from ..data.table import ImageTable
from .batches import TableBatches, draw_views, parts_of_rows, to_device
from .caption_tokens import CaptionTokens


class PairBatches(TableBatches):
    """
    Item `step` is this process's slice of the global batch of that step: of n pairs 2n rows, caption, image, caption…

    Every pair comes once an epoch, in an order of its own each time; a batch runs on into the next epoch, of a small
    increment into several. Of an image's captions one is drawn, and of its views one. Pairs of the same photo, or of
    which one has the other's caption among its own, are labelled alike: they are each other's, never negatives.

    Args:
        table: all training rows.
        rows: (n,) of the table, those that are learned from; each has a caption.
        captions: of the table.
        views: cached features of each view, or None: images are decoded and augmented for every batch.
        num_views: how many views there are (cached), or how many to draw from (images).
        increment_id: the model's increment that learns it; None: all that the model has.
        plan_seed: any tuple of whole numbers.
        batch_size: rows over all processes, twice the pairs.
        teacher: whether another view (and, where there is one, another caption) is wanted of each pair.
        replay: batches of earlier increments' exemplars, of which each batch brings one by turns.

    Raises:
        ValueError: no rows.
    """

    def __init__(
        self,
        table: ImageTable,
        rows: np.ndarray,
        captions: CaptionTokens,
        views: list[np.ndarray] | None,
        num_views: int,
        processor,
        augmentation: Augmentation,
        accelerator: Accelerator,
        *,
        increment_id: int | None,
        plan_seed: tuple[int, ...],
        batch_size: int,
        teacher: bool = False,
        replay: Sequence["PairBatches"] = (),
    ):
        if not len(rows):
            raise ValueError(f"There is no pair of a caption and an image to learn from in split {table.split!r}.")
        super().__init__(
            table, views, num_views, processor, augmentation, accelerator, increment_id=increment_id, seed=plan_seed,
            teacher=teacher, replay=replay,
        )  # fmt: skip
        self.rows, self.captions = np.asarray(rows), captions
        self.num_pairs, self.num_rows = batch_size // 2, 2 * len(self.rows)
        rows_of_process = local_slice(batch_size, accelerator.process_index, accelerator.num_processes)
        self.local = slice(rows_of_process.start // 2, rows_of_process.stop // 2)

    def draw(self, step: int) -> np.ndarray:
        """Rows of the global batch: the next ones of this epoch's order, whose end the next epoch's fills up."""
        start, stop, found = step * self.num_pairs, (step + 1) * self.num_pairs, []
        while start < stop:
            epoch, place = divmod(start, len(self.rows))
            order = np.random.default_rng((*self.seed, epoch)).permutation(self.rows)
            found.append(order[place : place + stop - start])
            start += len(found[-1])
        return np.concatenate(found)

    def __getitem__(self, step: int) -> dict:
        rows = self.draw(step)
        # Drawn for the global batch and then cut, so that the number of processes makes no difference.
        views, others = draw_views((*self.seed, step, 1), len(rows), self.num_views)
        codes, further = self._draw_captions(rows, step)
        groups = torch.from_numpy(self._groups(rows, codes)[self.local])
        rows, views, others, codes, further = (part[self.local] for part in (rows, views, others, codes, further))
        batch = {
            "inputs": self._inputs(rows, views, codes, step),
            "labels": groups.repeat_interleave(2)[:, None],
            # A caption is no image: rows 2k and 2k + 1 are to meet.
            "image_ids": torch.from_numpy(np.stack([2 * rows, 2 * rows + 1], axis=1).ravel()),
            "sides": torch.arange(2).repeat(len(rows)),
        }
        if self.teacher:
            batch["teacher_inputs"] = self._inputs(rows, others, further, step)
        return batch | self._replayed(step)

    def _groups(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """A number for each pair of the batch, equal where they are each other's: (n,)."""
        groups = np.arange(len(rows))
        first: dict[tuple[str, int], int] = {}
        photos = self.table.image_ids[rows]
        drawn = set(codes.tolist())
        for place, row in enumerate(rows):
            keys = [("photo", photos[place]), ("drawn", codes[place])]
            # Its other captions count where the batch has them: they say what this image shows, too.
            keys += [("drawn", code) for code in self.captions.codes[row] if code in drawn]
            for key in keys:
                other = groups[first.setdefault(key, place)]
                groups[groups == max(other, groups[place])] = min(other, groups[place])
        return groups

    def _draw_captions(self, rows: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """A caption for each row, and another one (where there are others) for the teacher."""
        rng = np.random.default_rng((*self.seed, step, 3))
        counts = np.array([len(self.captions.codes[row]) for row in rows])
        first = rng.integers(0, counts)
        other = (first + rng.integers(1, np.maximum(counts, 2))) % counts
        return tuple(
            np.array([self.captions.codes[row][place] for row, place in zip(rows, places, strict=True)])
            for places in (first, other)
        )

    def _inputs(self, rows: np.ndarray, views: np.ndarray, codes: np.ndarray, step: int) -> dict:
        return self._image_inputs(rows, views, step) | self.captions.inputs(codes)

    def chunks(self, size: int = 64, most: int | None = None) -> Iterator[dict]:
        """
        See `IncrementRows`: images alone, all labelled alike (an increment's exemplars are chosen from all of them);
        `text_inputs` has the first caption of each.
        """
        for chunk in parts_of_rows(self.rows, size, most):
            batch = {
                "inputs": self._image_inputs(chunk, np.zeros(len(chunk), dtype=np.int64), 0),
                "text_inputs": self.captions.inputs(np.array([self.captions.codes[row][0] for row in chunk])),
                "labels": torch.zeros(len(chunk), 1, dtype=torch.int64),
                "image_ids": torch.from_numpy(self.table.image_ids[chunk]),
                "rows": torch.from_numpy(chunk),
            }
            yield to_device(batch, self.device, torch.float32)
