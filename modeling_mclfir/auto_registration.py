# SPDX-License-Identifier: Apache-2.0
"""Make transformers' Auto classes know mclfir, without importing transformers or torch before somebody else does.

`import modeling_mclfir` alone must stay quick (an index or a metric needs no model), and yet after it
`AutoModel.from_pretrained(DIR)` must work. So each registration waits for the module of transformers it belongs to.
"""

import importlib
import sys
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

# Our configurations and their homes, and of each the home and the name of its model.
_CONFIGS = {"MclfirConfig": "configuration_mclfir", "MclfirTextImageConfig": "configuration_mclfir_text"}
_MODELS = {
    "MclfirConfig": ("modeling_mclfir", "MclfirForImageRetrieval"),
    "MclfirTextImageConfig": ("modeling_mclfir_text", "MclfirForTextImageRetrieval"),
}


def _configs() -> dict[str, type]:
    return {name: getattr(importlib.import_module(f".{home}", __package__), name) for name, home in _CONFIGS.items()}


def _coming_in(home: str) -> bool:
    ours = sys.modules.get(f"{__package__}.{home}")
    return getattr(getattr(ours, "__spec__", None), "_initializing", False)


def _register_configs(complete: str | None = None) -> None:
    if any(_coming_in(home) for home in _CONFIGS.values() if home != complete):
        # It is our own import that brings transformers in: the turn comes when ours is done.
        _deferred.append(True)
        return
    from transformers.models.auto.configuration_auto import AutoConfig

    for config in _configs().values():
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _after(home: str) -> None:
    if _deferred:
        _deferred.clear()
        _register_configs(complete=home)


class _OnFirstUse(type):
    """A stand-in for a class of ours: importing the real one here, amid transformers' own imports, would go round."""

    def __getattr__(cls, name: str):
        if name == "_home":
            raise AttributeError(name)
        module = importlib.import_module(f".{cls._home}", __package__)
        return getattr(getattr(module, cls.__name__), name)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModel

    for name, config in _configs().items():
        home, model = _MODELS[name]
        AutoModel.register(config, _OnFirstUse(model, (), {"config_class": config, "_home": home}), exist_ok=True)


def _register_image_processor() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .processing_mclfir import MclfirImageProcessor

    for config in _configs().values():
        AutoImageProcessor.register(config, slow_image_processor_class=MclfirImageProcessor, exist_ok=True)


def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    stand_in = _OnFirstUse("MclfirProcessor", (), {"_home": "processing_mclfir_text"})
    AutoProcessor.register(_configs()["MclfirTextImageConfig"], stand_in, exist_ok=True)


_deferred: list[bool] = []
_PENDING = {
    **{f"{__package__}.{home}": partial(_after, home) for home in _CONFIGS.values()},
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.models.auto.processing_auto": _register_processor,
}


class _Waiting(MetaPathFinder):
    """Sees the modules above come in, lets the ordinary import run, and registers afterwards."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """Part of the import protocol: a spec whose loader registers, for the modules that are waited for."""
        register = _PENDING.pop(name, None)
        if register is None:
            return None
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, register)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader, register):
        self._loader, self._register = loader, register

    def create_module(self, spec: ModuleSpec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._register()


def install() -> None:
    """Register now what is imported already, and the rest when it comes in. Safe to call twice."""
    for name in [name for name in _PENDING if name in sys.modules]:
        importlib.import_module(name)
        _PENDING.pop(name)()
    if _PENDING and not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())
