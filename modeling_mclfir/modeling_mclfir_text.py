# SPDX-License-Identifier: Apache-2.0
"""Text-image retrieval (floor 3; travels to the Hub with a checkpoint). Models give embeddings, never losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig  # noqa: F401  named here so that remote code is refused early where PEFT is missing
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from .base_mclfir import MclfirModel, MclfirPreTrainedModel
from .configuration_mclfir_text import MclfirTextImageConfig
from .increments_mclfir import GrowingModel
from .text_encoders_mclfir import load_text_encoder, token_mean
from .text_projections_mclfir import (
    TextImageProjections,
    load_pair,
    map_statistics,
    pair_dim,
    take_projections,
)
from .text_spaces_mclfir import TextImageSpaces
from .text_tower_mclfir import TextTower
from .trunk_mclfir import fold_tokens, load_trunk


@dataclass
class MclfirTextImageOutput(ModelOutput):
    """
    Embeddings for text-image retrieval; n captions or images, A spaces asked for.

    Args:
        embeds (`(2n, A, D)`): captions and images in turns (row 2k a caption, row 2k + 1 its image), where there are
            as many of the one as of the other; of one side alone `(n, A, D)`.
        text_embeds, image_embeds (`(n, A, D)`): unit-length, of the side or sides given.
        logits_per_text, logits_per_image (`(n, n)`): cosines times the space's scale, where one space is asked for and
            both sides are given.
        pooled, pooled_text (`(n, C)`, `(n, H)`): pooled features of the towers, where all that is asked for runs with
            the same adapters.
        image_inputs, text_inputs (`(n, C')`, `(n, H')`): what the projections read, in the same case.
        shared_features, shared_text: output of the shared part of each tower; may be handed in again.
        attribute_logits: always None; here for what reads outputs of attribute models.
    """

    embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    pooled_text: torch.Tensor | None = None
    image_inputs: torch.Tensor | None = None
    text_inputs: torch.Tensor | None = None
    shared_features: torch.Tensor | None = None
    shared_text: torch.Tensor | None = None
    attribute_logits: torch.Tensor | None = None


class MclfirForTextImageRetrieval(GrowingModel, TextImageSpaces, MclfirPreTrainedModel):
    """
    Text-image retrieval: captions and images → embeddings of one space, one space an increment.

    Example:
    ```python
    encoder = "sentence-transformers/all-MiniLM-L6-v2"
    model = MclfirForTextImageRetrieval.from_towers("google/mobilenet_v2_1.0_224", encoder)
    model.add_increment("apparel")
    texts = model.get_text_features(input_ids, attention_mask)   # (N, 256)
    images = model.get_image_features(pixel_values)              # (N, 256)
    ```
    """

    config_class = MclfirTextImageConfig
    _learned_buffers = ("logit_scale", "projection.mean", "projection.scale")

    def __init__(self, config: MclfirTextImageConfig):
        super().__init__(config)
        self.mclfir = MclfirModel(config)
        self.text = TextTower(config)
        self.own_projections = self._build_projections() if config.own_projections else None
        self.heads = nn.ModuleList(self._build_projections() for _ in config.increments)
        self._build_routers()
        self.post_init()

    @classmethod
    def from_towers(
        cls,
        trunk: str | PreTrainedConfig | dict,
        text_encoder: str | PreTrainedConfig | dict | None = None,
        pretrained: bool = True,
        **settings,
    ) -> "MclfirForTextImageRetrieval":
        """
        A model without increments on any transformers vision model and any text encoder.

        Args:
            trunk: Hub id, folder, or configuration (random weights) of the vision model, or of one that has two
                towers (CLIP, SigLIP).
            text_encoder: the same of the text encoder. None: the other tower of `trunk`, and its projections: the
                first increment begins as the pair it is, and embed_dim is the pair's own.
            pretrained: take their weights; False draws them at random.
            settings: fields of `MclfirTextImageConfig`.

        Raises:
            ValueError: a trunk without a text tower where no text encoder is named.
        """
        pair = None
        if text_encoder is None:
            pair = load_pair(trunk, pretrained)
            vision, text = pair.vision_model, pair.text_model
        else:
            vision, text = load_trunk(trunk, pretrained=pretrained), load_text_encoder(text_encoder, pretrained)
        own = {} if pair is None else {"own_projections": True, "embed_dim": pair_dim(pair)}
        if settings.get("embed_dim", own.get("embed_dim")) != own.get("embed_dim", settings.get("embed_dim")):
            raise ValueError(
                f"The towers of one model have a space of their own, of {own['embed_dim']} numbers; got embed_dim "
                f"{settings['embed_dim']}. Leave it out, or name the text encoder, too."
            )
        config = MclfirTextImageConfig(vision_config=vision.config, text_config=text.config, **settings | own)
        model = cls(config)
        model.mclfir.trunk.load_state_dict(vision.state_dict())
        model.text.trunk.load_state_dict(text.state_dict())
        if pair is not None:
            take_projections(model.own_projections, pair)
        model.set_trainable(None)
        return model.eval()

    @property
    def towers(self) -> tuple:
        """The image tower and the text tower."""
        return self.mclfir, self.text

    def _build_projections(self) -> TextImageProjections:
        config = self.config
        image_blocks, text_blocks = self.projection_blocks()
        return TextImageProjections(sum(image_blocks), sum(text_blocks), config.embed_dim, config.num_shared_layers)

    def projection_blocks(self) -> tuple[list[int], list[int]]:
        """Sizes of the parts of what the image and the text projection read: see `use_low_level_features`."""
        config = self.config
        images, texts = [config.trunk_channels[self.mclfir.last_unit]], [config.text_dim]
        if config.use_low_level_features:
            shared = getattr(config.vision_config, "num_channels", 3)
            if not self.mclfir.units.opaque:
                shared = config.trunk_channels[self.mclfir.first_adapted - 1]
            images, texts = images + [shared] * 4, [*texts, config.shared_text_dim]
        return images, texts

    def _image_inputs(self, shared_features: torch.Tensor, owner: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled features (N, C), and what the projection reads (N, C')."""
        pooled = self.mclfir.increment_forward(shared_features, owner).pooled
        if not self.config.use_low_level_features:
            return pooled, pooled
        # In full precision: a deviation is the difference of numbers that may be much alike.
        low = map_statistics(fold_tokens(shared_features, self.config.vision_config).to(self.dtype))
        return pooled, torch.cat([pooled.to(low), low], dim=1)

    def _text_inputs(
        self, shared_text: torch.Tensor, captions: tuple, owner: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of captions."""
        pooled = self.text.increment_forward(shared_text, *captions, owner)
        if not self.config.use_low_level_features:
            return pooled, pooled
        low = token_mean(shared_text.to(self.dtype), captions[1])
        return pooled, torch.cat([pooled.to(low), low], dim=1)

    def add_increment(
        self,
        name: str,
        attributes: Sequence[str] = ("text",),
        prompt_embeds: None = None,
        new_values: bool = False,
    ) -> int:
        """
        Open a further space; returns increment_id. Its adapters and its projections start as copies of the previous
        increment's (adapters with "stacked": at no effect of their own). Nothing that existed changes.

        Args:
            name: letters, digits, '_' and '-'.
            attributes: one name, the same for all increments.
            prompt_embeds: attribute models have prompts; None.
            new_values: True for all but the first increment: they bring further pairs of what is known.

        Raises:
            ValueError: duplicate increment, a known attribute without `new_values`, several attributes, prompts.
        """
        attributes = list(attributes)
        if len(attributes) != 1 or prompt_embeds is not None:
            raise ValueError(
                f"An increment of captions and images is one space, as ['text'], without prompts; got {attributes}"
                f"{' and prompt_embeds' if prompt_embeds is not None else ''}."
            )
        self._open_increment(name, attributes, new_values)
        heads = self._build_projections()
        start = self.heads[-1] if len(self.heads) else self.own_projections
        if start is not None:
            heads.load_state_dict(start.state_dict())
        return self._append_heads(heads)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        attribute_ids: list[int] | None = None,
        increment_id: int | str | None = None,
        shared_features: torch.Tensor | None = None,
        shared_text: torch.Tensor | None = None,
        output_attribute_logits: bool | None = None,
    ) -> MclfirTextImageOutput:
        """
        Args:
            pixel_values: images (N, 3, H, W), from the checkpoint's processor.
            input_ids, attention_mask: captions (M, T), from the same; a mask of None: nothing is padding.
            attribute_ids: these spaces; None: all, or that of `increment_id`.
            increment_id: the one space of this increment, by number or name.
            shared_features: what an earlier call returned for the same images, instead of `pixel_values`.
            shared_text: what an earlier call returned for the same `input_ids`, which are needed all the same.
            output_attribute_logits: not read; here for what calls attribute models.

        Raises:
            ValueError: unknown ids, wrong shapes, nothing to embed, no increment yet.
        """
        if not self.heads:
            raise ValueError("This model has no increment yet; call add_increment(name) first.")
        if isinstance(attribute_ids, torch.Tensor):
            raise ValueError("attribute_ids must be a list of spaces for all captions and images; got a tensor.")
        if input_ids is None and pixel_values is None and shared_features is None:
            raise ValueError("Pass images (pixel_values or shared_features), captions (input_ids), or both.")
        wanted = self._wanted(attribute_ids, None if increment_id is None else self._place(increment_id))
        output = MclfirTextImageOutput()
        if pixel_values is not None or shared_features is not None:
            output.shared_features = self.mclfir._shared(pixel_values, shared_features)
            runs = self._runs(wanted, lambda owner: self._image_inputs(output.shared_features, owner))
            output.image_embeds = torch.stack([self.heads[owner].image(runs[owner][1]) for owner in wanted], dim=1)
            output.pooled, output.image_inputs = _only(runs)
        if input_ids is not None:
            captions = input_ids, attention_mask
            output.shared_text = self.text.shared_forward(*captions) if shared_text is None else shared_text
            runs = self._runs(wanted, lambda owner: self._text_inputs(output.shared_text, captions, owner))
            output.text_embeds = torch.stack([self.heads[owner].text(runs[owner][1]) for owner in wanted], dim=1)
            output.pooled_text, output.text_inputs = _only(runs)
        output.embeds = _in_turns(output.text_embeds, output.image_embeds)
        if len(wanted) == 1 and output.text_embeds is not None and output.image_embeds is not None:
            scale = self.heads[wanted[0]].logit_scale.exp()
            output.logits_per_text = scale * output.text_embeds[:, 0] @ output.image_embeds[:, 0].T
            output.logits_per_image = output.logits_per_text.T
        return output

    def _runs(self, wanted: list[int], run) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Features for each increment; increments that share adapters share their run."""
        found: dict[tuple[str, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        for owner in wanted:
            adapters = self.config.running_adapters(owner)
            if adapters not in found:
                found[adapters] = run(owner)
        return {owner: found[self.config.running_adapters(owner)] for owner in wanted}

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        increment_id: int | str | None = None,
        shared_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Images → unit-length (N, D) in the space of an increment (number or name), the newest by default."""
        space = len(self.heads) - 1 if increment_id is None else increment_id
        return self(pixel_values, increment_id=space, shared_features=shared_features).image_embeds[:, 0]

    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        increment_id: int | str | None = None,
        shared_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Captions → unit-length (N, D) in the space of an increment (number or name), the newest by default."""
        space = len(self.heads) - 1 if increment_id is None else increment_id
        captions = {"input_ids": input_ids, "attention_mask": attention_mask, "shared_text": shared_text}
        return self(**captions, increment_id=space).text_embeds[:, 0]


def _only(runs: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return next(iter(runs.values())) if len({id(found) for found in runs.values()}) == 1 else (None, None)


def _in_turns(text_embeds: torch.Tensor | None, image_embeds: torch.Tensor | None) -> torch.Tensor | None:
    if text_embeds is None or image_embeds is None:
        return image_embeds if text_embeds is None else text_embeds
    if len(text_embeds) != len(image_embeds):
        return None
    return torch.stack([text_embeds, image_embeds], dim=1).flatten(0, 1)
