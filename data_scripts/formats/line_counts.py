# SPDX-License-Identifier: Apache-2.0
"""Lines that make no row of their own (triplets, pairs, captions): how many there are of a kind, and what is bad."""

from collections.abc import Mapping

from modeling_mclfir.data.annotations import BadLines
from modeling_mclfir.data.images import BadRows


class LineCounter(BadRows):
    """The bad lines of one kind; `read` is to be raised for every line, good or bad."""

    def __init__(self):
        super().__init__()
        self.read = 0


def bad_lines(counters: Mapping[str, LineCounter]) -> dict[str, BadLines]:
    """Kind of line, a word such as "triplet" → its bad ones; of the kinds that a line was read of."""
    return {kind: BadLines(counter, counter.read) for kind, counter in counters.items() if counter.read}
