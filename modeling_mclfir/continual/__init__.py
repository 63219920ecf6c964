# SPDX-License-Identifier: Apache-2.0
"""Continual methods, one file each: a new one is a file here and a line below."""

from .base import ContinualMethod
from .closed_form import RanPac, SimpleCil
from .ema_distillation import EmaDistillation
from .ewc import ElasticWeightConsolidation
from .fine_tuning import FineTuning
from .l2p import LearningToPrompt
from .lwf import LearningWithoutForgetting
from .o_lora import OrthogonalLora
from .replay import Replay
from .static import Static
from .zero_shot import ZeroShot

METHODS: dict[str, type[ContinualMethod]] = {
    "fine_tuning": FineTuning,
    "ema_distillation": EmaDistillation,
    "lwf": LearningWithoutForgetting,
    "ewc": ElasticWeightConsolidation,
    "replay": Replay,
    "o_lora": OrthogonalLora,
    "l2p": LearningToPrompt,
    "simplecil": SimpleCil,
    "ranpac": RanPac,
    "static": Static,
    "zero_shot": ZeroShot,
}

__all__ = [
    "METHODS",
    "ContinualMethod",
    "ElasticWeightConsolidation",
    "EmaDistillation",
    "FineTuning",
    "LearningToPrompt",
    "LearningWithoutForgetting",
    "OrthogonalLora",
    "RanPac",
    "Replay",
    "SimpleCil",
    "Static",
    "ZeroShot",
]
