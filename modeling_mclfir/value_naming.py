# SPDX-License-Identifier: Apache-2.0
"""Values of attributes named by text, without training on them: "a photo of a red base colour" (floor 5)."""

import re
from collections.abc import Sequence
from string import Formatter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from .data.augmentation import Augmentation
from .data.table import ImageTable
from .metrics import count_relevant, expected_average_precision, mean_over_queries, recall_at_k
from .metrics.by_scores import average_precision_by_scores
from .metrics.ranking import place_of, to_grid
from .routing_mclfir import space_weights
from .text_spaces_mclfir import ROUTE_TEMPERATURE
from .training.feature_cache import load_pixels
from .voting_mclfir import ValuePrediction

TEMPLATES = ("a photo of a {value} {attribute}",)
# A prompt tells less of its increment than a caption, for which 0.02 is the router's own. Chosen on Myntra's val.
PROMPT_TEMPERATURE = 0.05
_BLANKS = re.compile(r"[\s_-]+")
# Before a capital after a small letter or a digit, or one that begins a word after capitals: "baseColour", "SKUCode".
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LEAST_WEIGHT = 1e-12  # of a space: its logarithm is finite


def attribute_words(attribute: str) -> str:
    """
    An attribute's name as words.

        >>> attribute_words("baseColour"), attribute_words("sleeve_length"), attribute_words("neck-line")
        ('base colour', 'sleeve length', 'neck line')
    """
    return value_words(_HUMPS.sub(" ", attribute)).lower()


def value_words(value: str) -> str:
    """A value as words: '_' and '-' are blanks, letters stay as they are."""
    return _BLANKS.sub(" ", value).strip()


def value_prompts(attribute: str, values: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[list[str]]:
    """
    Of each template the prompts of all values.

    Args:
        templates: texts with {value} and, if wanted, {attribute}.

    Raises:
        ValueError: no template, one without {value}, one with another field.

        >>> value_prompts("baseColour", ["navy_blue", "Red"], ["{value} {attribute}", "{value}"])
        [['navy blue base colour', 'Red base colour'], ['navy blue', 'Red']]
    """
    check_templates(templates)
    words = {"attribute": attribute_words(attribute)}
    return [[template.format(value=value_words(value), **words) for value in values] for template in templates]


def check_templates(templates: Sequence[str]) -> None:
    """The errors of `value_prompts`."""
    if not templates or isinstance(templates, str):
        raise ValueError(f"Expected a list of templates such as {TEMPLATES[0]!r}; got {templates!r}.")
    for template in templates:
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"Template {template!r} cannot be read ({error}); write {{{{ for a brace.") from error
        plain = all(not spec and not conversion for _, _, spec, conversion in parts)
        fields = {name for _, name, _, _ in parts if name is not None}
        if "value" not in fields or not plain or fields - {"value", "attribute"}:
            raise ValueError(
                f"Template {template!r} must have the field {{value}}, may have {{attribute}}, and nothing else in "
                f"braces, as {TEMPLATES[0]!r}."
            )


class Embedded(NamedTuple):
    """
    Prompts or photos in the spaces that are asked.

    Attributes:
        embeds: unit-length (N, S, D).
        weights: (N, S), rows that sum to 1: which space each belongs to, as its own side's router sees it.
    """

    embeds: Tensor
    weights: Tensor


