# SPDX-License-Identifier: Apache-2.0
"""Two real processes of `accelerate launch` fill one catalogue."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from small_catalogue import contents, write_photos

from modeling_mclfir.catalogue import Catalogue, FolderSource
from modeling_mclfir.catalogue.filling import FillSettings

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(port), "-m", "modeling_mclfir.cli.index", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_two_processes_share_the_work(checkpoints, tmp_path):
    """Bit for bit the catalogue of one process: a batch is a batch, whoever embeds it."""
    photos = write_photos(tmp_path / "photos", range(22))
    flags = ("--batch_size", 4, "--commit_size", 4)
    done = launch(
        "build", "--index", tmp_path / "two", "--checkpoint", checkpoints["first"], "--images", photos, *flags
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "22 of 22 images embedded" in done.stderr and done.stderr.count("images embedded") == 1
    with Catalogue.create(tmp_path / "one") as catalogue:
        fill = FillSettings(4, 4, progress=False)
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=fill)
        one = contents(catalogue.index)
    with Catalogue.open(tmp_path / "two") as catalogue:
        assert contents(catalogue.index) == one
        assert [event["embedded"] for event in catalogue.info()["events"]] == [22]
        assert all(revision.spread for revision in catalogue.index.spaces.values())


def test_a_mistake_ends_both(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", range(5))
    for number in range(4):
        (photos / f"broken {number}.png").write_bytes(b"no image")
    done = launch(
        "build", "--index", tmp_path / "two", "--checkpoint", checkpoints["first"], "--images", photos,
        "--batch_size", 1,
    )  # fmt: skip
    assert done.returncode != 0 and "of 9 images are bad" in done.stderr
