"""Whether something large may stay in memory, or is read from disk piece by piece."""

from __future__ import annotations

import os

from gmtool.distributed import neighbours

SHARE = 0.25
"""Share of the machine's memory that one array may take."""


def fits_in_memory(size: int) -> bool:
    """Whether ``size`` bytes, in each process of this machine, are at most a quarter of the physical memory."""
    return neighbours() * size <= SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
