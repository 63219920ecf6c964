# SPDX-License-Identifier: Apache-2.0
"""One command a data set: from the files as they are obtained to streamed Parquet."""
