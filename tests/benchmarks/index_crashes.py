# SPDX-License-Identifier: Apache-2.0
"""Kill writers of a FAISS store and look at what is there afterwards.

    python tests/benchmarks/index_crashes.py [--kills 60] [--points] [--readers]

--kills: kill -9 at so many random moments of add, remove, putting segments together and build, with each kind of
index; after each kill the store must hold what was acknowledged, and at the end the work goes on. --points adds a kill
before and after every fsync, rename and deletion of the first 20 operations; --readers two writers and ten readers
for 100 batches.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / "index"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--factories", nargs="+", default=["Flat", "HNSW8"])
    parser.add_argument("--points", action="store_true")
    parser.add_argument("--readers", action="store_true")
    args = parser.parse_args()
    failed = 0
    for factory in args.factories:
        runs = [("crash_worker.py", factory, args.kills, args.seed)]
        runs += [("crash_worker.py", factory, "points", 0, 20)] if args.points else []
        runs += [("concurrent_worker.py", factory, 100)] if args.readers else []
        for program, *arguments in runs:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, PROGRAMS / program, Path(folder) / "store", *arguments]
                result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            print(program, *arguments, result.stdout.strip() or result.stderr.strip(), flush=True)
            failed += result.returncode != 0
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
