# SPDX-License-Identifier: Apache-2.0
"""One increment: its optimiser, its steps, its saved states."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import distributed, nn
from tqdm import tqdm

from ..continual import ContinualMethod
from .batches import IncrementBatches, StreamBatches, to_device
from .checkpoint import load_state, read_state, save_state
from .cost import Cost, count_flops, peak_memory_bytes
from .prefetch import Prefetcher

logger = get_logger(__name__)
_LOSS_EVERY = 10  # steps between looks at the loss: each look waits for the device


@dataclass
class Progress:
    """What a run has done so far: plain data, saved with every state."""

    cost: Cost = field(default_factory=Cost)
    cost_per_increment: list[dict] = field(default_factory=list)
    loss: list[dict] = field(default_factory=list)
    history: list[list[dict]] = field(default_factory=list)
    scores: list[list[float | None]] = field(default_factory=list)
    scores_unknown: list[list[float | None]] = field(default_factory=list)  # nobody says whose value a query shows
    initial_trunk: dict | None = None
    zero_shot: list[float] = field(default_factory=list)
    drift: list[list[dict]] = field(default_factory=list)  # of towers, after each increment (text-image)
    cached: list[str] = field(default_factory=list)  # feature files whose filling is on the bill

    def charge(self, name: str, bill: Cost, device: torch.device, kept: dict[str, int]) -> None:
        """Put the bill of an increment to the rest; `kept` is what is stored after it."""
        bill.peak_memory_bytes = peak_memory_bytes(device)
        self.cost.add(bill)
        self.cost_per_increment.append({"increment": name} | bill.to_dict() | kept)

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> "Progress":
        """Back from JSON."""
        return cls(**(content | {"cost": Cost(**content["cost"])}))


class IncrementTrainer:
    """
    Trains what `model.set_trainable(increment_id)` freed, on batches that know their step.

    Args:
        args: `RunArguments`.
        state_folder: where the state inside an increment is saved.
        identity: gives what is saved with every state, for a resumed run to compare.
    """

    def __init__(self, accelerator: Accelerator, args, state_folder: Path, identity: Callable[[], dict] = dict):
        self.accelerator, self.args, self.state_folder = accelerator, args, state_folder
        self.identity = identity

    def num_steps(self, num_rows: int, increment_id: int) -> int:
        """Optimiser steps of an increment: `epochs` times its rows, at least one where there are any epochs."""
        first = increment_id == 0 and self.args.first_epochs is not None
        epochs = self.args.first_epochs if first else self.args.epochs
        return math.ceil(epochs * num_rows / (self.args.batch_size * self.args.gradient_accumulation_steps))

    def train(
        self,
        model,
        method: ContinualMethod,
        batches: IncrementBatches | StreamBatches,
        increment_id: int,
        name: str,
        progress: Progress,
        extra: Cost,
        num_workers: int = 0,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Run (or, where a state of this increment was saved, go on with) the increment; adds to `progress`. `finish` is
        what is done once it is learned, on the same bill.
        """
        args, bill, losses = self.args, Cost(), []
        total = self.num_steps(batches.num_rows, increment_id) if method.trains else 0
        if total:
            method.recent.limit(batches.num_rows)
            offset = len(progress.loss)
            bill, losses = self._learn(model, method, batches, increment_id, name, total, offset, num_workers)
        ending = time.perf_counter()
        rows = RowsOfIncrement(batches, total * args.gradient_accumulation_steps, self.accelerator.device)
        _, flops = count_flops(lambda: (method.end_increment(model, rows), finish()))
        bill.add(Cost(flops=flops * self.accelerator.num_processes, seconds=time.perf_counter() - ending))
        bill.add(extra)
        progress.loss += losses
        progress.charge(name, bill, self.accelerator.device, _kept(model, method))
        batches.end()

    def _learn(
        self, model, method, batches, increment_id: int, name: str, total: int, offset: int, num_workers: int
    ) -> tuple[Cost, list[dict]]:
        """All steps of the increment: their bill and their losses. `offset` is the number of steps before it."""
        args = self.args
        # Convolutions train somewhat faster this way (tests/benchmarks/steps.py); the weights keep their values.
        model.to(memory_format=torch.channels_last)
        self._share_batch_statistics(model)
        optimizer = self._optimizer(model, method)
        first, bill, losses = self._take_up(model, method, optimizer, batches, increment_id)
        wrapped, prepared = self.accelerator.prepare(model, optimizer)
        run = _Steps(self, wrapped, model, method, prepared, increment_id, total)
        started, before = time.perf_counter(), bill.seconds

        def bill_so_far() -> Cost:
            bill.seconds = before + time.perf_counter() - started
            return bill

        accumulation = args.gradient_accumulation_steps
        made = iter(batches.loader(first * accumulation, total * accumulation, num_workers))
        with Prefetcher(made, batches.state_dict, pin=self.accelerator.device.type == "cuda") as loader:
            self._run(run, loader, name, range(first, total), bill, losses, offset=offset,
                      save=lambda step: self._save(model, prepared, method, loader.state, {
                          "increment_id": increment_id, "step": step, "cost": bill_so_far().to_dict(), "loss": losses,
                      }))  # fmt: skip
        bill_so_far()
        self._release(wrapped, model)
        return bill, losses

    def _run(
        self,
        run: "_Steps",
        loader: Prefetcher,
        name: str,
        steps: range,
        bill: Cost,
        losses: list[dict],
        *,
        offset: int,
        save: Callable[[int], None],
    ) -> None:
        """The steps of an increment; puts them on the bill and their losses to `losses`, saves in between."""
        args = self.args
        waiting: list[tuple[int, dict]] = []
        bar = tqdm(steps, initial=steps.start, total=steps.stop, desc=f"learning {name}", unit="step",
                   disable=not self.accelerator.is_main_process)  # fmt: skip
        for step in bar:
            if bill.flops == 0:
                parts, flops = count_flops(lambda step=step: run.one(loader, step))
                per_step = flops * self.accelerator.num_processes
            else:
                parts, per_step = run.one(loader, step), bill.flops // step
            bill.flops += per_step
            bill.steps += 1
            bill.samples += run.num_rows * self.accelerator.num_processes
            bill.waiting_seconds += run.waited
            waiting.append((step, parts))
            saves = args.save_steps and (step + 1) % args.save_steps == 0 and step + 1 < steps.stop
            if len(waiting) == _LOSS_EVERY or step + 1 == steps.stop or saves:
                losses += self._look(name, waiting, bar, offset)
                waiting = []
            if saves:
                save(step + 1)

    def _release(self, wrapped, model) -> None:
        """The bare model again, the same on every process."""
        self._agree_on_buffers(model)
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        # As from_pretrained makes it, so that a checkpoint gives the very bits that were evaluated.
        model.to(memory_format=torch.contiguous_format)

    def _take_up(self, model, method, optimizer, batches, increment_id: int) -> tuple[int, Cost, list[dict]]:
        """Steps done, their bill and losses; weights, optimiser, method and batches are put where they stood."""
        saved = read_state(self.state_folder) if self.args.resume else None
        if saved is None or saved["increment_id"] != increment_id:
            return 0, Cost(), []
        method.load_state_dict(load_state(self.state_folder, model, optimizer))
        # With more processes than before there is no state for each; a stream tells so, a table needs none.
        batches.load_state_dict(saved["batches"][min(self.accelerator.process_index, len(saved["batches"]) - 1)])
        if self.accelerator.scaler is not None and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        return saved["step"], Cost(**saved["cost"]), saved["loss"]

    def _share_batch_statistics(self, model) -> None:
        """Batch normalisation that learns looks at the whole batch, not at each process's part of it."""
        trunk = model.mclfir.trunk
        learns = model.mclfir.trunk_trains and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trunk.modules()
        )
        if not learns or self.accelerator.num_processes == 1:
            return
        if self.accelerator.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(trunk)
        else:
            logger.warning(
                "the trunk learns with batch normalisation on several CPU processes: each normalises by its own part "
                "of the batch, so this increment differs from a run in one process (on GPUs it does not)."
            )

    def _agree_on_buffers(self, model) -> None:
        """Statistics that each process took from its own part of the batch: those of the first one stand."""
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def _optimizer(self, model, method: ContinualMethod) -> torch.optim.Optimizer:
        args = self.args
        groups = {
            "trunk": {"lr": args.base_learning_rate, "params": []},
            "added": {"lr": args.learning_rate, "params": []},
            "scales": {"lr": args.learning_rate, "params": [], "weight_decay": 0.0},
        }
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_trunk = name.startswith("mclfir.trunk.") and ".lora_" not in name
                groups["trunk" if is_trunk else "added"]["params"].append(parameter)
        for parameter in method.parameters():
            # A learned temperature or weight of a loss has no reason to be drawn to 0.
            groups["added" if parameter.ndim > 1 else "scales"]["params"].append(parameter)
        used = [group for group in groups.values() if group["params"]]
        return torch.optim.AdamW(used, weight_decay=args.weight_decay)

    def _look(self, name: str, waiting: list[tuple[int, dict]], bar, offset: int) -> list[dict]:
        rows = []
        for step, parts in waiting:
            values = {part: float(value) for part, value in parts.items()}
            bad = [part for part, value in values.items() if not math.isfinite(value)]
            if bad:
                raise FloatingPointError(
                    f"The loss of increment {name!r} is not a number at step {step} ({values}). Lower "
                    "--learning_rate, or use --mixed_precision no."
                )
            rows.append({"increment": name, "step": step} | values)
            self.accelerator.log({f"{name}/{part}": value for part, value in values.items()}, step=offset + step)
        bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}")
        return rows

    def _save(self, model, optimizer, method, state_of_batches: dict, state: dict) -> None:
        scaler = self.accelerator.scaler
        state = self.identity() | state | {
            "batches": gather_object([state_of_batches]),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        if self.accelerator.is_main_process:
            save_state(self.state_folder, model, optimizer.optimizer, method.state_dict(), state)
        self.accelerator.wait_for_everyone()


class RowsOfIncrement:
    """What an increment was learned from, for `ContinualMethod.end_increment`; batches before `first` were drawn."""

    def __init__(self, batches: IncrementBatches | StreamBatches, first: int, device: torch.device):
        self._batches, self._first, self._device = batches, first, device

    def chunks(self) -> Iterator[dict]:
        """See `IncrementRows`; of tables only."""
        return self._batches.chunks()

    def batches(self, num_batches: int) -> Iterator[dict]:
        """See `IncrementRows`."""
        for batch in self._batches.loader(self._first, self._first + num_batches, 0):
            yield to_device(batch, self._device, torch.float32)


class _Steps:
    """One optimiser step at a time, over its accumulated batches."""

    def __init__(self, trainer: IncrementTrainer, wrapped, model, method, optimizer, increment_id: int, total: int):
        self.accelerator, self.args = trainer.accelerator, trainer.args
        self.wrapped, self.model, self.method = wrapped, model, method
        self.optimizer, self.increment_id, self.total = optimizer, increment_id, total
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.dtype = next(model.parameters()).dtype
        self.waited = 0.0  # seconds in which the last step had no batch
        self.num_rows = 0  # of this process in the last step, exemplars included

    def one(self, loader, step: int) -> dict[str, torch.Tensor]:
        """Parts of the loss of one step, as the mean over its batches."""
        # Whatever is drawn in a step (dropout) depends on the step alone, so a resumed run draws the same.
        seed = np.random.SeedSequence((self.args.seed, self.increment_id, step)).generate_state(1)
        torch.manual_seed(int(seed[0]))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * _rate(step, self.total, self.args.warmup_fraction)
        self.wrapped.train()
        accumulation, sums = self.args.gradient_accumulation_steps, {}
        self.waited, self.num_rows = 0.0, 0
        for turn in range(accumulation):
            asked = time.perf_counter()
            batch = next(loader)
            self.waited += time.perf_counter() - asked
            batch = to_device(batch, self.accelerator.device, self.dtype)
            self.num_rows += sum(len(part["image_ids"]) for part in (batch, batch.get("replay")) if part)
            if turn + 1 < accumulation:
                with self.accelerator.no_sync(self.wrapped):
                    parts = self._backward(batch)
            else:
                parts = self._backward(batch)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / accumulation
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_step(self.model)
        # The loss for the gradients is scaled by the number of processes; what is told is the loss itself.
        return sums | {"loss": sums["loss"] / self.accelerator.num_processes}

    def _backward(self, batch: dict) -> dict[str, torch.Tensor]:
        with self.accelerator.autocast():
            parts = self.method.compute_loss(self.wrapped, batch)
        self.accelerator.backward(parts["loss"] / self.args.gradient_accumulation_steps)
        return parts


def _kept(model, method: ContinualMethod) -> dict[str, int]:
    """What is stored for later beside the trunk: bytes of adapters, heads and the method's state; photos."""
    size = next(model.parameters()).element_size() * sum(model.num_added_parameters().values())
    size += sum(buffer.nbytes for buffer in model.heads.buffers())
    for router in (model.router, getattr(model, "text_router", None)):
        size += sum(buffer.nbytes for buffer in router.buffers()) if router is not None else 0
    size += sum(tensor.nbytes for tensor in method.kept_state_dict().values())
    return {"stored_bytes": size, "exemplars": sum(len(rows) for rows in method.exemplars.values())}


def _rate(step: int, total: int, warmup_fraction: float) -> float:
    """Linear rise, then half a cosine down: the shape of the one-cycle policy (arXiv:1708.07120)."""
    warmup = max(1, round(total * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
