# SPDX-License-Identifier: Apache-2.0
"""The index against what it is built on: ratios of two things done in turn, in one run.

    python tests/benchmarks/index.py [--only search,curve,policies,embedding,milvus] [--rows 100000] [--output FOLDER]

The curve of a million vectors takes a quarter of an hour, and 4 GB of disk in --work:

    python tests/benchmarks/index.py --only curve --rows 1000000 --no-raw --output FOLDER

search: our search against FAISS's own on the same index. curve: build, memory, recall@10 against flat and queries/s
by efSearch or nprobe, of generated clusters of unit vectors. policies: what a new model revision costs under each
reindex policy against "full". embedding: all attributes against a bare pass of the trunk (more: steps.py, scaling.py).
milvus: insert and search of an embedded file and a server against FaissStore.

With one thread, seconds are those that the processor spends on this process, so that what else runs there drops out;
of policies and of Milvus they are those on the wall.
"""

import argparse
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

PARTS = {
    "search": "index_search",
    "curve": "index_search",
    "policies": "index_policies",
    "embedding": "index_policies",
    "milvus": "index_milvus",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="some of them, by commas (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--factories", nargs="+", help="default: Flat, HNSW32, IVF without and with PQ")
    parser.add_argument("--ef-search", type=int, default=64, help="of HNSW in search (default: %(default)s)")
    parser.add_argument("--nprobe", type=int, default=16, help="of IVF in search (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="of the curve, 2048 at most (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="with more, seconds are those on the wall")
    parser.add_argument("--no-raw", action="store_true", help="build no raw index beside ours: half the time")
    parser.add_argument("--output", type=Path, help="folder for the curve's plot and points")
    parser.add_argument("--work", type=Path, help="folder for what is built, emptied at the end")
    parser.add_argument("--trunk", default="../shared/weights/mobilenet_v2_1.0_224")
    parser.add_argument("--checkpoints", nargs=2, help="of a run, older and newer (default: fresh heads on --trunk)")
    parser.add_argument("--photos", default="../shared/data/stanford_clothing_attributes", help="else drawn ones")
    parser.add_argument("--items", type=int, default=256, help="photos in the index of policies (%(default)s)")
    parser.add_argument("--calibration", type=int, default=32, help="items of a drift map (default: %(default)s)")
    parser.add_argument("--size", type=int, default=192, help="pixels that photos are resized to (%(default)s)")
    parser.add_argument("--milvus-rows", type=int, default=20_000, help="vectors of 64 (default: %(default)s)")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := sorted(set(args.only) - set(PARTS)):
        parser.error(f"--only {','.join(unknown)}; expected some of {','.join(PARTS)}")
    return args


def main() -> None:
    args = arguments()
    # Before anything that has threads is imported, here and in the processes started below.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        for part in args.only:
            print(f"\n{part}, {os.cpu_count()} cores, {args.threads} threads used", flush=True)
            try:
                module = import_module(PARTS[part])
            except ModuleNotFoundError as error:
                if error.name in ("modeling_mclfir", *sys.stdlib_module_names):
                    raise
                print(f"skipped: {error.name} is not installed")
                continue
            for what, *values in getattr(module, part)(args, Path(folder)):
                print(f"{what:<44}" + "".join(f"{value:>18}" for value in values), flush=True)


if __name__ == "__main__":
    main()
