# SPDX-License-Identifier: Apache-2.0
"""How storage and embedding grow with the number of increments: measured from 1 to 20, formulas for the rest.

    python tests/benchmarks/scaling.py [--trunk ID_OR_FOLDER] [--attributes 5] [--measured 1 5 10 20]

Bytes are counted on the model; times are ratios to one bare pass of the trunk, measured in turn with it. The formula
is what the design says: a common part once, a tail and heads for each increment. What both cost
is a straight line through the measured rows.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from modeling_mclfir import MclfirForImageRetrieval


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bytes_of(parameters) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="../shared/weights/mobilenet_v2_1.0_224")
    parser.add_argument("--attributes", type=int, default=5, help="of an increment")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measured", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--computed", type=int, nargs="+", default=[100, 1000])
    args = parser.parse_args()
    args.measured = sorted(set(args.measured))
    if len(args.measured) < 2:
        parser.error(f"--measured needs two numbers of increments to tell what one costs; got {args.measured}")
    torch.manual_seed(0)
    model = MclfirForImageRetrieval.from_trunk(args.trunk).eval()
    trunk = bytes_of(model.mclfir.trunk.parameters())
    pixels = torch.randn(args.batch, 3, args.size, args.size)
    rows, count = [], args.attributes
    for increments in range(1, max(args.measured) + 1):
        model.add_increment(f"i{increments}", [f"a{increments}-{place}" for place in range(count)])
        if increments in args.measured:
            rows.append((increments, *measure(model.eval(), pixels, args.rounds)))
    added = 4 * sum(model.num_added_parameters().values()) // len(model.heads)
    vector = 4 * count * model.config.embed_dim
    print(f"{args.trunk}, {count} attributes an increment, {args.batch} images of {args.size} px, "
          f"{torch.get_num_threads()} threads, median of {args.rounds} rounds\n")  # fmt: skip
    print(f"one increment adds {added:,} B of weights ({100 * added / trunk:.2f} % of the trunk's {trunk:,} B),")
    print(
        f"{vector} B of vectors an image (its attributes × {model.config.embed_dim} × 4 B), and keeps all old ones.\n"
    )
    print("| increments | weights, MB | vectors an image, kB | embed all / bare pass | embed the newest / bare pass |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for increments, every, newest in rows:
        print(line(increments, trunk, added, vector, f"{every:.2f}", f"{newest:.2f}"))
    # What all increments share is the rest of a pass: embed all = common + increments × tail.
    tail, common = np.polyfit([row[0] for row in rows], [row[1] for row in rows], 1)
    newest = statistics.median(row[2] for row in rows)
    for increments in args.computed:
        every = common + tail * increments
        print(line(increments, trunk, added, vector, f"{every:.0f} (formula)", f"{newest:.2f} (formula)"))
    print(f"\nembed all of n increments = {common:.2f} + {tail:.2f} · n bare passes; of a new one alone {newest:.2f}, "
          f"from kept shared features {tail:.2f}.")  # fmt: skip


def line(increments: int, trunk: int, added: int, vector: int, every: str, newest: str) -> str:
    weights = (trunk + increments * added) / 1e6
    return f"| {increments} | {weights:,.1f} | {increments * vector / 1000:,.1f} | {every} | {newest} |"


@torch.no_grad()
def measure(model: MclfirForImageRetrieval, pixels: torch.Tensor, rounds: int) -> tuple[float, float]:
    """Seconds of all attributes, and of the newest increment's, over those of a bare pass of the trunk."""
    newest = len(model.heads) - 1
    works = {
        "bare": lambda: model.mclfir(pixel_values=pixels, increment_id=None),
        "all": lambda: model(pixel_values=pixels),
        "newest": lambda: model(pixel_values=pixels, increment_id=newest),
    }
    times = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            elapsed = seconds(work)
            if turn:  # the first round warms up
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    return median["all"] / median["bare"], median["newest"] / median["bare"]


if __name__ == "__main__":
    main()
