# SPDX-License-Identifier: Apache-2.0
"""Kill whatever writes to an index, and look at what is there afterwards.

    python tests/benchmarks/index_crashes.py [--kills 60] [--minutes 30] [--only store,readers,catalogue,points]

store: kill -9 at random moments of add, remove, putting segments together and build of a FaissStore. catalogue: of
`mclfir index build`, `add` and `reindex`, while readers look at the catalogue. After each kill what was acknowledged
must be there and nothing torn; in the end the same command completes it (a catalogue bit for bit as without a kill).
readers: two writers and ten readers of a store at once. points: a kill before and after every fsync, rename and
deletion of the first 20 operations of a store; only where it is asked for. All of them with each kind of index.

--kills are shared out over what is killed, and --minutes over all: where its time is up, a part ends with the kills
that it has.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PARTS = ("store", "readers", "catalogue", "points")
# Of what follows the last kill: the command once more, to its end.
_GRACE = 600.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="in all (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="time for all of it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="store,readers,catalogue", help="by commas (default: %(default)s)")
    parser.add_argument("--factories", nargs="+", default=["Flat", "HNSW8"])
    parser.add_argument("--verbs", nargs="+", default=["build", "add", "reindex"], help="of the catalogue")
    parser.add_argument("--batches", type=int, default=100, help="of each writer among readers (default: %(default)s)")
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.only.split(",")) - set(PARTS)):
        parser.error(f"--only {','.join(unknown)}; expected some of {','.join(PARTS)}")
    runs, made, failed = planned(args), 0, 0
    shares = shared(args.kills, sum(kills for kills, _ in runs))
    end = time.monotonic() + 60 * args.minutes
    for number, (is_killed, what) in enumerate(runs):
        seconds = max(1.0, (end - time.monotonic()) / (len(runs) - number))
        report = run(what, next(shares) if is_killed else 0, args, seconds)
        made, failed = made + (report or {}).get("kills", 0) * is_killed, failed + (report is None)
    print(f"{made} of {args.kills} kills made, {failed} of {len(runs)} parts failed", flush=True)
    sys.exit(failed > 0)


def planned(args: argparse.Namespace) -> list[tuple[bool, tuple[str, ...]]]:
    """Of each part whether it takes a share of the kills, and what it is."""
    found = []
    for part in args.only.split(","):
        for factory in args.factories:
            if part == "catalogue":
                found += [(True, (part, factory, verb)) for verb in args.verbs]
            else:
                found.append((part == "store", (part, factory)))
    return found


def shared(kills: int, parts: int):
    """So many each, the first ones one more."""
    return iter([kills // parts + (place < kills % parts) for place in range(parts)] if parts else [])


def run(what: tuple[str, ...], kills: int, args: argparse.Namespace, seconds: float) -> dict | None:
    """A part in a process of its own → what it reports; None: it failed, which is printed."""
    part, factory, *verb = what
    program, words = {
        "store": ("index/crash_worker.py", (factory, kills, args.seed, seconds)),
        "points": ("index/crash_worker.py", (factory, "points", 0, 20)),
        "readers": ("index/concurrent_worker.py", (factory, args.batches)),
        "catalogue": ("catalogue/crash_worker.py", (*verb, kills, args.seed, seconds, factory)),
    }[part]
    path = os.pathsep.join([str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, TESTS / program, Path(folder) / "home", *words]
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            out, errors = process.communicate(timeout=seconds + _GRACE)
        except subprocess.TimeoutExpired:
            errors = f"it had not ended {_GRACE:.0f} s after its time was up"
        finally:
            end(process)
    good = process.returncode == 0
    print(*what, out.splitlines()[-1] if good else f"FAILED: {errors[-2000:]}", flush=True)
    return json.loads(out.splitlines()[-1]) if good else None


def end(process: subprocess.Popen) -> None:
    """A process that still runs, and those that it forked."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
