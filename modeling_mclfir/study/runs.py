# SPDX-License-Identifier: Apache-2.0
"""The runs of a study: each a training run in a process of its own, none of them twice."""

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StudyRun:
    """
    One run of a study.

    Attributes:
        name: its folder below the study's, such as "canonical/lwf/seed0".
        settings: of the training, by the names of its flags; None leaves a flag out.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def flags(self) -> list[str]:
        """The settings as they are written on a command line."""
        given = {name: value for name, value in self.settings.items() if value is not None}
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]


class StudyRuns:
    """
    Trains the runs of a study below one folder. A run that is finished is not trained again, one that was stopped goes
    on where it stood; so a study may be stopped at any time.

    Args:
        folder: of the study.
        workers: runs at a time, each in a process of its own.
        threads: of each run.
        minutes: begin no run after that time; None: no end.
    """

    def __init__(self, folder: Path, workers: int = 1, threads: int = 1, minutes: float | None = None):
        if workers < 1 or threads < 1:
            raise ValueError(f"workers and threads must be at least 1; got {workers} and {threads}.")
        self.folder, self.workers, self.threads = Path(folder), workers, threads
        # Forked off a server that has done no more than the imports: no run pays for those again, and none inherits a
        # lock that a thread of this process happens to hold.
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["train_mclfir"])
        self.end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")

    def reports(self, runs: Sequence[StudyRun]) -> Iterator[tuple[StudyRun, dict | None]]:
        """
        Each run and its report, in the order given; None for a run that was not begun because the time was up.

        Raises:
            ChildProcessError: a run failed; its log is named.
        """
        pool = ThreadPoolExecutor(self.workers)
        try:
            yield from zip(runs, pool.map(self._one, runs), strict=True)
        finally:
            # After a failure what is at work ends, and nothing else begins.
            pool.shutdown(cancel_futures=True)

    def _one(self, run: StudyRun) -> dict | None:
        folder = self.folder / run.name
        report = finished_report(folder)
        if report is not None:
            return report
        if time.monotonic() > self.end:
            return None
        words = ["--output_dir", str(folder), *run.flags()]
        if any(folder.glob("*/training_state.json")):
            words.append("--resume")
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        child = self._processes.Process(target=_train, args=(words, log, self.threads))
        child.start()
        child.join()
        report = finished_report(folder)
        # Its exit code says nothing: where two threads ask for it at a time, one of them is told 255.
        if report is None:
            last = log.read_text().strip().splitlines()[-1:] if log.exists() else []
            raise ChildProcessError(f"the run {run.name} failed ({''.join(last)}); its log is {log}")
        for path in (*folder.glob("increment-*/*.safetensors"), *folder.glob("last/*.safetensors")):
            path.unlink()  # scores and costs are what is wanted; a study's weights would fill the disk
        return report


def finished_report(folder: Path) -> dict | None:
    """The report of a run that is finished, or None."""
    path = Path(folder) / "report.json"
    report = json.loads(path.read_text()) if path.exists() else None
    return report if report and report["finished"] else None


def _train(words: list[str], log: Path, threads: int) -> None:
    import torch

    import train_mclfir

    torch.set_num_threads(threads)
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            train_mclfir.main(words)
        except BaseException:  # this process ends here, whatever happened
            traceback.print_exc(file=file)
            sys.exit(1)
