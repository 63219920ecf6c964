# SPDX-License-Identifier: Apache-2.0
"""Arguments of train_mclfir.py: flags, or one YAML recipe that flags override."""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..configuration_mclfir import ADAPTER_POLICIES, HEAD_TYPES, MASK_TYPES
from ..configuration_mclfir_text import POOLINGS
from ..continual import METHODS

TASKS = ("attribute", "text-image")
HEAD_STARTS = ("random", "ridge")
HEAD_FINISHES = ("learned", "ridge")
DEFAULT_RECIPE = "atelier"
# Of captions whose text encoder has no space in common with the trunk yet: a solved one to begin with, and steps
# that are not so long that they lose it (README, "Captions and images").
_TWO_TOWERS = {"head_start": "ridge", "learning_rate": 1e-4, "epochs": 3.0, "temperature": 0.07, "embed_dim": 128}
_ABOUT = """Learn increments, one after the other, without forgetting: of attributes, or, with --task text-image, of
captions and images. Without --dataset, --trunk and --recipe: the drawn data set, by the recipe atelier. Defaults are
those without a recipe; with --task text-image and --text_encoder """ + ", ".join(
    f"{name} is {value}" for name, value in _TWO_TOWERS.items()
)  # fmt: skip
_MODEL_CARDS = Path(__file__).resolve().parents[2] / "model_cards"


@dataclass
class ModelArguments:
    """The trunk, its adapters and heads; see `MclfirConfig`."""

    trunk: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a vision model (in a recipe also its configuration)"}
    )
    pretrained: bool = field(default=True, metadata={"help": "take the trunk's weights (False: draw them)"})
    image_height: int = field(default=224, metadata={"help": "pixels"})
    image_width: int = field(default=224, metadata={"help": "pixels"})
    adapter_policy: str = field(default="per_increment", metadata={"help": ", ".join(ADAPTER_POLICIES)})
    base_training: str = field(default="none", metadata={"help": "none, or first_increment: the trunk learns there"})
    num_adapted_blocks: int | None = field(default=None, metadata={"help": "last blocks with adapters; default: 1/4"})
    out_indices: list[int] | None = field(default=None, metadata={"help": "units whose maps the heads fuse"})
    lora_rank: int = field(default=8, metadata={"help": "rank of the adapters"})
    lora_alpha: float = field(default=16.0, metadata={"help": "their scale is alpha / rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before the adapters"})
    prompt_pool_size: int = field(default=10, metadata={"help": "prompts (adapter_policy prompts, for l2p)"})
    prompt_length: int = field(default=5, metadata={"help": "tokens of such a prompt"})
    prompts_per_image: int = field(default=5, metadata={"help": "how many of them an image gets"})
    head_type: str = field(default="mclfir", metadata={"help": ", ".join(HEAD_TYPES)})
    embed_dim: int = field(default=32, metadata={"help": "size of an embedding"})
    use_pooled_features: bool = field(default=True, metadata={"help": "heads project the pooled features too"})
    gate_dim: int = field(default=32, metadata={"help": "hidden size of the channel gate"})
    use_spatial_attention: bool = field(default=True, metadata={"help": "heads look at the maps"})
    use_channel_attention: bool = field(default=True, metadata={"help": "heads gate channels"})
    attribute_dim: int | None = field(
        default=None, metadata={"help": "size of a learned attribute embedding (baseline heads); default: embed_dim"}
    )
    projection_dim: int = field(
        default=0, metadata={"help": "size of closed_form's random projection of pooled features (ranpac); 0: none"}
    )
    use_low_level_branch: bool = field(default=True, metadata={"help": "ag_man fuses a lower map"})
    use_self_gate: bool = field(default=True, metadata={"help": "ag_man gates the attribute embedding with itself"})
    use_spatial_gate: bool = field(default=True, metadata={"help": "ag_man has a 7x7 spatial gate"})
    use_masks: bool = field(default=True, metadata={"help": "csn and ag_man have a mask an attribute"})
    mask_type: str = field(default="blocks", metadata={"help": f"of these masks: {', '.join(MASK_TYPES)}"})
    use_attribute_classification: bool = field(
        default=False, metadata={"help": "ag_man also predicts which attribute an image was drawn for"}
    )
    text_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of a text model. Attributes: prompts are its embeddings of the names. "
            "Text-image: the text tower (in a recipe also its configuration); default: the other tower of --trunk"
        },
    )
    num_adapted_text_blocks: int | None = field(
        default=None, metadata={"help": "last blocks of the text tower with adapters; default: 1/4 (text-image)"}
    )
    image_pooling: str = field(
        default="auto", metadata={"help": f"what becomes of a photo's tokens: {', '.join(POOLINGS)} (text-image)"}
    )
    text_pooling: str = field(default="auto", metadata={"help": "the same of a caption's tokens (text-image)"})
    num_shared_layers: int = field(
        default=0, metadata={"help": "layers behind the projections that both towers share (text-image)"}
    )
    max_text_length: int = field(default=64, metadata={"help": "tokens that are kept of a caption (text-image)"})
    vocabulary_size: int = field(
        default=8000,
        metadata={"help": "of the tokeniser learned from the captions where the text tower brings none (text-image)"},
    )


