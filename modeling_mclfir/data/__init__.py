# SPDX-License-Identifier: Apache-2.0
"""Data: the row schema, increments, readers (streams and tables), image decoding and the preparation of data sets.

Import the modules by name; this file imports nothing, so that a light user does not pay for `datasets`.
"""
