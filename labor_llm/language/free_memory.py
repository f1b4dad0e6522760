"""How much memory a device has left: a GPU's, or this machine's within the limits of its control groups."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

FILES = {
    "memory.max": ("memory.current", "inactive_file"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file"),
}
"""A control group's limit, version 2 and 1 -> what it uses, and what of that is files that can be dropped."""


def free_memory(device: torch.device, processes: int = 1, root: Path = Path("/")) -> int:
    """Bytes that one of several processes of a device can still get; a GPU serves one of them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, *_left_in_groups(root)) // processes


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left within each limit that holds for this process; those above a group hold for it too."""
    yield 2**63
    for folder in _groups(root):
        for limit, (used, files) in FILES.items():
            text = _read(folder / limit)
            if text.isdigit():
                counts = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                yield max(0, int(text) - int(_read(folder / used) or 0) + int(counts.get(files, 0)))


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control groups; a container sees its own as the outermost."""
    mounts = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            for mount in mounts:
                yield from (mount / part for part in [Path(path.strip("/")), *Path(path.strip("/")).parents])


def _read(file: Path) -> str:
    """The text of a file of the system, empty where there is none."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
