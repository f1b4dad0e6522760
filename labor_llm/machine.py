"""What computes: numbers depend on it in their last digits."""

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """The processor as it names itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads among which PyTorch divides a product; their number changes the order of its sums."""
    import torch

    return torch.get_num_threads()


def gpu_name() -> str | None:
    """The GPU that PyTorch takes first, if there is one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
