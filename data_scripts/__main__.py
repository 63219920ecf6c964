# SPDX-License-Identifier: Apache-2.0
"""`python -m data_scripts NAME …`: the same as `python -m data_scripts.NAME …`."""

import sys

from modeling_mclfir.cli.main import main

main(["prepare", *sys.argv[1:]])
