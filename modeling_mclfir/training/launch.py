# SPDX-License-Identifier: Apache-2.0
"""`accelerate launch --cpu --num_processes N` made to mean it.

Without MPI, accelerate 1.15 starts one process on a CPU, whatever number it was told, and says nothing. Here the
others are started, by torch's own launcher.
"""

import os
import sys

import psutil
from accelerate.logging import get_logger

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
