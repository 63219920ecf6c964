# SPDX-License-Identifier: Apache-2.0
"""Training: arguments, data of an increment, the loop of one increment, checkpoints, cost, report."""
