# SPDX-License-Identifier: Apache-2.0
"""Continual methods, one file each: a new one is a file here and a line below."""

from .base import ContinualMethod
from .ema_distillation import EmaDistillation
from .fine_tuning import FineTuning

METHODS: dict[str, type[ContinualMethod]] = {
    "fine_tuning": FineTuning,
    "ema_distillation": EmaDistillation,
}

__all__ = ["METHODS", "ContinualMethod", "EmaDistillation", "FineTuning"]
