# SPDX-License-Identifier: Apache-2.0
"""Data at size: rows prepared and streamed a second, memory, decoding against plain PIL, and the wait for batches.

prepare: generated rows, and a folder of photos with a CSV, to Parquet. stream: these rows back, shuffled, to 2
processes. decode: photos to a batch, against PIL alone. wait: the share of a training run in which it had no batch.
"""

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Before datasets is imported, here and in the processes started below: nothing may wait for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from generated_rows import COLOURS, Written, in_processes, peak_memory, pictures, read_rows, write_rows

PARTS = ("prepare", "stream", "decode", "wait")
RANKS = 2
LINKED_FILES = 400


def speed(count: int, seconds: float) -> str:
    return f"{count / seconds:,.0f} rows/s"


def mebibytes(peak: int) -> str:
    return f"{peak / 2**20:,.0f} MiB"


def growth(what: str, small: int, large: int) -> tuple[str, str]:
    return f"{what}, peak at all rows / at a tenth", f"{large / small:.3f}"


def prepare(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """Generated rows, then a folder with a CSV."""
    tenth = args.rows // 10
    kinds = {
        "as they are": {"check_images": False},
        "as they are, copies looked for": {"check_images": False, "keep_duplicates": False},
    }
    for name, settings in kinds.items():
        peaks = []
        for count in (tenth, args.rows):
            # One set is as good as the other for the stream: the rows hold no copies.
            (result,) = in_processes(write_rows, (generated(folder, count), count), overwrite=True, **settings)
            assert result.rows == count
            peaks.append(result.peak)
            yield f"{count:,} rows, {name}", speed(count, result.seconds), mebibytes(result.peak)
        yield growth(f"rows {name}", *peaks)
    for num_proc in (1, 2):
        (result,) = in_processes(write_rows, (folder / f"checked-{num_proc}", tenth), num_proc=num_proc)
        yield f"{tenth:,} rows, checked, num_proc {num_proc}", speed(tenth, result.seconds), mebibytes(result.peak)
    source = linked_photos(folder / "photos", args.files)
    for flags in (["--keep-duplicates"], []):
        for num_proc in ("1", "2"):
            words = [*flags, "--num-proc", num_proc]
            (result,) = in_processes(write_folder, (source, folder / f"folder-{num_proc}-{len(flags)}", words))
            assert result.rows == (args.files if flags else min(LINKED_FILES, args.files))
            what = f"{args.files:,} photos and CSV, {' '.join(words)}"
            yield what, speed(args.files, result.seconds), mebibytes(result.peak)


def generated(folder: Path, count: int) -> Path:
    """Where the generated set of that many rows lies."""
    return folder / f"rows-{count}"


def linked_photos(folder: Path, count: int) -> Path:
    """A folder of that many photos with a CSV; a few hundred files with many names, so that the disk is spared."""
    folder.mkdir()
    files = pictures(LINKED_FILES)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "split", "colour"))
        for place in range(count):
            name = f"{place}.jpg"
            if place < len(files):
                (folder / name).write_bytes(files[place])
            else:
                os.link(folder / f"{place % len(files)}.jpg", folder / name)
            split = ("train", "val", "query", "gallery")[place % 4]
            writer.writerow((name, split, COLOURS[place % len(COLOURS)]))
    return folder


def write_folder(source: Path, output: Path, flags: list[str]) -> Written:
    """The command data_scripts.folder; for a process of its own."""
    from data_scripts.folder import main

    started = time.perf_counter()
    summary = main(["--source", str(source), "--output", str(output), *flags])
    seconds = time.perf_counter() - started
    return Written(sum(summary.counts.values()), sum(summary.duplicates.values()), seconds, peak_memory())


def stream(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """The rows of `prepare` back, shuffled, to two processes, two epochs long."""
    peaks = []
    for count in (args.rows // 10, args.rows):
        target = generated(folder, count)
        if not target.exists():
            in_processes(write_rows, (target, count), check_images=False)
        ranks = in_processes(read_rows, *((target, rank, RANKS) for rank in range(RANKS)), epochs=2)
        peaks.append(max(rank.peak for rank in ranks))
        seconds = max(rank.seconds for rank in ranks)
        yield f"{count:,} rows twice, {RANKS} processes", speed(2 * count, seconds), mebibytes(peaks[-1])
    yield growth("a process", *peaks)
    for epoch in range(2):
        times = np.bincount(np.concatenate([rank.epochs[epoch] for rank in ranks]), minlength=args.rows)
        once, otherwise = (times == 1).sum(), (times != 1).sum()
        yield f"epoch {epoch}: rows that came once, and otherwise", f"{once:,}", f"{otherwise:,}"
    yield "places of the rows in both epochs, correlation", f"{correlation([rank.epochs for rank in ranks]):.4f}"


def correlation(ranks: list[list[np.ndarray]]) -> float:
    """Of the places that a row has in two epochs, where it came to whichever rank."""
    places = []
    for epoch in range(2):
        of_row = np.empty(sum(len(orders[epoch]) for orders in ranks))
        for orders in ranks:
            of_row[orders[epoch]] = np.arange(len(orders[epoch]))
        places.append(of_row)
    return float(np.corrcoef(*places)[0, 1])


HERE = {"prepare": prepare, "stream": stream}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="some of them, by commas (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="generated rows (default: %(default)s)")
    parser.add_argument("--files", type=int, default=100_000, help="photos in the folder (default: %(default)s)")
    parser.add_argument("--photos", default="../shared/data/stanford_clothing_attributes", help="else drawn ones")
    parser.add_argument("--trunk", default="../shared/weights/mobilenet_v2_1.0_224")
    parser.add_argument("--size", type=int, default=192, help="pixels that photos are resized to (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="photos decoded at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="of decoding, in turn (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=4, help="of each training run (default: %(default)s)")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only {','.join(sorted(unknown))}; expected some of {','.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        for part in parts:
            print(f"\n{part}, {os.cpu_count()} cores")
            if part in HERE:
                work = HERE[part]
            else:
                # Late: the processes started here import this file, and torch would make each of them large.
                import training_data

                work = training_data.PARTS[part]
            for what, *values in work(args, Path(folder)):
                print(f"{what:<68}" + "".join(f"{value:>16}" for value in values), flush=True)


if __name__ == "__main__":
    main()
