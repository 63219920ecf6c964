# SPDX-License-Identifier: Apache-2.0
"""The tasks: what data a task is learned from, how it runs, how it is scored and what its report says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .attribute_scores import AttributeScores
from .open_data import open_data
from .open_pairs import open_pairs
from .plots import draw_plots
from .report import write_report
from .run import Run
from .run_report import build_report, build_text_image_report
from .text_image_plots import draw_text_image_plots
from .text_image_report import write_text_image_report
from .text_image_run import TextImageRun
from .text_image_scores import TextImageScores


@dataclass(frozen=True)
class Task:
    """
    What the main script needs to know of a task; everything else (increments, methods, steps, checkpoints) is common.

    Attributes:
        open_data: arguments → `TrainingData`.
        run: the class of its runs.
        scores: run, method → what is scored, with `before_training`, `after_increment` and `examples`.
        build_report: run → what report.json holds.
        write_report: that, folder → report.json and report.md.
        draw_plots: that, examples, folder → pictures.
    """

    open_data: Callable[..., Any]
    run: type[Run]
    scores: Callable[..., Any]
    build_report: Callable[[Run], dict]
    write_report: Callable[[dict, Path], None]
    draw_plots: Callable[[dict, dict, Path], None]


TASKS = {
    "attribute": Task(open_data, Run, AttributeScores, build_report, write_report, draw_plots),
    "text-image": Task(
        open_pairs, TextImageRun, TextImageScores, build_text_image_report, write_text_image_report,
        draw_text_image_plots,
    ),
}  # fmt: skip
