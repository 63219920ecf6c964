# SPDX-License-Identifier: Apache-2.0
"""How glibc deals with large arrays that come and go."""

import ctypes
import os
import sys

# glibc's mallopt(3): from what size on memory is taken from and given back to the system one by one, and how much free
# memory at the end of the heap goes back.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_KEPT = 2**30  # bytes


def keep_freed_memory() -> bool:
    """
    Keeps the memory of freed arrays for the next ones, where glibc is in use and the user has set nothing else.

    Training on a CPU frees and takes arrays of many megabytes at each step; given back, each page must be handed out
    and cleared anew, which can take half of all time. No number that is computed depends on it.

    Returns:
        Whether it was set.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
