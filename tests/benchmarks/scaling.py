# SPDX-License-Identifier: Apache-2.0
"""How storage, embedding and search grow with the number of increments: measured from 1 to 20, formulas for the rest.

    python tests/benchmarks/scaling.py [--trunk ID_OR_FOLDER] [--attributes 5] [--measured 1 5 10 20]

Bytes are counted on the model; times are ratios to one bare pass of the trunk, measured in turn with it. The formula
is what the design says: a common part once, a tail and heads for each increment. What both cost
is a straight line through the measured rows. A search is exact (FAISS, flat), of one query for one attribute among
`--gallery` images, whose vectors of all attributes are kept: it reads those of the attribute asked for.
"""

import argparse
import statistics
import time

import faiss
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
    parser.add_argument("--values", type=int, default=10, help="of an attribute")
    parser.add_argument("--gallery", type=int, default=20_000, help="images that are searched")
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
        new = model.add_increment(f"i{increments}", [f"a{increments}-{place}" for place in range(count)])
        learned = torch.nn.functional.normalize(torch.randn(8 * args.values, count, model.config.embed_dim), dim=-1)
        values = torch.arange(8 * args.values) % args.values
        model.refine_increment(new, learned, values[:, None].expand(-1, count))
        if increments in args.measured:
            rows.append((increments, *measure(model.eval(), pixels, args.rounds)))
    added = 4 * sum(model.num_added_parameters().values()) // len(model.heads)
    added += bytes_of(model.heads[0].refinement.buffers())
    vector = 4 * count * model.config.embed_dim
    print(f"{args.trunk}, {count} attributes an increment, {args.batch} images of {args.size} px, "
          f"{torch.get_num_threads()} threads, median of {args.rounds} rounds\n")  # fmt: skip
    print(f"one increment adds {added:,} B of weights ({100 * added / trunk:.2f} % of the trunk's {trunk:,} B),")
    print(
        f"{vector} B of vectors an image (its attributes × {model.config.embed_dim} × 4 B), and keeps all old ones.\n"
    )
    searches = search_ratios([row[0] for row in rows], count, model.config.embed_dim, args.gallery, args.rounds)
    print("| increments | weights, MB | vectors an image, kB | all, passes | the newest, passes | search / first |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for (increments, every, newest), search in zip(rows, searches, strict=True):
        print(line(increments, trunk, added, vector, f"{every:.2f}", f"{newest:.2f}", f"{search:.2f}"))
    # What all increments share is the rest of a pass: embed all = common + increments × tail.
    tail, common = np.polyfit([row[0] for row in rows], [row[1] for row in rows], 1)
    newest = statistics.median(row[2] for row in rows)
    for increments in args.computed:
        every = common + tail * increments
        cells = (f"{every:.0f} (formula)", f"{newest:.2f} (formula)", "1 (formula)")
        print(line(increments, trunk, added, vector, *cells))
    print(f"\nembed all of n increments = {common:.2f} + {tail:.2f} · n bare passes; of a new one alone {newest:.2f}, "
          f"from kept shared features {tail:.2f}.")  # fmt: skip


def line(increments: int, trunk: int, added: int, vector: int, *times: str) -> str:
    weights = (trunk + increments * added) / 1e6
    return f"| {increments} | {weights:,.1f} | {increments * vector / 1000:,.1f} | {' | '.join(times)} |"


def search_ratios(measured: list[int], count: int, dim: int, gallery: int, rounds: int) -> list[float]:
    """Seconds of a search beside the indexes of all attributes of so many increments, over those beside one's."""
    rng = np.random.default_rng(0)
    indexes, query = [], rng.normal(size=(1, dim)).astype("float32")
    medians = []
    for increments in measured:
        while len(indexes) < increments * count:
            indexes.append(faiss.IndexFlatIP(dim))
            indexes[-1].add(rng.normal(size=(gallery, dim)).astype("float32"))
        # Another attribute each time, so that none of them lies in the processor's cache.
        chosen = rng.integers(0, len(indexes), 4 * rounds)
        medians.append(statistics.median(seconds(lambda at=at: indexes[at].search(query, 20)) for at in chosen))
    return [median / medians[0] for median in medians]


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
