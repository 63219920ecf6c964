# SPDX-License-Identifier: Apache-2.0
"""mclfir: fashion retrieval that learns new attributes without forgetting old ones and without reindexing.

Names are imported on first use, so that a tool which needs only the metrics or an index does not wait for torch. With
transformers at hand, `AutoConfig`, `AutoModel`, `AutoImageProcessor` and `AutoProcessor` know mclfir checkpoints after
this import.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

from .auto_registration import install as _install

try:
    __version__ = version("mclfir")
except PackageNotFoundError:
    __version__ = "0.0.0+uninstalled"

_HOMES = {
    "MclfirConfig": "configuration_mclfir",
    "MclfirModel": "base_mclfir",
    "MclfirForImageRetrieval": "modeling_mclfir",
    "MclfirTextImageConfig": "configuration_mclfir_text",
    "MclfirForTextImageRetrieval": "modeling_mclfir_text",
    "MclfirModelOutput": "base_mclfir",
    "MclfirRetrievalOutput": "modeling_mclfir",
    "MclfirTextImageOutput": "modeling_mclfir_text",
    "MclfirImageProcessor": "processing_mclfir",
    "MclfirProcessor": "processing_mclfir_text",
    "ValueIndex": "value_index",
    "ValueNamer": "value_naming",
    "ValuePrediction": "voting_mclfir",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


_install()
