# SPDX-License-Identifier: Apache-2.0
"""The `mclfir` command: one file a subcommand."""
