# SPDX-License-Identifier: Apache-2.0
"""A run: its model, its progress, its settings; fresh, or taken up where it was stopped."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch import nn

from ..base_mclfir import MclfirPreTrainedModel
from ..data.augmentation import Augmentation
from ..data.table import ImageTable
from ..modeling_mclfir import MclfirForImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from .batches import IncrementBatches, StreamBatches
from .checkpoint import STATE_FILE, increment_folder, load_increment, read_state, recover
from .cost import Cost, count_flops
from .feature_cache import FeatureCache
from .fused_spaces import describe_increment, not_described
from .loop import Progress
from .open_model import open_model
from .prompts import PromptEncoder
from .solved_heads import finish_heads, start_heads
from .space_refinement import refine_spaces, refresh_means

logger = get_logger(__name__)
# These may differ between a run and its resumption: they change nothing that is learned.
_FREE = {"resume", "save_steps", "report_to", "plots", "output_dir", "cache_dir", "num_workers"}


class Run:
    """
    What the main script carries from increment to increment.

    Args:
        data: `TrainingData`.
        settings: all arguments, for the report and for checking a resumption.
        num_finished: increments that are learned and saved.
    """

    model_class: type[MclfirPreTrainedModel] = MclfirForImageRetrieval

    def __init__(self, model_args, data_args, args, data, accelerator: Accelerator):
        self.model_args, self.data_args, self.args, self.accelerator = model_args, data_args, args, accelerator
        self.data = data
        self.settings = asdict(model_args) | asdict(data_args) | asdict(args)
        self.output_dir = Path(args.output_dir)
        self.progress, self.num_finished = Progress(), 0
        self.augmentation = Augmentation(min_crop=data_args.min_crop)
        self.cache = None
        if data_args.max_cache_gib > 0:
            folder = Path(data_args.cache_dir) if data_args.cache_dir else self.output_dir / "cache"
            self.cache = FeatureCache(folder, int(data_args.max_cache_gib * 2**30))
        self.prompts = self._open_prompts()
        self.model: MclfirPreTrainedModel
        self.processor: MclfirImageProcessor
        self.new_heads = range(0)  # of the increment that is being learned
        self.resting: dict[int, nn.Module] = {}  # refinements that its spaces have from increments before
        self.method_state: dict[str, torch.Tensor] = {}  # what the method kept of the increments finished

    def _open_prompts(self) -> PromptEncoder | None:
        return PromptEncoder(self.model_args.text_encoder) if self.model_args.text_encoder else None

    @property
    def saved_processor(self):
        """What is saved with a checkpoint to prepare its inputs."""
        return self.processor

    def start_fresh(self) -> None:
        """A new model on the named trunk."""
        set_seed(self.args.seed)  # whatever was drawn while the data were opened
        self.model, self.processor = self._open_model()

    def _open_model(self):
        return open_model(self.model_args, self.prompts)

    def take_up(self, folder: Path) -> None:
        """The model and the progress of a checkpoint."""
        self.model, state, self.method_state = load_increment(folder, self.model_class)
        self._open_processor(folder)
        self.progress, self.num_finished = Progress.from_dict(state["progress"]), state["num_finished"]

    def _open_processor(self, folder: Path) -> None:
        self.processor = MclfirImageProcessor.from_pretrained(folder)

    def identity(self) -> dict:
        """What makes it this run: saved with every state, compared by `check`; and the bad rows met so far."""
        return {
            "settings": self.settings,
            "learned_from": {
                "increments": [increment.to_dict() for increment in self.data.increments],
                "rows": {split: len(table) for split, table in self.data.tables.items()},
            },
            "bad_rows": self.data.bad_rows.state_dict(),
        }

    def check(self, state: dict) -> None:
        """Raises ValueError where a saved state is of a run with other settings, increments or data."""
        now = json.loads(json.dumps(self.identity()))
        # A setting that came with a later version was at its default before.
        usual = [asdict(type(part)()) for part in (self.model_args, self.data_args, self.args)]
        usual.append({"refine_spaces": False})  # the first version did not have that at all
        before = state | {"settings": usual[0] | usual[1] | usual[2] | usual[3] | state["settings"]}
        other = [
            f"{key}: {before[part].get(key)!r} before, {value!r} now"
            for part in ("settings", "learned_from")
            for key, value in now[part].items()
            if key not in _FREE and before[part].get(key) != value
        ]
        if other:
            raise ValueError(
                f"--resume needs what the run in {self.output_dir} was started with; different are "
                f"{'; '.join(other)}. Mend that, or choose another --output_dir."
            )
        self.data.bad_rows.load_state_dict(state["bad_rows"])

    def batches(self, increment_id: int, method) -> tuple[IncrementBatches | StreamBatches, Cost]:
        """The batches of an increment, and the bill of the feature cache that they are read from."""
        data_args, table, args = self.data_args, self.data.tables["train"], self.args
        first = 0 if method.retrains else increment_id
        increments = self.data.increments[first : increment_id + 1]
        one = self._read_by() | {
            "increment_id": None if method.retrains else self.serving(increment_id),
            "plan_seed": (args.seed, increment_id),
            "batch_size": args.batch_size,
            "teacher": method.needs_teacher_view,
        }
        if data_args.streaming:
            batches = StreamBatches(
                self.data.folder, table, increments, shuffle_buffer=data_args.shuffle_buffer,
                bad_rows=self.data.bad_rows, max_bad_fraction=data_args.max_bad_fraction, **one,
            )  # fmt: skip
            return batches, Cost()
        views, filling = self.cached_views(table)
        replay = [self._exemplars(increment_id, old, method, views) for old in method.exemplars]
        triplets = self.data.triplets["train"]
        batches = IncrementBatches(table, increments, views, triplets=triplets, replay=replay, **one)
        if lacking := batches.without_negatives():
            logger.warning(
                f"increment {increments[-1].name}: most batches of {args.batch_size} rows show a single value of "
                f"{', '.join(lacking)}, which teaches nothing to tell apart. Raise --batch_size, or learn fewer "
                "attributes at once."
            )
        return batches, filling

    def _read_by(self) -> dict:
        return {
            "num_views": self.data_args.num_views,
            "processor": self.processor,
            "augmentation": self.augmentation,
            "accelerator": self.accelerator,
            "value_balance": self.args.value_balance,
        }

    def _exemplars(self, increment_id: int, old: int, method, views) -> IncrementBatches:
        """Batches of an earlier increment's exemplars."""
        return IncrementBatches(
            self.data.tables["train"], [self.data.increments[old]], views, increment_id=self.serving(old),
            only=method.exemplars[old], plan_seed=(self.args.seed, increment_id, 1 + old),
            batch_size=self.args.replay_batch_size, **self._read_by(),
        )  # fmt: skip

    def serving(self, increment_id: int) -> int:
        """The model's increment that serves one of the data: another one where a space learns new values on."""
        increment, config = self.data.increments[increment_id], self.model.config
        if increment.name in config.increment_names:
            return config.increment_names.index(increment.name)
        return config.increment_of(config.attributes.index(increment.attributes[0]))

    def begin_increment(self, increment_id: int, method) -> MclfirPreTrainedModel:
        """New heads and adapter, drawn from a seed of their own, and everything else frozen; gives the model."""
        if method.retrains and increment_id:
            self.start_fresh()
            self.model.to(self.accelerator.device)
        first, before = 0 if method.retrains else increment_id, len(self.model.heads)
        for index in range(first, increment_id + 1):
            set_seed(int(np.random.SeedSequence((self.args.seed, index)).generate_state(1)[0]))
            self._open_space(self.data.increments[index])
        self.new_heads = range(before, len(self.model.heads))
        self._lay_refinements_aside(increment_id, method)
        learns = list(range(len(self.model.heads))) if method.retrains else self.serving(increment_id)
        names = self.model.set_trainable(learns, method.learns_old_heads, trunk=method.retrains or increment_id == 0)
        count = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        name = self.data.increments[increment_id].name
        logger.info(f"increment {name}: {count:,} parameters learn, in {len(names)} tensors")
        return self.model

    def _lay_refinements_aside(self, increment_id: int, method) -> None:
        """A space that learns on does so as it was learned, not as it was refined."""
        learns_on = range(len(self.model.heads)) if method.learns_old_heads else [self.serving(increment_id)]
        self.resting = {index: self.model.heads[index].refinement for index in learns_on if not method.retrains}
        for index in self.resting:
            self.model.heads[index].refinement = None

    def start_heads(self, increment_id: int, method, batches) -> Cost:
        """Begin new heads as `--head_start` says; gives the bill of it."""
        if not self._solves(method, "head_start"):
            return Cost()
        started = time.perf_counter()
        _, flops = count_flops(lambda: start_heads(self.model, self.new_heads, batches, self._seed(increment_id, 1)))
        return Cost(flops=flops * self.accelerator.num_processes, seconds=time.perf_counter() - started)

    def _solves(self, method, setting: str) -> bool:
        """Whether new heads are to be solved, at their start or finish, and can be; warns where they can't."""
        if getattr(self.args, setting) != "ridge" or not method.trains:
            return False
        if not len(self.new_heads):
            cause = "no heads are new, as a space learns its new values on"
        elif any(self.model.heads[place].pooled_projection is None for place in self.new_heads):
            cause = f"head_type {self.model.config.head_type!r} has none"
        elif self.model.mclfir.trunk_trains:
            cause = "the trunk learns, too"
        else:
            return True
        if not self.args.epochs:
            raise ValueError(f"With --epochs 0 only projections of a frozen trunk's features are learned; {cause}.")
        logger.warning(f"--{setting} ridge is for new projections of a frozen trunk's features; {cause}: left out.")
        return False

    def _seed(self, increment_id: int, purpose: int) -> int:
        return int(np.random.SeedSequence((self.args.seed, increment_id, purpose)).generate_state(1)[0])

    def finish_spaces(self, increment_id: int, method, batches) -> None:
        """What is worked out for the spaces of an increment once it is learned."""
        for index, refinement in self.resting.items():
            self.model.heads[index].refinement = refinement
        rows = method.recent.rows()
        if self._solves(method, "head_finish"):
            rows = finish_heads(self.model, self.new_heads, batches, self._seed(increment_id, 2)) or rows
        if self.args.refine_spaces and rows is not None:
            ids = range(len(self.model.heads)) if method.retrains else [self.serving(increment_id)]
            refine_spaces(self.model, ids, rows, self.num_values(increment_id, method))
            if self.args.exemplar_means:
                views = self.cached_views(self.data.tables["train"])[0]
                for old in method.exemplars.keys() - {increment_id}:
                    refresh_means(self.model, self.serving(old), self._exemplars(increment_id, old, method, views))
        self._describe_spaces(method)

    def _describe_spaces(self, method) -> None:
        """Where an attribute has several spaces, tell them apart: the new one, and the first when it gets company."""
        if self.data_args.streaming or method.by_pooled_features:
            return
        names = [increment.name for increment in self.data.increments]
        for increment_id in not_described(self.model):
            learned = names.index(self.model.config.increment_names[increment_id])
            describe_increment(self.model, increment_id, self.batches(learned, method)[0])

    def _open_space(self, increment) -> None:
        """New heads (and adapter); where a space is shared and only its values are new, it learns on as it is."""
        config = self.model.config
        known = increment.new_values and increment.attributes[0] in config.attributes
        if known and config.adapter_policy not in ("per_increment", "stacked"):
            owner = config.increments[config.increment_of(config.attributes.index(increment.attributes[0]))]
            if len(owner["attributes"]) > 1:
                raise ValueError(
                    f"With adapter_policy {config.adapter_policy!r} the space of {increment.attributes[0]!r} learns "
                    f"the new values of increment {increment.name!r} too, but it shares its heads with others of "
                    f"{owner['name']!r}. Give that attribute an increment of its own, or take 'per_increment'."
                )
            return
        prompts = self.prompts.encode(list(increment.attributes)) if self.prompts is not None else None
        self.model.add_increment(increment.name, list(increment.attributes), prompts, new_values=increment.new_values)

    def cached_views(self, table: ImageTable) -> tuple[list[np.ndarray] | None, Cost]:
        """Cached features of all views of the training rows and the bill of filling; None where they can't be kept."""
        if self.cache is None or self.model.mclfir.trunk_trains or self.model.mclfir.units.opaque:
            return None, Cost()
        views, num_filled, started = [], 0, time.perf_counter()
        for view in range(self.data_args.num_views):
            features = self.cache.open(
                self.model, self.processor, table, view, self.accelerator,
                augmentation=self.augmentation, seed=self.args.seed,
            )  # fmt: skip
            if features is None:
                return None, Cost()
            views.append(features)
            # A run pays for each file once, whoever filled it: a resumed run costs what an unbroken one does.
            name = Path(features.filename).name
            if name not in self.progress.cached:
                self.progress.cached.append(name)
                num_filled += len(table)
        seconds = time.perf_counter() - started
        return views, Cost(flops=num_filled * self._flops_of_shared_part(), seconds=seconds)

    def _flops_of_shared_part(self) -> int:
        size = self.processor.size
        pixels = torch.zeros(1, 3, size["height"], size["width"], device=self.accelerator.device)
        with torch.no_grad():
            return count_flops(lambda: self.model.mclfir.shared_forward(pixels))[1]

    def num_values(self, increment_id: int, method) -> list[int]:
        """Of each attribute that is learned: values in the whole data set; 1 where only triplets are known."""
        config, serving = self.model.config, self.serving(increment_id)
        ids = range(len(self.model.heads)) if method.retrains else [serving]
        names = [config.attributes[place] for index in ids for place in config.attribute_range(index)]
        return [max(1, len(self.data.tables["train"].values(name))) for name in names]

    def close(self) -> None:
        """End the trackers."""
        self.accelerator.end_training()


