# SPDX-License-Identifier: Apache-2.0
"""Make transformers' Auto classes know mclfir, without importing transformers or torch before somebody else does.

`import modeling_mclfir` alone must stay quick (an index or a metric needs no model), and yet after it
`AutoModel.from_pretrained(DIR)` must work. So each registration waits for the module of transformers it belongs to.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

_OURS = f"{__package__}.configuration_mclfir"


def _register_config() -> None:
    ours = sys.modules.get(_OURS)
    if getattr(getattr(ours, "__spec__", None), "_initializing", False):
        # It is our own import that brings transformers in: the turn comes when ours is done.
        _deferred.append(True)
        return
    _register_config_now()


def _after_ours() -> None:
    if _deferred:
        _deferred.clear()
        _register_config_now()


def _register_config_now() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .configuration_mclfir import MclfirConfig

    AutoConfig.register(MclfirConfig.model_type, MclfirConfig, exist_ok=True)


class _OnFirstUse(type):
    """A stand-in for the model class: importing the real one here, amid transformers' own imports, would go round."""

    def __getattr__(cls, name: str):
        module = importlib.import_module(".modeling_mclfir", __package__)
        return getattr(module.MclfirForImageRetrieval, name)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModel

    from .configuration_mclfir import MclfirConfig

    stand_in = _OnFirstUse("MclfirForImageRetrieval", (), {"config_class": MclfirConfig})
    AutoModel.register(MclfirConfig, stand_in, exist_ok=True)


def _register_image_processor() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .configuration_mclfir import MclfirConfig
    from .processing_mclfir import MclfirImageProcessor

    AutoImageProcessor.register(MclfirConfig, slow_image_processor_class=MclfirImageProcessor, exist_ok=True)


_deferred: list[bool] = []
_PENDING = {
    _OURS: _after_ours,
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
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
