"""Whether a processor gains from bfloat16: some multiply it in twice the time that float32 takes them."""

import json
import time
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch.nn.functional import linear

from labor_llm.errors import RunError
from labor_llm.machine import processor_name, threads

GAIN = 1.25
"""How much faster products must be to make up for the conversions around them."""
SIZE = 1024
"""Rows and columns of the matrices that are multiplied: enough work for many cores."""
ROUNDS = 3

RECORD = "bfloat16.json"
"""Processor and threads -> what was found there, in the folder of all runs."""


def bfloat16_pays_below(folder: Path) -> bool:
    """As ``bfloat16_pays``, but tried once for all runs below a folder on such a processor: times are noisy."""
    record, kind = folder / RECORD, f"{processor_name()}, {threads()} threads"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{RECORD}.lock"):
        try:
            found: dict[str, bool] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        except ValueError:
            raise RunError(f"{record} is damaged: delete it, and the processor is tried again") from None
        if kind not in found:
            found[kind] = bfloat16_pays()
            record.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found[kind]


@cache
def bfloat16_pays() -> bool:
    """Whether this processor multiplies bfloat16 clearly faster than float32: tried, in about a tenth of a second.

    What it claims to have does not tell. An Intel Xeon with AVX-512 but without AMX has instructions for bfloat16
    and needs twice the time with them, where an AMD EPYC needs half (both measured with torch 2.13).
    """
    claims = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not any(claims.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return False
    in_float32, in_bfloat16 = (float("inf"),) * 2
    for _ in range(ROUNDS):  # in turn, the fastest of each: other programs disturb both
        in_float32 = min(in_float32, _seconds(torch.float32))
        in_bfloat16 = min(in_bfloat16, _seconds(torch.bfloat16))
    return in_float32 > GAIN * in_bfloat16


def _seconds(dtype: torch.dtype) -> float:
    """How long a product takes, its second time."""
    values = torch.ones(SIZE, SIZE, dtype=dtype, device="cpu")
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        linear(values, values)
        since = time.perf_counter()
        linear(values, values)
        return time.perf_counter() - since
