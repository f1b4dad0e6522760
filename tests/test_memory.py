"""Memory that a process keeps: counted in page faults, in a process of its own."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from labor_llm.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
[torch.ones(1_000_000) for _ in range(60)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    [torch.ones(1_000_000) for _ in range(60)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_tensors_take_the_pages_of_those_before():
    kept, plain = (
        int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, check=True, text=True).stdout)
        for way in ("keep", "plain")
    )
    assert kept < plain / 5
