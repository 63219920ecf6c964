# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from modeling_mclfir.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()

for _ in range(30):
    bytearray(64_000_000)  # freed at once
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt))
"""


def faults(how, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", SCRIPT, how]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_arrays_are_used_again():
    if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("another C library")
    handed_out_anew, kept = (int(faults(how).stdout) for how in ("leave", "keep"))
    assert kept < handed_out_anew / 2  # pages that the system had to hand out


def test_what_the_user_has_set_stands():
    result = faults("keep", MALLOC_TRIM_THRESHOLD_="100000")
    assert result.returncode and "AssertionError" in result.stderr
