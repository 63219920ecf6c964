# SPDX-License-Identifier: Apache-2.0
"""Kills at random moments; `python tests/benchmarks/index_crashes.py` does many more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the victims are forked")
@pytest.mark.parametrize("verb, kills", [("build", 5), ("add", 3), ("reindex", 3)])
def test_a_killed_command_goes_on(tmp_path, verb, kills):
    """After each kill what was acknowledged is there; in the end the catalogue is bit for bit that of no kill."""
    command = [sys.executable, str(HERE / "crash_worker.py"), str(tmp_path / "home"), verb, str(kills)]
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=os.environ | {"PYTHONPATH": path}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["kills"] == kills and report["entries"] >= 3 * 36
