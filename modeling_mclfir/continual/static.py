# SPDX-License-Identifier: Apache-2.0
"""Retrain on everything seen so far: the upper bound, and what an increment's cost is measured against."""

from .fine_tuning import FineTuning


class Static(FineTuning):
    """
    Every increment begins with a new model, which learns the attributes of all increments so far at once, as in one
    sitting. Nothing of the model before is used; all vectors change, so the whole index has to be made anew.

    A batch serves all attributes, so an epoch costs about as many passes of the trunk as one of a single increment.
    """

    adapter_policies = ("shared", "frozen")
    needs_rows = True
    retrains = True
