# SPDX-License-Identifier: Apache-2.0
"""What training costs: samples, steps, FLOPs, seconds, memory."""

import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Cost:
    """Sums over a run. FLOPs count a multiplication and an addition as two; waiting is for batches, of the seconds."""

    samples: int = 0
    steps: int = 0
    flops: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def add(self, other: "Cost") -> None:
        """Add another bill; of memory the higher peak stands."""
        self.samples += other.samples
        self.steps += other.steps
        self.flops += other.flops
        self.seconds += other.seconds
        self.waiting_seconds += other.waiting_seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, other.peak_memory_bytes)

    def to_dict(self) -> dict:
        """Plain numbers, for JSON."""
        return asdict(self)


def count_flops(work: Callable[[], object]) -> tuple[object, int]:
    """Run `work` once; its result and the FLOPs of all its operations."""
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter:
        result = work()
    return result, counter.get_total_flops()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far of the GPU's allocations, or of this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux begins at the peak of the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _convolution_backward(
    grad_out_shape, x_shape, w_shape, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, mask,
    out_shape,
) -> int:  # fmt: skip
    # torch's own formula takes a grouped convolution's backward for a dense one (a depthwise one comes out about
    # 66 forwards dear). Each of the two gradients costs what the forward cost: one multiply-add for each output
    # place, output channel and weight of that channel; w_shape[1] is already the channels of one group.
    places = prod((x_shape if transposed else grad_out_shape)[2:])
    forward = 2 * grad_out_shape[0] * places * prod(w_shape)
    return forward * (int(mask[0]) + int(mask[1]))
