"""Kinds of checkpoint: right to 1e-4 nats of brute force, or refused before training, with the sentence.

    python -m benchmarks.checkpoints [KIND ...] [--adapters frozen lora none]

Each kind is built tiny by the classes of transformers and peft, taken as ``backbone.path``, fitted with a learning
rate that moves nothing, and scored. Brute force writes every title out after every prompt, one forward pass each,
with the model that the checkpoint means. Run it against a newer transformers. It exits with 1 if one is neither.
"""

import argparse
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.checkpoint_kinds import KINDS, Made
from labor_llm.careers import Careers
from labor_llm.errors import LaborLLMError
from labor_llm.language.adapters import Adapter, Frozen, FullFineTuning, Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.finetune import TrainerSettings
from labor_llm.language.scoring import ExactScoring
from labor_llm.models.base import choice_set
from labor_llm.models.language import LanguageModel
from labor_llm.taxonomy import Taxonomy
from labor_llm.templates import ResumeTemplate, Titles

NATS = 1e-4
STILL = 1e-12
"""A learning rate that moves nothing."""
ADAPTERS: dict[str, Adapter] = {
    "frozen": Frozen(),
    "lora": Lora(rank=4, learning_rate=STILL),
    "none": FullFineTuning(learning_rate=STILL),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a kind of checkpoint with an adapter."""

    verdict: str
    """right, refused, WRONG (or refused though it is right), or ERROR."""
    text: str
    """The largest difference in nats, or the sentence."""

    @property
    def good(self) -> bool:
        """Whether the kind is right or refused."""
        return self.verdict in ("right", "refused")


def small_careers(persons: int = 4, years: int = 3) -> Careers:
    """Careers over the major groups of the census of 1970."""
    taxonomy = Taxonomy.packaged("census1970_major_groups")
    drawn = np.random.default_rng(0).choice(np.array(taxonomy.codes)[:5], persons * years)
    table = pl.DataFrame(
        {
            "survey": ["PSID"] * persons * years,
            "person_id": [f"p{person}" for person in range(persons) for _ in range(years)],
            "year": [1980 + year for _ in range(persons) for year in range(years)],
            "occupation": drawn.tolist(),
        }
    )
    return Careers.validated(table, dataset="small", taxonomy=taxonomy, source="made for the benchmark")


def language_model(folder: Path, adapter: Adapter, made: Made) -> LanguageModel:
    """The model that a user asks for with ``backbone=hf backbone.path=FOLDER``."""
    return LanguageModel(
        name="checkpoint",
        backbone=HubBackbone(name="checkpoint", path=str(folder), **made.settings),
        adapter=adapter,
        template=ResumeTemplate(),
        label=Titles(),
        scoring=ExactScoring(),
        trainer=TrainerSettings(learning_rate=STILL, max_epochs=1, accelerator="cpu", precision="32-true"),
        seed=0,
    )


def outcome(name: str, adapter: Adapter, folder: Path) -> Outcome:
    """Build the kind in the folder, fit on it, and compare with brute force; also after saving and loading."""
    made, careers = KINDS[name](folder), small_careers()
    model = language_model(folder, adapter, made)
    try:
        model.fit(careers, careers, choice_set(careers))
        model.save(folder.parent / "saved")
        again = language_model(folder, adapter, made).load(folder.parent / "saved")
        ours = [raw_log_probs(each, careers) for each in (model, again)]
    except LaborLLMError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("ERROR", repr(error))
    if (folder.parent / "code-ran").exists():
        return Outcome("WRONG", "code of the checkpoint ran")
    if made.right is None:
        return Outcome("WRONG", "the run is complete")
    plain = brute_force(made.right, model, careers)
    difference = max(float(np.abs(each - plain).max()) for each in ours)
    return Outcome("right" if difference <= NATS else "WRONG", f"{difference:.1e}")


def raw_log_probs(model: LanguageModel, careers: Careers) -> NDArray[np.float64]:
    """Log-probabilities of all titles as strings, not normalized, (N, J)."""
    scores = model.predict(careers)
    return scores.log_probs_NJ + scores.log_mass_N[:, None]


@torch.no_grad()
def brute_force(right: nn.Module, model: LanguageModel, careers: Careers) -> NDArray[np.float64]:
    """The same from the right model: one forward pass for every title after every prompt."""
    encoder = model._encoder
    encoded = encoder.encode(careers)
    starts = np.repeat(encoded.career_starts[:-1], np.diff(encoded.record_starts))
    rows = []
    for start, end in zip(starts.tolist(), encoded.prompt_ends.tolist(), strict=True):
        prompt = encoded.ids_T[start:end].tolist()
        rows.append([_log_prob(right, prompt, encoder.titles[code]) for code in model.choice_set])
    return np.array(rows)


def _log_prob(right: nn.Module, prompt: list[int], title: tuple[int, ...]) -> float:
    logits = right(torch.tensor([[*prompt, *title]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.double().log_softmax(-1).gather(1, torch.tensor(title)[:, None]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.checkpoints", description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND")
    parser.add_argument("--adapters", nargs="+", default=["frozen"], choices=list(ADAPTERS))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    table = Table("kind", "adapter", "", "nats or sentence", title=f"transformers {transformers.__version__}")
    outcomes = []
    for name in given.kinds:
        for adapter in given.adapters:
            with tempfile.TemporaryDirectory() as scratch:
                found = outcome(name, ADAPTERS[adapter], Path(scratch) / "model")
            outcomes.append(found)
            table.add_row(name, adapter, found.verdict, found.text.replace(scratch, ""))
    Console().print(table)
    sys.exit(not all(found.good for found in outcomes))


if __name__ == "__main__":
    main()
