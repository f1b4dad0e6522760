"""Comparing many models: seconds for a bootstrap of persons, paired differences and the model confidence set.

    python -m benchmarks.bootstrap            20 models, a million records, 10,000 resamples of persons
    python -m benchmarks.bootstrap --toy      a second; shows that it works and says nothing about speed

Log scores are drawn: what they are does not matter for speed. Persons matter more than records, for it is persons
that are resampled, so several lengths of career are tried. Reading predictions is not counted.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import default_result, peak_rss_gib, seconds, write_result
from labor_llm.statistics.inference import PersonSums, model_statistics

MODELS, RECORDS, REPLICATES = 20, 1_000_000, 10_000
LENGTHS = (10, 25)
"""Records of a person."""
ROUNDS = 3


def drawn_scores(records: int, models: int) -> NDArray[np.float64]:
    """Log-probabilities that share what is hard about a record."""
    random = np.random.default_rng(0)
    hard_N = random.normal(size=records)
    return -np.exp(hard_N[:, None] + 0.1 * random.normal(size=(records, models)))


def measure(log_probs_NM: NDArray[np.float64], length: int, replicates: int, rounds: int) -> dict[str, Any]:
    """Seconds from log scores to every model's statistics, for persons of so many records each, by round."""
    starts_G = np.arange(0, len(log_probs_NM), length)
    models = [[run] for run in range(log_probs_NM.shape[1])]

    def work() -> None:
        model_statistics(PersonSums.of(starts_G, log_probs_NM), models, 0, replicates, 0.95, 0)

    by_round = [seconds(work) for _ in range(rounds)]
    return {"persons": len(starts_G), "seconds": median(by_round), "seconds_by_round": by_round}


def main(words: list[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bootstrap", description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, help="the file to write")
    args = parser.parse_args(words)
    records, replicates, rounds = (2_000, 200, 1) if args.toy else (RECORDS, REPLICATES, ROUNDS)
    log_probs_NM = drawn_scores(records, MODELS)
    result = {
        "models": MODELS,
        "records": records,
        "replicates": replicates,
        "rounds": rounds,
        "by_records_per_person": {
            str(length): measure(log_probs_NM, length, replicates, rounds) for length in LENGTHS
        },
        "peak_rss_gib": peak_rss_gib(),
    }
    out = args.out or default_result("bootstrap-cpu.json", args.toy)
    write_result(out, result)
    sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