def open_run(model_args, data_args, args, data, accelerator: Accelerator, run_class: type[Run] = Run) -> Run:
    """
    A run of these arguments: fresh, or with `--resume` from the last checkpoint in OUTPUT_DIR.

    Raises:
        FileExistsError: OUTPUT_DIR holds a run and `--resume` was not given.
        ValueError: `--resume` with other settings, increments or data than the run was started with.
    """
    run = run_class(model_args, data_args, args, data, accelerator)
    folders = [increment_folder(run.output_dir, index) for index in range(len(data.increments))]
    for folder in [*folders, run.output_dir / "last"]:
        if accelerator.is_main_process:
            recover(folder)
    accelerator.wait_for_everyone()
    finished = [folder for folder in folders if (folder / STATE_FILE).exists()]
    saved = [*finished, *(folder for folder in [run.output_dir / "last"] if (folder / STATE_FILE).exists())]
    if saved and not args.resume:
        raise FileExistsError(
            f"{run.output_dir} holds a run already. Add --resume to go on with it, or choose another --output_dir."
        )
    for folder in saved[-1:]:
        run.check(read_state(folder))
    if finished:
        run.take_up(finished[-1])
        logger.info(f"going on from {finished[-1]}")
    else:
        run.start_fresh()
    run.model.to(accelerator.device)
    flat = {key: value for key, value in run.settings.items() if isinstance(value, int | float | str | bool)}
    accelerator.init_trackers("tracking", config=flat)
    return run
