"""Memory that a network's tensors give back and take again, many times a second.

The C library hands large blocks back to the system as soon as they are freed, and every page of a new one costs a
fault: on a CPU up to a third of a training step.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3): free memory that is kept, and the size above which a block is the system's."""
KEPT = 2**30
LARGE = 2**25  # the most that older versions of the library take


def keep_freed_memory() -> bool:
    """Let this process keep what its tensors give back; whether the C library can (glibc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all([library.mallopt(TRIM_THRESHOLD, KEPT), library.mallopt(MMAP_THRESHOLD, LARGE)])
