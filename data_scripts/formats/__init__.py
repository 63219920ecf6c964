# SPDX-License-Identifier: Apache-2.0
"""The formats that annotation files come in; what several data scripts share."""
