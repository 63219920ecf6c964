# SPDX-License-Identifier: Apache-2.0
"""accelerate, and `accelerate launch --cpu --num_processes N` made to mean it.

Without MPI, accelerate 1.15 starts one process on a CPU, whatever number it was told, and says nothing. Here the
others are started, by torch's own launcher.
"""

import os
import sys

import psutil
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed

from ..data.collators import local_slice
from .memory import keep_freed_memory

logger = get_logger(__name__)


def processes_asked_for() -> int:
    """The N of an `accelerate launch --cpu --num_processes N` that started one process alone; otherwise 1."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # accelerate names a port for N > 1, and a launcher that really starts N gives each a LOCAL_RANK (or MPI's).
    ranks = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK", "MPI_LOCALRANKID")
    if not on_cpu or "MASTER_PORT" not in os.environ or any(name in os.environ for name in ranks):
        return 1
    parent = psutil.Process().parent()
    words = [] if parent is None else parent.cmdline()
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or (words[place + 1] if place + 1 < len(words) else "")
            return int(value) if value.isdigit() else 1
    return 1


def start_all(script: str, arguments: list[str], num_processes: int) -> None:
    """Run `script` in `num_processes` processes of this machine and wait for them; exits with their status."""
    from torch.distributed.run import main as torchrun

    # This process is the launcher now; torchrun gives each of the others its place.
    port = os.environ.pop("MASTER_PORT")
    os.environ.pop("MASTER_ADDR", None)
    torchrun(["--nproc_per_node", str(num_processes), "--master_port", port, script, *arguments])
    sys.exit(0)


def start_accelerator(args) -> Accelerator:
    """
    accelerate, with the precision that `--mixed_precision` names and the trackers of `--report_to`.

    Raises:
        ValueError: the batch does not divide into doublets for each process.
    """
    keep_freed_memory()
    precision = args.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    trackers = [] if args.report_to in ("", "none") else args.report_to.split(",")
    # accelerate takes a process of torchrun on a machine without a GPU for a run of its own, unless it is told.
    cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=precision, log_with=trackers or None, project_dir=args.output_dir
    )
    sizes = [args.batch_size] + [args.replay_batch_size] * (args.method == "replay")
    for size in sizes:  # else an error, and now
        local_slice(size, accelerator.process_index, accelerator.num_processes)
    set_seed(args.seed)
    return accelerator
