"""Bootstrap of persons: all records of a person are drawn together, and all models on the same draws.

A replicate draws G persons out of G with replacement (Efron and Tibshirani 1993, ch. 8: the unit that is drawn is
the independent one). How often each was drawn is one row of a matrix, and that matrix times the per-person sums
gives every model's totals at once. Shapes: R replicates, G persons, K sums, C replicates of a chunk.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

REPLICATES = 64
"""Of a chunk, unless its matrix of counts would have more than ``ENTRIES``; the draws depend on both."""
ENTRIES = 1 << 24
PERSONS = 1024
"""Columns of the counts that are multiplied at a time, so that they stay in the cache."""


def resampled_totals(sums_GK: NDArray[np.floating], replicates: int, seed: int) -> NDArray[np.float64]:
    """Totals of per-person sums over resampled persons, shape (R, K); the same persons for every column.

    The counts are exact multinomial ones: G uniform draws are counted. Chunks have random streams of their own,
    so that the result does not depend on the number of cores. There must be a person and a replicate.
    """
    size = max(1, min(REPLICATES, ENTRIES // max(1, len(sums_GK))))
    sizes = [min(size, replicates - start) for start in range(0, replicates, size)]
    streams = np.random.SeedSequence(seed).spawn(len(sizes))
    columns_GK, places_K = _distinct(np.asarray(sums_GK, dtype=np.float64))
    # A BLAS with threads of its own would fight with ours over the cores.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(_cores()) as pool:
        chunks = list(pool.map(partial(_chunk, columns_GK), sizes, streams))
    return np.concatenate(chunks)[:, places_K]


def _chunk(sums_GK: NDArray[np.float64], size: int, stream: np.random.SeedSequence) -> NDArray[np.float64]:
    """Totals of one chunk of replicates, shape (C, K)."""
    random, persons = np.random.Generator(np.random.SFC64(stream)), len(sums_GK)
    counts_CG = np.empty((size, persons), dtype=np.uint16)
    for counts_G in counts_CG:
        counts_G[:] = np.bincount(random.integers(persons, size=persons), minlength=persons)
    totals_CK = np.zeros((size, sums_GK.shape[1]))
    for start in range(0, persons, PERSONS):
        some = slice(start, start + PERSONS)
        totals_CK += counts_CG[:, some].astype(np.float64) @ sums_GK[some]
    return totals_CK


def _distinct(sums_GK: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """The columns without repetitions, and where each one went: models often share their counts of records."""
    contents = [column_G.tobytes() for column_G in sums_GK.T]
    kept = {content: place for place, content in reversed(list(enumerate(contents)))}
    order = sorted(kept.values())
    return np.ascontiguousarray(sums_GK[:, order]), [order.index(kept[content]) for content in contents]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
