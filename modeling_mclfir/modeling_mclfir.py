# SPDX-License-Identifier: Apache-2.0
"""Attribute retrieval (floor 2; travels to the Hub with a checkpoint). Models give embeddings, never losses."""

from dataclasses import dataclass

import torch
from peft import LoraConfig  # noqa: F401  named here so that remote code is refused early where PEFT is missing
from torch import nn
from transformers.utils import ModelOutput

from .attention_mclfir import IncrementHeads
from .base_mclfir import HEADS, MclfirModel, MclfirModelOutput, MclfirPreTrainedModel
from .configuration_mclfir import MclfirConfig
from .increments_mclfir import GrowingModel
from .refinement_mclfir import RefinedSpaces, SpaceRefinement
from .spaces_mclfir import FusedSpaces
from .trunk_mclfir import load_trunk
from .voting_mclfir import ValuePrediction, vote


@dataclass
class MclfirRetrievalOutput(ModelOutput):
    """
    Embeddings for attribute retrieval.

    Args:
        embeds (`(N, D)` or `(N, A, D)`): unit-length, one an image and attribute asked for.
        attentions (`(N, H, W)` or `(N, A, H, W)`, with `output_attentions=True`): where each attribute looked.
        shared_features: output of the shared part of the trunk; may be handed in again.
        attribute_logits (`(N, A)`, in training, where every head asked has a classification branch): for each
            attribute whether the image was drawn for it. A tensor of `attribute_ids` gives the logits of all
            attributes of the one increment that owns them, None where several do.
        pooled (`(N, C)`, where all that is asked for runs with the same adapters): as in `MclfirModelOutput`.
        prompt_similarity (`(N, K)`, with adapter_policy "prompts", not with a tensor of `attribute_ids`): as there.
    """

    embeds: torch.Tensor | None = None
    attentions: torch.Tensor | None = None
    shared_features: torch.Tensor | None = None
    attribute_logits: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    prompt_similarity: torch.Tensor | None = None


