# SPDX-License-Identifier: Apache-2.0
"""Any transformers text encoder with one adapter an increment (floor 2; travels to the Hub with a checkpoint).

The layers below the first adapted one run once for all increments and may be cached; those above run once an
increment. Both are the encoder's own forward, in which the layers of the other part hand on what they get: masks,
positions and embeddings stay its own business, so no family needs to be known here.
"""

import inspect
import threading
from contextlib import ExitStack

import torch
from peft import LoraConfig
from torch import nn
from torch.nn import functional

from .adapters_mclfir import adapter_layers, add_adapter, lora_config, use_adapter
from .text_encoders_mclfir import build_text_encoder, first_argument, handing_on, path_of_layers, token_mean

# Trained on texts padded to their full length, without a mask, and pooled at the last place.
_PADDED_TO_FULL_LENGTH = ("siglip_text_model",)
_IDLE = ("pooler", "head")  # a pooled output of its own, which runs with text_pooling "pooler" only


# Layers answer otherwise while a part of an encoder runs: one thread at a time. Not a tower's own lock, since a copy
# of the model copies what it has.
_TURN = threading.RLock()


class TextTower(nn.Module):
    """
    A text encoder with one adapter an increment: captions → pooled features, as the increment sees them.

    An encoder whose forward does not fit the above (its first layer prepares what later ones need, as T5's does) is
    run as a whole every time: nothing is saved, yet every result is right. `opaque` says so.

    Args:
        config: an `MclfirTextImageConfig`. Adapters that its increments name are built here.

    Raises:
        ValueError: no text_config, more adapted blocks than there are, no layer to adapt, no pooled output.
    """

    def __init__(self, config):
        super().__init__()
        if config.text_config is None:
            raise ValueError("MclfirTextImageConfig.text_config is missing; build a model with from_towers(...).")
        self.config = config
        self.trunk = build_text_encoder(config.text_config)
        self._path = path_of_layers(self.trunk)
        count, total = config.num_adapted_text_blocks, len(self.layers)
        count = max(-(-total // 4), 1) if count is None else count
        if not 0 <= count <= max(total, 1):
            raise ValueError(f"num_adapted_text_blocks must lie in 0..{total} for this text tower; got {count}.")
        # Without adapters at least the last layer is run again: the hidden states go in before a layer.
        self.first_adapted, self._num_adapted = min(total - count, max(total - 1, 0)), count
        self._form: int | None = None
        self._splits: bool | None = None if total and self._layers_are_alike() else False
        if config.adapter_policy != "frozen" and count and not self._adaptable():
            raise ValueError(
                f"{type(self.trunk).__name__} has no linear layers to adapt; use adapter_policy='frozen'."
            )
        if config.text_dim is None:
            input_ids, mask, outputs = self._run_probe()
            config.text_dim = self._pooled(outputs, mask).shape[-1]
            config.shared_text_dim = self.shared_forward(input_ids, mask).shape[-1]
        for name in config.adapter_names() if count else ():
            add_adapter(self.trunk, self.adapter_settings(), name)

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers, lowest first; empty where they are not one list."""
        return [] if self._path is None else list(self.trunk.get_submodule(self._path))

    @property
    def full_length(self) -> int | None:
        """Tokens to which every caption is padded here, whatever is handed in (SigLIP); None: as handed in."""
        padded = self.trunk.config.model_type in _PADDED_TO_FULL_LENGTH and self.config.text_pooling == "pooler"
        return self.trunk.config.max_position_embeddings if padded else None

    @property
    def opaque(self) -> bool:
        """Whether the encoder is run as a whole for every increment."""
        self._look()
        return not self._splits

    @property
    def trunk_trains(self) -> bool:
        """Whether the encoder itself is learning (base_training); else its shared part runs without gradients."""
        return getattr(self, "_trunk_trains", False)

    def adapter_settings(self) -> LoraConfig | None:
        """PEFT settings of every adapter of this tower; None: it has no adapted layers."""
        return lora_config(self.config, self._adaptable()) if self._num_adapted else None

    def free_trunk(self) -> None:
        """Let the whole encoder learn, but for adapters and a pooled output that is not read."""
        idle = () if self.config.text_pooling == "pooler" else tuple(f"{name}." for name in _IDLE)
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(not (".lora_" in name or name.startswith(idle)))

    def shared_forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        The part below the first adapted layer: tokens (N, T) → hidden states (N, T, H), the same for every increment.

        Raises:
            ValueError: wrong shapes.
        """
        input_ids, attention_mask = self._inputs(input_ids, attention_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trunk_trains):
            if self.opaque:
                return self.trunk.get_input_embeddings()(input_ids)
            with _TURN, use_adapter(adapter_layers(self.trunk), None):
                return self._lower(input_ids, attention_mask)

    def increment_forward(
        self,
        shared_text: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        increment_id: int | None = None,
    ) -> torch.Tensor:
        """
        The part above, with the increment's adapters (None: the bare encoder): hidden states → pooled (N, H).

        Args:
            shared_text: what `shared_forward` gave for these tokens.
            input_ids: the tokens themselves: the encoder works its masks and positions out of them.
            attention_mask: 1 for tokens, 0 for padding, which is at the right; None: nothing is padding.
        """
        input_ids, mask = self._inputs(input_ids, attention_mask)
        if shared_text.shape[:2] != input_ids.shape:
            raise ValueError(
                f"shared_text is of {tuple(shared_text.shape[:2])} tokens, input_ids of {tuple(input_ids.shape)}; "
                "pass what shared_forward gave for the same captions with the same padding."
            )
        names = () if increment_id is None or not self._num_adapted else self.config.running_adapters(increment_id)
        with _TURN, use_adapter(adapter_layers(self.trunk), names):
            if self.opaque:
                return self._pooled(self._call(input_ids, mask), mask)
            return self._pooled(self._upper(shared_text, input_ids, mask), mask)

    def train(self, mode: bool = True):
        """
        As always, except that a frozen encoder never drops out, its adapters alone do (`lora_dropout`): what is cached
        stays right, and a run on several processes is that of one.
        """
        super().train(mode)
        if mode and not self.trunk_trains:
            self.trunk.eval()
            for layer in adapter_layers(self.trunk):
                layer.lora_dropout.train()
        return self

    def _inputs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple:
        if input_ids is None or input_ids.ndim != 2 or not input_ids.shape[1]:
            got = None if input_ids is None else tuple(input_ids.shape)
            raise ValueError(f"input_ids must be (N, T) with T of at least 1; got {got}.")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must be of the shape of input_ids, {tuple(input_ids.shape)}; got "
                f"{tuple(attention_mask.shape)}."
            )
        if self.full_length is None:
            return input_ids, attention_mask
        padding = self.trunk.config.pad_token_id
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(attention_mask == 0, padding)
        missing = self.full_length - input_ids.shape[1]
        return functional.pad(input_ids, (0, max(missing, 0)), value=padding), None

    def _adaptable(self) -> list[str]:
        places = range(len(self.layers) - self._num_adapted, len(self.layers))
        roots = [f"{self._path}.{place}" for place in places] if self._path is not None else [""]
        found = []
        for root in roots:
            for name, module in self.trunk.get_submodule(root).named_modules():
                full = ".".join(part for part in (root, name) if part)
                if isinstance(module, nn.Linear) and ".lora_" not in full and not full.startswith(_IDLE):
                    # A layer that an earlier adapter wrapped: keep its own name.
                    found.append(full.removesuffix(".base_layer"))
        return list(dict.fromkeys(found))

    def _call(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None):
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "return_dict": True}
        if "use_cache" in inspect.signature(self.trunk.forward).parameters:
            arguments["use_cache"] = False
        return self.trunk(**arguments)

    def _pooled(self, outputs, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if self.config.text_pooling == "pooler":
            pooled = getattr(outputs, "pooler_output", None)
            if pooled is None:
                raise ValueError(
                    f"{type(self.trunk).__name__} has no pooled output of its own; use text_pooling 'mean' or 'first'."
                )
            return pooled
        hidden = outputs.last_hidden_state
        if self.config.text_pooling == "first":
            return hidden[:, 0]
        return token_mean(hidden, attention_mask)

    def _lower(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        layers, found = self.layers, []

        def keep(module, args, kwargs):
            found.append(args[0] if args else kwargs[first_argument(module)])

        with ExitStack() as stack:
            stack.enter_context(handing_on(layers[self.first_adapted :], self._form))
            stack.callback(layers[self.first_adapted].register_forward_pre_hook(keep, with_kwargs=True).remove)
            self._call(input_ids, attention_mask)
        return found[0]

    def _upper(self, shared_text: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None):
        layers = self.layers

        def put(module, args, kwargs):
            if args:
                return (shared_text.to(args[0].dtype), *args[1:]), kwargs
            name = first_argument(module)
            return args, kwargs | {name: shared_text.to(kwargs[name].dtype)}

        with ExitStack() as stack:
            stack.enter_context(handing_on(layers[: self.first_adapted], self._form))
            stack.callback(layers[self.first_adapted].register_forward_pre_hook(put, with_kwargs=True).remove)
            return self._call(input_ids, attention_mask)

    @torch.no_grad()
    def _look(self) -> None:
        """Find out, once, in which form layers answer, and whether the two parts give what the whole gives."""
        if self._splits is not None:
            return
        forms = []
        hook = self.layers[0].register_forward_hook(
            lambda module, args, output: forms.append(len(output) if isinstance(output, tuple) else 0)
        )
        modes = {module: module.training for module in self.trunk.modules()}
        self.trunk.eval()
        try:
            with use_adapter(adapter_layers(self.trunk), None):
                input_ids, mask, whole = self._run_probe()
                self._form, calls = forms[0], len(forms)
                lower = self._lower(input_ids, mask)
                found, expected = self._upper(lower, input_ids, mask).last_hidden_state, whole.last_hidden_state
            right = calls == 1 and lower.shape[:2] == input_ids.shape
            self._splits = right and torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
            self._splits = False
        finally:
            hook.remove()
            for module, mode in modes.items():
                module.training = mode

    def _run_probe(self) -> tuple:
        """Some tokens, a padded row among them, their mask, and what the bare encoder gives for them."""
        device = next(self.trunk.parameters()).device
        most = min(getattr(self.trunk.config, "vocab_size", 8), 8)
        input_ids = torch.arange(6, device=device).reshape(2, 3) % most
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]], device=device)
        input_ids, mask = self._inputs(input_ids, mask)
        with torch.no_grad():
            return input_ids, mask, self._call(input_ids, mask)

    def _layers_are_alike(self) -> bool:
        """Whether the first layer has nothing that the first adapted one lacks: what it prepares for the others."""
        first, later = (
            {name for name, _ in self.layers[place].named_parameters()} for place in (0, self.first_adapted)
        )
        return first <= later
