# SPDX-License-Identifier: Apache-2.0
"""Kill `mclfir index build`, `add` and `reindex`: that part of index_crashes.py alone, with its options.

python tests/benchmarks/catalogue_crashes.py [--kills 50] [--minutes 30] [--verbs build add reindex]
"""

import sys

from index_crashes import main

if __name__ == "__main__":
    main(["--only", "catalogue", *sys.argv[1:]])