class ValueNamer:
    """
    Ranks the values of any attribute for photos by text.

    With several spaces and none named, the model's routers weigh them for each photo and each prompt.

    Args:
        model: `MclfirForTextImageRetrieval`.
        processor: its `MclfirProcessor`.
        templates: what is said of a value; the embeddings of several are averaged.
        increment: the name of the one whose space is asked; None: all of them.
        prompt_temperature: of the router of prompts, see `space_weights`; infinity: every value counts alike in every
            space.

    Raises:
        ValueError: a template without {value}, an unknown increment, a model without increments, several spaces that
            nothing tells apart (`describe_increment`).

    Example:
    ```python
    namer = ValueNamer(model, processor)
    namer.name_values(processor(images=images)["pixel_values"], "baseColour", ["Red", "Navy Blue"], top=1)
    ```
    """

    def __init__(
        self,
        model,
        processor,
        templates: Sequence[str] = TEMPLATES,
        increment: str | None = None,
        prompt_temperature: float = PROMPT_TEMPERATURE,
    ):
        check_templates(templates)
        if not prompt_temperature > 0:
            raise ValueError(f"prompt_temperature must be above 0; got {prompt_temperature}.")
        names = model.config.increment_names
        if increment is not None and increment not in names:
            raise ValueError(f"There is no increment {increment!r}; the model has {', '.join(names) or 'none'}.")
        if not len(model.heads):
            raise ValueError("This model has no increment yet; call add_increment(name) first.")
        self.spaces = list(range(len(names))) if increment is None else [names.index(increment)]
        missing = [names[space] for space in self.spaces if "router" not in model.config.increments[space]]
        if missing and len(self.spaces) > 1:
            raise ValueError(
                f"Nothing tells the space of increment {missing[0]!r} from others; name an increment, or call "
                "describe_increment for each."
            )
        self.model, self.processor, self.templates = model.eval(), processor, tuple(templates)
        self.prompt_temperature = prompt_temperature
        self.scales = torch.tensor([float(model.heads[space].logit_scale.exp()) for space in self.spaces])

    @torch.no_grad()
    def embed_values(self, attribute: str, values: Sequence[str]) -> Embedded:
        """Values → their prompts, averaged over templates, V rows. ValueError: no values."""
        if not len(values):
            raise ValueError(f"Attribute {attribute!r} has no values to name.")
        parts = []
        for prompts in value_prompts(attribute, values, self.templates):
            tokens = self.processor(text=prompts).to(self.model.device)
            parts.append(self._embedded(self.prompt_temperature, **tokens))
        embeds, weights = (torch.stack(part).mean(dim=0) for part in zip(*parts, strict=True))
        return Embedded(functional.normalize(embeds, dim=-1), weights)

    @torch.no_grad()
    def embed_photos(self, pixel_values: Tensor) -> Embedded:
        """Photos (N, 3, H, W), from the checkpoint's processor → N rows."""
        return self._embedded(ROUTE_TEMPERATURE, pixel_values=pixel_values.to(self.model.device))

    def embed_table(self, table: ImageTable, batch_size: int = 64) -> Embedded:
        """The photos of all rows. ValueError: there is none, or one cannot be read."""
        if not len(table):
            raise ValueError(f"The split {table.split!r} of the data set has no photos to name.")
        found = []
        for start in tqdm(range(0, len(table), batch_size), desc=f"embedding {table.split}", unit="batch"):
            rows = range(start, min(start + batch_size, len(table)))
            pixels = load_pixels(table, rows, 0, self.processor.image_processor, Augmentation(), 0)
            found.append(self.embed_photos(pixels))
        return Embedded(*(torch.cat(part) for part in zip(*found, strict=True)))

    def name_values(
        self, pixel_values: Tensor, attribute: str, values: Sequence[str], top: int = 3
    ) -> list[list[ValuePrediction]]:
        """Of each photo the first `top` values, best first, each with its share of 1 among all of them."""
        scores = naming_scores(self.embed_photos(pixel_values), self.embed_values(attribute, values), self.scales)
        return [best_values(row, values, top) for row in scores]

    def _embedded(self, temperature: float, **inputs: Tensor) -> Embedded:
        found = self.model.routed_embeds(**inputs, increment_ids=self.spaces)
        if found.similarities is None:  # one space
            weights = torch.ones(len(found.embeds), 1)
        else:
            weights = space_weights(found.similarities, temperature)
        return Embedded(found.embeds.float().cpu(), weights.float().cpu())


def best_values(scores: Tensor, values: Sequence[str], top: int) -> list[ValuePrediction]:
    """A row of `naming_scores` (V,) → its first values, best first, with their shares; of equals the earlier first."""
    order = scores.sort(descending=True, stable=True).indices[:top].tolist()
    return [ValuePrediction(values[place], float(scores[place].exp())) for place in order]