class MclfirForImageRetrieval(GrowingModel, FusedSpaces, RefinedSpaces, MclfirPreTrainedModel):
    """
    Attribute retrieval: image + attribute → embedding. One head an attribute, over the increments' features.

    Example:
    ```python
    model = MclfirForImageRetrieval.from_trunk("google/mobilenet_v2_1.0_224")
    model.add_increment("tops", ["neckline", "sleeve_length"])
    embeds = model(pixel_values).embeds                     # (N, 2, 32): every attribute from one pass
    embeds = model(pixel_values, attribute_ids=[0]).embeds  # (N, 1, 32): the necklines
    ```
    """

    def __init__(self, config: MclfirConfig):
        super().__init__(config)
        self.mclfir = MclfirModel(config)
        self.heads = nn.ModuleList(
            self._build_heads(len(increment["attributes"]), increment.get("refined_values"))
            for increment in config.increments
        )
        self._build_router()
        self.post_init()

    @classmethod
    def from_trunk(cls, trunk, pretrained: bool = True, **settings) -> "MclfirForImageRetrieval":
        """
        A model without increments on any transformers vision model.

        Args:
            trunk: Hub id, folder, or configuration (random weights) of the vision model.
            pretrained: take its weights; False draws them at random.
            settings: fields of `MclfirConfig`.
        """
        vision = load_trunk(trunk, pretrained=pretrained)
        model = cls(MclfirConfig(vision_config=vision.config, **settings))
        model.mclfir.trunk.load_state_dict(vision.state_dict())
        return model.eval()

    def _build_heads(self, num_attributes: int, refined_values: int | None = None) -> IncrementHeads:
        channels = self.config.trunk_channels
        map_channels = [channels[index] for index in self.mclfir.out_units]
        heads = HEADS[self.config.head_type](self.config, num_attributes, map_channels, channels[-1])
        heads.refinement = None
        if refined_values:
            heads.refinement = SpaceRefinement(num_attributes, self.config.embed_dim, refined_values)
        return heads

    def add_increment(
        self,
        name: str,
        attributes: list[str],
        prompt_embeds: torch.Tensor | None = None,
        new_values: bool = False,
    ) -> int:
        """
        Open spaces for new attributes (or, with `new_values`, for new values of known ones); returns increment_id.

        The new adapter starts from the previous one ("stacked": at no effect of its own, since it runs on top of
        those before it). Nothing that existed changes: old embeddings stay bit for bit (adapter_policy
        "per_increment" or "frozen").

        Args:
            name: letters, digits, '_' and '-'.
            attributes: names of the attributes, any text.
            prompt_embeds: (A, prompt_dim), where `prompt_type="text"`.

        Raises:
            ValueError: duplicate increment, known attribute without `new_values`, prompts missing or of a wrong shape.
        """
        self._check_prompts(len(list(attributes)), prompt_embeds)
        self._open_increment(name, attributes, new_values)
        heads = self._build_heads(len(attributes))
        heads.reset()
        if prompt_embeds is not None:
            heads.prompts.copy_(prompt_embeds)
        return self._append_heads(heads)

    def _check_prompts(self, num_attributes: int, prompt_embeds: torch.Tensor | None) -> None:
        if self.config.prompt_type == "learned":
            if prompt_embeds is not None:
                raise ValueError("prompt_embeds given, but prompt_type is 'learned'; build with prompt_type='text'.")
            return
        expected = (num_attributes, self.config.prompt_dim)
        given = None if prompt_embeds is None else tuple(prompt_embeds.shape)
        if given != expected:
            raise ValueError(f"prompt_type 'text' needs prompt_embeds of shape {expected}; got {given}.")

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        attribute_ids: torch.Tensor | list[int] | None = None,
        increment_id: int | None = None,
        shared_features: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_attribute_logits: bool | None = None,
    ) -> MclfirRetrievalOutput:
        """
        Args:
            pixel_values: images (N, 3, H, W), from the checkpoint's image processor.
            attribute_ids: a tensor (N,): one attribute an image → embeds (N, D). A list: these attributes for every
                image → (N, A, D). None: all attributes, or those of `increment_id`.
            increment_id: restrict "all" to one increment.
            shared_features: what an earlier call returned for the same images, instead of `pixel_values`.
            output_attentions: also return the attention maps.
            output_attribute_logits: also return what the heads' classification branch gives; default: in training.

        Raises:
            ValueError: unknown ids, wrong shapes, no increment yet.
        """
        if not self.heads:
            raise ValueError("This model has no increment yet; call add_increment(name, attributes) first.")
        shared_features = self.mclfir._shared(pixel_values, shared_features)
        classify = self.training if output_attribute_logits is None else output_attribute_logits
        if isinstance(attribute_ids, torch.Tensor):
            return self._forward_one_each(shared_features, attribute_ids, output_attentions, classify)
        wanted = self._wanted(attribute_ids, increment_id)
        found: dict[int, tuple] = {}
        owners = list(dict.fromkeys(self.config.increment_of(index) for index in wanted))
        runs: dict[tuple[str, ...], MclfirModelOutput] = {}  # increments that share adapters share their run
        for owner in owners:
            adapters = self.config.running_adapters(owner)
            if adapters not in runs:
                runs[adapters] = self.mclfir.increment_forward(shared_features, owner)
            parts = self._run_heads(runs[adapters], owner, classify)
            for position, index in enumerate(self.config.attribute_range(owner)):
                found[index] = tuple(None if part is None else part[:, position] for part in parts)
        embeds, attentions, logits = zip(*(found[index] for index in wanted), strict=True)
        only = next(iter(runs.values())) if len(runs) == 1 else MclfirModelOutput()
        return MclfirRetrievalOutput(
            embeds=torch.stack(embeds, dim=1),
            attentions=_stacked(attentions) if output_attentions else None,
            shared_features=shared_features,
            attribute_logits=_stacked(logits),
            pooled=only.pooled,
            prompt_similarity=only.prompt_similarity,
        )

    def _run_heads(self, features: MclfirModelOutput, increment_id: int, classify: bool) -> tuple:
        """Embeds (N, A, D), attention (N, A, H, W) or None, logits (N, A) or None of one increment."""
        heads, inputs = self.heads[increment_id], (features.feature_maps, features.pooled)
        embeds, attention = heads(*inputs)
        if heads.refinement is not None:
            embeds = heads.refinement(embeds)
        return embeds, attention, heads.classify(*inputs) if classify else None

    def _forward_one_each(
        self, shared: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool, classify: bool
    ) -> MclfirRetrievalOutput:
        if attribute_ids.shape != shared.shape[:1]:
            raise ValueError(
                f"A tensor of attribute_ids holds one id an image, shape ({shared.shape[0]},); got "
                f"{tuple(attribute_ids.shape)}. Pass a list to ask for several attributes of every image."
            )
        ids = self._wanted(attribute_ids.tolist(), None)
        embeds, attentions = [None] * len(ids), [None] * len(ids)
        owners = [self.config.increment_of(index) for index in ids]
        for owner in dict.fromkeys(owners):
            rows = [row for row, other in enumerate(owners) if other == owner]
            features = self.mclfir.increment_forward(shared[rows], owner)
            some, attention, logits = self._run_heads(features, owner, classify)
            start = self.config.attribute_range(owner).start
            for place, row in enumerate(rows):
                embeds[row] = some[place, ids[row] - start]
                attentions[row] = None if attention is None else attention[place, ids[row] - start]
        complete = output_attentions and all(attention is not None for attention in attentions)
        return MclfirRetrievalOutput(
            embeds=torch.stack(embeds),
            attentions=torch.stack(attentions) if complete else None,
            shared_features=shared,
            attribute_logits=logits if len(set(owners)) == 1 else None,
        )

    @torch.no_grad()
    def predict_values(
        self,
        pixel_values: torch.Tensor | None = None,
        index=None,
        k: int = 20,
        temperature: float = 0.1,
        attribute_ids: list[int] | None = None,
        shared_features: torch.Tensor | None = None,
    ) -> list[dict[str, ValuePrediction]]:
        """
        Tag images: of each attribute the value that the nearest gallery items have, and its share of their vote.

        Args:
            pixel_values: images (N, 3, H, W), from the checkpoint's image processor.
            index: a `ValueIndex`, or any object with three mappings by attribute name: `embeds`, (G, D) of unit length
                from this model; `labels`, (G,) integers, below 0 for none; `values`, the names that they stand for.
            k: items that vote on an attribute; fewer where fewer are labelled.
            temperature: an item's vote weighs exp(cosine / temperature).
            attribute_ids: only these; default: all.
            shared_features: instead of `pixel_values`, see `forward`.

        Returns:
            for each image, attribute name → (value, confidence); the value is None where no item is labelled.

        Raises:
            ValueError: no index; embeddings of another size; an attribute that has several spaces, of which an index
                holds one: name it in `attribute_ids`.
        """
        if index is None:
            raise ValueError("predict_values needs an index of labelled gallery items, such as ValueIndex.from_table.")
        wanted = self._wanted(attribute_ids, None)
        names = [self.config.attributes[place] for place in wanted]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"Attributes {twice} have several spaces each; name one of them in attribute_ids.")
        embeds = self(pixel_values, attribute_ids=wanted, shared_features=shared_features).embeds
        found: list[dict[str, ValuePrediction]] = [{} for _ in embeds]
        for position, name in enumerate(names):
            values = index.values[name] if name in index.values else ()
            if not len(values):
                shares = embeds.new_zeros(len(embeds), 1)
            else:
                gallery = index.embeds[name], index.labels[name]
                shares = vote(embeds[:, position], *gallery, len(values), k, temperature)
            for row, (share, value) in enumerate(zip(*(part.tolist() for part in shares.max(dim=1)), strict=True)):
                found[row][name] = ValuePrediction(values[value] if share > 0 else None, min(share, 1.0))
        return found


def _stacked(parts: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """One tensor of an attribute's parts each, side by side; None where one is missing."""
    return None if any(part is None for part in parts) else torch.stack(parts, dim=1)
