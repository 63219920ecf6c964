# SPDX-License-Identifier: Apache-2.0
"""Ratios of training steps and of embedding passes, run in turn; the median of several rounds.

python tests/benchmarks/steps.py            what caching, the layout and a second attribute cost
python tests/benchmarks/steps.py --heads    forward and backward, and a pass, of each kind of heads
"""

import argparse
import statistics
import time

import torch

from modeling_mclfir import MclfirForImageRetrieval


def seconds(work, device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(works: dict, rounds: int, device) -> dict[str, float]:
    """Seconds of each, one after the other in every round."""
    times = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            elapsed = seconds(work, device)
            if turn:  # the first round warms up
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def compare_heads(args, device) -> None:
    """As in the attribute study: 5 attributes, cached features, 128 numbers each and our own with 32 as well."""
    wide = {"embed_dim": 128, "gate_dim": 128}
    kinds = {
        head: {"head_type": head} | wide for head in ("linear", "csn", "asen", "asen_v2", "ag_man", "mclfir_published")
    }
    kinds |= {"mclfir, 32 numbers": {}, "mclfir, 128 numbers": {"embed_dim": 128}}
    works, models = {}, {}
    pixels = torch.randn(args.batch, 3, args.size, args.size, device=device)
    for name, settings in kinds.items():
        model = MclfirForImageRetrieval.from_trunk(args.trunk, **settings).to(device)
        model.add_increment("one", ["a", "b", "c", "d", "e"])
        model.set_trainable(0)
        with torch.no_grad():
            shared = model.mclfir.shared_forward(pixels)
        models[name] = (
            model.to(memory_format=torch.channels_last),
            shared.contiguous(memory_format=torch.channels_last),
        )

        def step(name=name):
            model, shared = models[name]
            model.train()
            model(shared_features=shared).embeds.square().mean().backward()
            model.zero_grad()

        @torch.no_grad()
        def embed(name=name):
            model, shared = models[name]
            model.eval()
            model(shared_features=shared)

        works |= {f"{name}: step": step, f"{name}: pass": embed}
    median = medians(works, args.rounds, device)
    for name in kinds:
        ratios = [median[f"{name}: {what}"] / median[f"linear: {what}"] for what in ("step", "pass")]
        print(f"{name:20s} forward and backward {ratios[0]:.2f}, embedding pass {ratios[1]:.2f} of the linear heads'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", default="../shared/weights/mobilenet_v2_1.0_224")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--heads", action="store_true", help="compare kinds of heads instead")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    print(f"{device}, batch {args.batch}, {args.size} px, {torch.get_num_threads()} threads, median of {args.rounds}")
    if args.heads:
        compare_heads(args, device)
        return
    model = MclfirForImageRetrieval.from_trunk(args.trunk).to(device)
    model.add_increment("one", ["a", "b", "c", "d", "e"])
    model.set_trainable(0)
    pixels = torch.randn(args.batch, 3, args.size, args.size, device=device)
    with torch.no_grad():
        shared = model.mclfir.shared_forward(pixels)

    def step(layout, **inputs):
        model.train().to(memory_format=layout)
        inputs = {name: value.contiguous(memory_format=layout) for name, value in inputs.items()}
        model(**inputs).embeds.square().mean().backward()
        model.zero_grad()

    @torch.no_grad()
    def embed():
        model.eval().to(memory_format=torch.contiguous_format)
        model(pixel_values=pixels)

    @torch.no_grad()
    def bare():
        model.eval().to(memory_format=torch.contiguous_format)
        model.mclfir(pixel_values=pixels, increment_id=None)

    last, first = torch.channels_last, torch.contiguous_format
    works = {
        "cached": lambda: step(last, shared_features=shared),
        "cached, channels first": lambda: step(first, shared_features=shared),
        "images": lambda: step(last, pixel_values=pixels),
        "embed": embed,
        "bare": bare,
    }
    median = medians(works, args.rounds, device)
    print(f"training step, cached features / images                 {median['cached'] / median['images']:.2f}")
    ratio = median["cached"] / median["cached, channels first"]
    print(f"training step, channels last / channels first           {ratio:.2f}")
    print(f"embedding 5 attributes of 1 increment / bare trunk pass {median['embed'] / median['bare']:.2f}")


if __name__ == "__main__":
    main()
