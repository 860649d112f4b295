"""Memory of tensors beside the CPU: what every step frees and asks for anew should not go back to the system."""

import ctypes
import ctypes.util
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory for the process; returns whether it does (False on other systems).

    By default every large tensor is mapped anew and unmapped when freed, and the system must clear each of its pages
    before it can be written: in steps on a CPU that takes up to a quarter of the time, and where batches are made of
    cached features for a GPU, more than all else. The process holds on to the most that it has needed.
    """
    name = ctypes.util.find_library("c") if sys.platform == "linux" else None
    if name is None:
        return False
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
