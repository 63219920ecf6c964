# SPDX-License-Identifier: Apache-2.0
"""Kill `mclfir index build`, `add` and `reindex` and look at what is there afterwards.

    python tests/benchmarks/catalogue_crashes.py [--kills 50] [--verbs build add reindex] [--seed 0]

kill -9 at so many random moments in all, shared out over the verbs; after each kill the catalogue must open and hold
what was acknowledged, and nothing that is neither as before nor as in the end; the same command then completes it, bit
for bit as without a kill.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = Path(__file__).resolve().parents[1] / "catalogue" / "crash_worker.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--verbs", nargs="+", default=["build", "add", "reindex"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failed = 0
    path = os.pathsep.join([str(WORKER.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    for place, verb in enumerate(args.verbs):
        kills = args.kills // len(args.verbs) + (place < args.kills % len(args.verbs))
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, WORKER, Path(folder) / "home", verb, kills, args.seed]
            result = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
            )
        good = result.returncode == 0
        print(result.stdout.splitlines()[-1] if good else f"{verb}: {result.stderr[-2000:]}", flush=True)
        failed += not good
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