def naming_scores(photos: Embedded, prompts: Embedded, scales: Tensor) -> Tensor:
    """
    How well each value names each photo: log Σ_s w_s(photo) · p_s(value | photo), (N, V) float64, where p_s is the
    softmax over values of scale_s · cosine + log w_s(value). So a value counts where it belongs: a space that has
    never learned shoes does not call a shirt one. With one space the order is that of the cosines.

    Args:
        scales: (S,), exp(logit_scale) of each space.

    Raises:
        ValueError: other numbers of spaces.
    """
    return _mixture(photos, prompts, scales)


def retrieval_scores(prompts: Embedded, photos: Embedded, scales: Tensor) -> Tensor:
    """How well each photo answers each prompt, (V, G) float64: the other way round, with the softmax over photos."""
    return _mixture(prompts, photos, scales)


def _mixture(queries: Embedded, items: Embedded, scales: Tensor) -> Tensor:
    shapes = queries.embeds.shape[1:], items.embeds.shape[1:]
    if shapes[0] != shapes[1] or len(scales) != shapes[0][0]:
        raise ValueError(
            f"Photos and prompts must be in the same spaces (S, D), with S scales; got {tuple(shapes[0])}, "
            f"{tuple(shapes[1])} and {len(scales)} scales."
        )
    total = None
    for s, scale in enumerate(scales.tolist()):
        # On the grid: what differs by rounding errors alone is a tie.
        logits = scale * to_grid(queries.embeds[:, s].double() @ items.embeds[:, s].double().T).double()
        part = _log(queries.weights[:, s, None]) + (logits + _log(items.weights[:, s])).log_softmax(dim=1)
        total = part if total is None else torch.logaddexp(total, part)
    return total


def _log(weights: Tensor) -> Tensor:
    return weights.double().clamp(min=_LEAST_WEIGHT).log()


def naming_figures(scores: Tensor, labels: Tensor) -> dict[str, float | None]:
    """
    How often the true value comes first.

    Args:
        scores: (N, V), the higher the better; equal ones are resolved by the order of the values.
        labels: (N,) places of the true values, from 0.

    Returns:
        accuracy_at_1; accuracy_at_5, None where there are no more than five values; mean_reciprocal_rank: the mean
        over photos of average precision, of which one value is relevant. 0 to 1.

    Raises:
        ValueError: no photos, shapes that do not fit, a label below 0 or without a column.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(
            f"Expected scores (N, V), labels (N,), N at least 1; got {tuple(scores.shape)}, {tuple(labels.shape)}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(
            f"labels must be 0 to {scores.shape[1] - 1}; got {low} to {high}. Leave photos without a value out."
        )
    ranks = place_of(scores, labels)
    return {
        "accuracy_at_1": recall_at_k(ranks, 1),
        "accuracy_at_5": recall_at_k(ranks, 5) if scores.shape[1] > 5 else None,
        "mean_reciprocal_rank": mean_over_queries(1 / ranks.double()),
    }


def constant_figures(labels: Tensor, num_values: int) -> dict[str, float | None]:
    """`naming_figures` of the best answer that does not look: the photos' own values, the most frequent first."""
    counts = torch.bincount(labels, minlength=num_values)
    return naming_figures(counts.double().expand(len(labels), -1), labels)


def retrieval_figures(scores: Tensor, labels: Tensor) -> dict[str, float | int]:
    """
    What each value finds.

    Args:
        scores: (V, G), of `retrieval_scores`.
        labels: (G,) places of the gallery's values, from 0.

    Returns:
        mean_average_precision: mean over values that the gallery has; random_ranking: what a random order is
        expected to score; num_queries: so many values.
    """
    values = torch.arange(len(scores))
    precision = average_precision_by_scores(scores, values[:, None] == labels[None, :])
    return {
        "mean_average_precision": mean_over_queries(precision),
        "random_ranking": mean_over_queries(expected_average_precision(*count_relevant(values, labels))),
        "num_queries": int((~precision.isnan()).sum()),
    }
