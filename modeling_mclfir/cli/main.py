# SPDX-License-Identifier: Apache-2.0
"""`mclfir COMMAND …`: finds the command and hands it the rest of the line."""

import importlib
import sys

COMMANDS = {
    "train": ("modeling_mclfir.cli.train", "learn increments of attributes (the same as train_mclfir.py)"),
    "embed": ("modeling_mclfir.cli.embed", "embed images with a checkpoint, one vector an attribute, into Parquet"),
    "tag": ("modeling_mclfir.cli.tag", "the value of each attribute of photos, by the vote of a labelled gallery"),
    "attend": ("modeling_mclfir.cli.attend", "heat maps of photos: where it looks for each attribute, and its value"),
    "name-values": ("modeling_mclfir.cli.name_values", "values of photos by text alone, beside trained heads: scores"),
    "index": ("modeling_mclfir.cli.index", "a catalogue: build, search, add, remove, reindex, backfill, export"),
    "study": ("modeling_mclfir.cli.study", "continual methods compared: scores, forgetting, costs, pictures"),
    "study-index": ("modeling_mclfir.cli.study_index", "reindex policies compared on a training run's increments"),
    "prepare": ("modeling_mclfir.cli.prepare", "a data set from its raw form to Parquet shards (data_scripts)"),
}
# Commands that take up what was begun, by their first words.
_GO_ON = ("study", "study-index", "prepare", "index build", "index add", "index reindex", "index backfill")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `mclfir` command. A user's mistake ends in one line, not in a traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        sys.exit(f"error: mclfir has no command {name!r}.\n{_usage()}")
    command = importlib.import_module(COMMANDS[name][0])
    try:
        command.main(rest)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nstopped.{_how_to_go_on(arguments)}\n")
        sys.exit(130)  # as a shell has it
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def _how_to_go_on(arguments: list[str]) -> str:
    if arguments[0] == "train":
        return " With --resume the same command goes on from its last checkpoint."
    goes_on = {arguments[0], " ".join(arguments[:2])} & set(_GO_ON)
    return " The same command goes on where it stopped." if goes_on else ""


def _usage() -> str:
    lines = [f"  {name:<13}{about}" for name, (_, about) in COMMANDS.items()]
    return "usage: mclfir COMMAND …\n\n" + "\n".join(lines) + "\n\n`mclfir COMMAND --help` tells its flags.\n"
