"""The memory of scoring one career exactly, measured in a process that does nothing else.

    python -m benchmarks.scoring_memory FOLDER CAREER.json

FOLDER holds a saved model; CAREER.json a career's tokens and those of the titles. Prints JSON.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.machine import ROOT, peak_rss_gib
from benchmarks.scoring_engine import Engine
from labor_llm.language.scoring import PackedCareers


def memory_of_scoring(folder: Path, titles: Sequence[Sequence[int]], career: PackedCareers) -> dict[str, float]:
    """GiB of a fresh process at its peak: before it scored the career on the CPU, and after."""
    tensors = {name: value.tolist() for name, value in vars(career).items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in vars(career).items() if not isinstance(value, Tensor)}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "career.json"
        path.write_text(json.dumps({"tensors": tensors, "plain": plain, "titles": titles}))
        command = [sys.executable, "-m", "benchmarks.scoring_memory", str(folder.resolve()), str(path)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Load, score, and say how much memory that took."""
    folder, path = sys.argv[1:]
    content = json.loads(Path(path).read_text())
    fields = content["plain"] | {name: torch.tensor(value) for name, value in content["tensors"].items()}
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = Engine(model, [tuple(title) for title in content["titles"]])
    before = peak_rss_gib()
    engine.score(PackedCareers(**fields))
    sys.stdout.write(json.dumps({"peak_rss_gib": peak_rss_gib(), "before_scoring_gib": before}) + "\n")


if __name__ == "__main__":
    main()