@dataclass
class DataArguments:
    """What is learned from, and in which order."""

    dataset: str = field(
        default="atelier",
        metadata={"help": "'atelier' (drawn here), a folder of data_scripts, or images + labels.csv"},
    )
    task: str = field(default="attribute", metadata={"help": f"what is searched by: {', '.join(TASKS)}"})
    increments: str | None = field(default=None, metadata={"help": "JSON file; default: the data set's own"})
    increments_key: str | None = field(default=None, metadata={"help": "which list, where the file has several"})
    reverse_increments: bool = field(default=False, metadata={"help": "last increment first"})
    evaluate_on: str = field(
        default="query", metadata={"help": "query: query against gallery. val: val against itself, for tuning"}
    )
    max_bad_fraction: float = field(default=0.01, metadata={"help": "stop when more rows than this are unusable"})
    streaming: bool = field(default=False, metadata={"help": "stream the training rows instead of a table"})
    shuffle_buffer: int = field(default=2048, metadata={"help": "rows a stream chooses its doublets from"})
    num_views: int = field(default=2, metadata={"help": "views of a training image: itself, its mirror image, crops"})
    min_crop: float = field(default=0.6, metadata={"help": "smallest share of the area that a crop keeps"})
    cache_dir: str | None = field(default=None, metadata={"help": "feature cache; default: OUTPUT_DIR/cache"})
    max_cache_gib: float = field(default=20.0, metadata={"help": "cap of the feature cache; 0 switches it off"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images where nothing is cached"})

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"--task must be one of {TASKS}; got {self.task!r}.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"--max_bad_fraction is a share of the rows, 0..1; got {self.max_bad_fraction}.")
        for name in ("num_views", "shuffle_buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1; got {getattr(self, name)}.")


@dataclass
class RunArguments:
    """How an increment is learned, and what is kept."""

    output_dir: str = field(default="runs/mclfir", metadata={"help": "checkpoints, report and pictures go here"})
    method: str = field(default="fine_tuning", metadata={"help": ", ".join(METHODS)})
    head_start: str = field(
        default="random",
        metadata={
            "help": "where heads begin: random, or ridge: the regression from pooled features to values, which pays "
            "where epochs are few"
        },
    )
    head_finish: str = field(
        default="learned",
        metadata={
            "help": "how heads end: as they were learned, or ridge: solved anew by that regression from the features "
            "that were learned, which takes a pass"
        },
    )
    refine_spaces: bool = field(
        default=True,
        metadata={"help": "whiten, centre and sharpen the spaces of an increment once it is learned"},
    )
    epochs: float = field(
        default=10.0,
        metadata={"help": "rows seen an increment, as a multiple of its rows; 0 only with --head_finish ridge"},
    )
    first_epochs: float | None = field(default=None, metadata={"help": "epochs of the first increment, if others"})
    batch_size: int = field(default=128, metadata={"help": "rows of a batch over all processes, even"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches an optimiser step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak, for heads and adapters"})
    base_learning_rate: float = field(default=1e-3, metadata={"help": "peak, for a trunk that learns"})
    weight_decay: float = field(default=0.01, metadata={"help": "of AdamW"})
    warmup_fraction: float = field(default=0.2, metadata={"help": "share of the steps with a rising rate"})
    loss: str = field(default="infonce", metadata={"help": "of the doublets: infonce or triplet"})
    temperature: float = field(default=0.1, metadata={"help": "of InfoNCE"})
    learn_temperature: bool = field(default=False, metadata={"help": "the temperature is where it starts (infonce)"})
    same_value: str = field(
        default="positives",
        metadata={"help": "what rows of the anchor's value are: positives, masked or, as published, negatives"},
    )
    margin: float = field(default=0.2, metadata={"help": "of the triplet loss, in cosine"})
    mining: str = field(default="random", metadata={"help": "a triplet's negative: random, all or semi_hard"})
    value_balance: float = field(default=1.0, metadata={"help": "1: values drawn uniformly; 0: as they occur"})
    prototype_weight: float = field(default=0.5, metadata={"help": "of InfoNCE against learned prototypes of values"})
    classification_weight: float = field(
        default=0.0, metadata={"help": "of telling which attributes an image is labelled for (heads that do so)"}
    )
    learn_loss_weights: bool = field(
        default=False, metadata={"help": "learn the weights of doublets, prototypes and classification from there on"}
    )
    ema_decay: float = field(default=0.99, metadata={"help": "of the teacher (ema_distillation)"})
    distillation_weight: float = field(default=1.0, metadata={"help": "of the teacher's term (ema_distillation, lwf)"})
    distill_on: str | None = field(
        default=None,
        metadata={
            "help": "embeds, similarities between rows, or (ema_distillation) the trunk's pooled features: pooled; "
            "default: embeds, of lwf similarities"
        },
    )
    teacher_update: bool = field(default=True, metadata={"help": "False: it stays what the increment started from"})
    teacher_view: str = field(default="other", metadata={"help": "other: not the one the student sees; same: that"})
    ewc_weight: float = field(default=1e3, metadata={"help": "weight of ewc's penalty"})
    ewc_online: bool = field(default=False, metadata={"help": "ewc keeps one term, not one an increment"})
    ewc_decay: float = field(default=0.95, metadata={"help": "what ewc_online keeps of it at each increment"})
    ewc_batches: int = field(default=16, metadata={"help": "batches by which ewc tells what an increment depends on"})
    exemplars: int = field(default=200, metadata={"help": "rows that replay keeps of earlier increments; 0: none"})
    exemplars_per: str = field(
        default="total", metadata={"help": "that number is of all increments together: total, or of each value: value"}
    )
    replay_weight: float = field(default=1.0, metadata={"help": "weight of the exemplars' loss (replay)"})
    exemplar_means: bool = field(
        default=False,
        metadata={"help": "replay: after each increment old values' means are those of their exemplars (iCaRL)"},
    )
    replay_batch_size: int = field(
        default=64, metadata={"help": "rows of exemplars a batch brings beside its own (methods that keep some), even"}
    )
    orthogonality_weight: float = field(default=0.5, metadata={"help": "of new adapters to earlier ones (o_lora)"})
    key_weight: float = field(default=0.5, metadata={"help": "of drawing keys to the images that chose them (l2p)"})
    score_temperature: float | None = field(
        default=None,
        metadata={"help": "of the softmax over values (simplecil, ranpac); 0: none; default: 0.01, of ranpac 0.1"},
    )
    mixed_precision: str = field(default="auto", metadata={"help": "auto (bf16 where a GPU has it), no, bf16, fp16"})
    eval_batch_size: int = field(default=64, metadata={"help": "images embedded at a time"})
    save_steps: int = field(default=200, metadata={"help": "steps between saved states; 0: only at increments"})
    resume: bool = field(default=False, metadata={"help": "go on from the last saved state of OUTPUT_DIR"})
    seed: int = field(default=0, metadata={"help": "of weights, batches and views"})
    report_to: str = field(default="tensorboard", metadata={"help": "accelerate's trackers, comma-separated, or none"})
    plots: bool = field(default=True, metadata={"help": "draw the pictures of the report"})

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"--method must be one of {sorted(METHODS)}; got {self.method!r}.")
        least = min(self.epochs, self.epochs if self.first_epochs is None else self.first_epochs)
        if least < 0 or (least == 0 and self.head_finish != "ridge"):
            raise ValueError(
                f"--epochs must be above 0, or with --head_finish ridge 0; got {self.epochs} (first: "
                f"{self.first_epochs})."
            )
        for name in ("batch_size", "replay_batch_size"):
            size = getattr(self, name)
            if size < 2 or size % 2:
                raise ValueError(f"--{name} must be even, since rows come in doublets; got {size}.")
        for name, known in (("head_start", HEAD_STARTS), ("head_finish", HEAD_FINISHES)):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name} must be one of {known}; got {getattr(self, name)!r}.")
        at_least = {"gradient_accumulation_steps": 1, "eval_batch_size": 1, "save_steps": 0, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}; got {getattr(self, name)}.")
        METHODS[self.method](self)  # it checks its settings when built: now, before any data are opened


def parse_arguments(arguments: list[str] | None = None) -> tuple[ModelArguments, DataArguments, RunArguments]:
    """
    Flags, or `--recipe NAME_OR_FILE` (a YAML file of them, or a folder of model_cards), or both: flags win.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: a recipe names a setting that does not exist; a setting is out of its range, or two of them do not
            go together.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = HfArgumentParser((ModelArguments, DataArguments, RunArguments), prog="mclfir train", description=_ABOUT)
    parser.add_argument("--recipe", help="YAML file of settings, or the name of a folder of model_cards")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "trunk", "dataset", "task", "text_encoder"):
        first.add_argument(f"--{name}")
    first.add_argument("-h", "--help", action="store_true")
    given, _ = first.parse_known_args(arguments)
    recipe = given.recipe
    if recipe is None and given.trunk is None and given.dataset in (None, DEFAULT_RECIPE) and not given.help:
        recipe = DEFAULT_RECIPE
    settings = read_recipe(recipe) if recipe else {}
    task, text_encoder = given.task or settings.get("task"), given.text_encoder or settings.get("text_encoder")
    if task == "text-image" and text_encoder:
        settings = _TWO_TOWERS | settings
    known = {action.dest for action in parser._actions} - {"help", "recipe"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"Recipe {recipe}: unknown settings {unknown}; known are {sorted(known)}.")
    parser.set_defaults(**settings)
    model_args, data_args, args = parser.parse_args_into_dataclasses(args=arguments)[:3]
    if data_args.task == "text-image":
        _check_text_image(model_args, data_args, args)
    for name, other in (("head_start", "random"), ("head_finish", "learned")):
        if data_args.streaming and getattr(args, name) == "ridge":
            raise ValueError(
                f"--{name} ridge looks at rows of an increment beside those that are learned from, which a stream "
                f"does not offer; leave --streaming out, or take --{name} {other}."
            )
    if data_args.streaming and METHODS[args.method].needs_rows:
        raise ValueError(
            f"--method {args.method} looks at the rows of an increment again, which a stream does not offer; leave "
            "--streaming out."
        )
    if model_args.use_attribute_classification != (args.classification_weight > 0):
        raise ValueError(
            "use_attribute_classification (a branch of the heads) and classification_weight above 0 (its loss) go "
            f"together; got {model_args.use_attribute_classification} and {args.classification_weight}. Set both or "
            "neither."
        )
    return model_args, data_args, args


def _check_text_image(model_args: ModelArguments, data_args: DataArguments, args: RunArguments) -> None:
    """Raises ValueError for settings that captions and images leave nothing to do."""
    if "text-image" not in METHODS[args.method].tasks:
        able = [name for name, method in METHODS.items() if "text-image" in method.tasks]
        raise ValueError(f"--method {args.method} learns attributes only; --task text-image takes one of {able}.")
    wrong = {
        "--loss": (args.loss, "infonce"),
        "--streaming": (data_args.streaming, False),
        "--exemplar_means": (args.exemplar_means, False),
        "--classification_weight": (args.classification_weight, 0.0),
        "--learn_loss_weights": (args.learn_loss_weights, False),
        # Towers stay as they were pretrained (or drawn); what is learned are adapters and projections.
        "--base_training": (model_args.base_training, "none"),
    }
    for flag, (given, only) in wrong.items():
        if given != only:
            raise ValueError(f"{flag} {given} is for attributes; with --task text-image leave it at {only}.")


def read_recipe(recipe: str) -> dict:
    """Settings of a YAML file, or of `model_cards/NAME/recipe.yaml`. FileNotFoundError, ValueError as above."""
    path = Path(recipe)
    if not path.is_file():
        path = _MODEL_CARDS / recipe / "recipe.yaml"
    if not path.is_file():
        names = sorted(folder.parent.name for folder in _MODEL_CARDS.glob("*/recipe.yaml"))
        raise FileNotFoundError(f"There is no recipe file {recipe!r} and no model card of that name; cards: {names}.")
    settings = yaml.safe_load(path.read_text()) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"Recipe {path} must hold 'setting: value' lines; got {type(settings).__name__}.")
    return settings
