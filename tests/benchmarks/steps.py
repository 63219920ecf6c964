# SPDX-License-Identifier: Apache-2.0
"""Ratios of training steps and of embedding passes, run in turn; the median of several rounds."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", default="../shared/weights/mobilenet_v2_1.0_224")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
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
    times = {name: [] for name in works}
    for turn in range(args.rounds + 1):
        for name, work in works.items():
            elapsed = seconds(work, device)
            if turn:  # the first round warms up
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{device}, batch {args.batch}, {args.size} px, {torch.get_num_threads()} threads, median of {args.rounds}")
    print(f"training step, cached features / images                 {median['cached'] / median['images']:.2f}")
    ratio = median["cached"] / median["cached, channels first"]
    print(f"training step, channels last / channels first           {ratio:.2f}")
    print(f"embedding 5 attributes of 1 increment / bare trunk pass {median['embed'] / median['bare']:.2f}")


if __name__ == "__main__":
    main()
