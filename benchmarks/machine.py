"""What a benchmark ran on, and how its numbers are kept."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from labor_llm.machine import gpu_name, processor_name, threads, usable_cores

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ((4096, 256, 688), (4096, 688, 256), (1024, 1024, 1024), (2048, 2048, 2048), (8192, 8192, 8192))
"""Rows, inner dimension and columns of the products that are tried; the last only where it takes no minutes."""
LARGEST_ON_CPU = 2048**3
PACKAGES = ("torch", "transformers", "numpy")


def facts() -> dict[str, Any]:
    """Processor, cores, GPU and versions; nothing that says whose machine it is."""
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "torch_threads": threads(),
        "gpu": gpu_name(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions(*PACKAGES),
    }


def installed_version(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str | None]:
    """The versions of several packages."""
    return {package: installed_version(package) for package in packages}


def git_commit() -> str | None:
    """The commit of the project, with ``+`` if files that git knows were changed since; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """How long a call takes on the clock, what it left running on the GPU included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def matmul_rate(dtype: torch.dtype, device: torch.device | str, repeats: int = 5) -> float:
    """FLOP/s of large matrix products: the best of several shapes, each the median over repeats.

    A product of (m, k) and (k, n) counts 2 m k n. It is what can be reached here in practice, not what the maker
    states; so 1.0 is the most that any model can get.
    """
    limit = LARGEST_ON_CPU if torch.device(device).type == "cpu" else float("inf")
    shapes = [(rows, inner, columns) for rows, inner, columns in SHAPES if rows * inner * columns <= limit]
    return max(_rate(shape, dtype, device, repeats) for shape in shapes)


def _rate(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str, repeats: int) -> float:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    calls = max(1, round(2**32 / (rows * inner * columns)))  # long enough for the clock, and for a GPU's queue

    def work() -> None:
        for _ in range(calls):
            torch.mm(left, right, out=out)

    work()
    median = statistics.median(seconds(work, device) for _ in range(repeats))
    return 2 * rows * inner * columns * calls / median


def peak_rss_gib() -> float:
    """The most memory that this process has held so far, in GiB; on a GPU its memory is not in it.

    Linux's VmHWM where there is one: ``ru_maxrss`` of a child process starts at what its parent held.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def default_result(name: str, toy: bool) -> Path:
    """Where a result goes if no path is given; toy sizes do not replace real results."""
    return ROOT / ("outputs/benchmarks/toy" if toy else "benchmarks/results") / name


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result with the machine's facts, date and commit, as JSON; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.now(UTC).date().isoformat()
    content = {**result, "machine": facts(), "date": today, "commit": git_commit()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
