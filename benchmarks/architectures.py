"""Every causal language model of transformers, made tiny by its own classes: right, or refused before training.

    python -m benchmarks.architectures              all of them, some minutes
    python -m benchmarks.architectures llama gpt2   these

A model is fine-tuned for two steps and scores titles, on careers on both sides of its windows, as `labor-llm run`
does it. It is right if each probability is that of a plain forward pass of the saved model, to 1e-4 nats. What is
neither right nor refused by a message before the first step is a fault: the command ends with an error.
"""

import argparse
import gc
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from benchmarks.machine import default_result, versions, write_result
from benchmarks.tiny_models import architectures, tiny_model
from labor_llm.careers import Careers
from labor_llm.errors import LaborLLMError
from labor_llm.language.adapters import Adapter, FullFineTuning, Lora
from labor_llm.language.backbones import HubBackbone, ScratchBackbone
from labor_llm.language.finetune import FineTuning, TrainerSettings
from labor_llm.language.scoring import ExactScoring
from labor_llm.language.tokens import CareerEncoder
from labor_llm.models.base import choice_set
from labor_llm.models.language import LanguageModel
from labor_llm.taxonomy import Taxonomy
from labor_llm.templates import ResumeTemplate, Titles

TAXONOMY = "census1970_major_groups"
RIGHT = 1e-4
"""Nats by which a log-probability may differ from that of a plain forward pass."""
CODES = 5
LENGTHS = (2, 14)
"""Records of short and of long careers."""


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture."""

    name: str
    outcome: str
    """right, refused, not made, or a fault: wrong, refused late, failed."""
    detail: str

    @property
    def fault(self) -> bool:
        return self.outcome not in ("right", "refused", "not made")


def careers(persons: int = 12) -> Careers:
    """Short and long careers in turn, over a few occupations drawn at random."""
    rng = np.random.default_rng(0)
    lengths = [LENGTHS[person % len(LENGTHS)] for person in range(persons)]
    codes = np.array(Taxonomy.packaged(TAXONOMY).codes[:CODES])
    table = pl.DataFrame(
        {
            "survey": "NLSY79",
            "person_id": [f"p{person:02}" for person, length in enumerate(lengths) for _ in range(length)],
            "year": [1980 + year for length in lengths for year in range(length)],
            "occupation": codes[rng.integers(0, CODES, sum(lengths))].tolist(),
        }
    )
    return Careers.validated(table, dataset="made", taxonomy=Taxonomy.packaged(TAXONOMY), source="drawn")


def tokenizer(panel: Careers) -> PreTrainedTokenizerBase:
    """A byte-level BPE that has learned the careers."""
    maker = ScratchBackbone(name="", layers=1, width=8, heads=1, feed_forward=8, vocabulary=500, learning_rate=1)
    return maker.tokenizer(ResumeTemplate().texts(panel, Titles()))


def language_model(folder: Path, adapter: Adapter) -> LanguageModel:
    """What `labor-llm run backbone=hf backbone.path=FOLDER` builds, for two steps of training."""
    return LanguageModel(
        name="tiny",
        backbone=HubBackbone(name="tiny", path=str(folder)),
        adapter=adapter,
        template=ResumeTemplate(),
        label=Titles(),
        scoring=ExactScoring(),
        trainer=TrainerSettings(
            learning_rate=1e-3, max_epochs=1, batch_size=4, precision="32-true", accelerator="cpu"
        ),
        seed=0,
    )


def tried(name: str, panel: Careers, words: PreTrainedTokenizerBase, lora: bool) -> Outcome:
    """Make, fine-tune and score one architecture, and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        base, fitted = Path(scratch) / "base", Path(scratch) / "fitted"
        try:
            tiny_model(name, len(words)).save_pretrained(base)
            words.save_pretrained(base)
        except Exception as error:  # whatever an architecture wants of its configuration
            return Outcome(name, "not made", _first_line(error))
        model = language_model(base, Lora(rank=4, dropout=0) if lora else FullFineTuning(learning_rate=1e-3))
        persons = panel.table["person_id"].unique(maintain_order=True)
        train, rest = panel.select_persons(persons[:8]), panel.select_persons(persons[8:])
        steps = Steps()
        try:
            with steps:
                model.fit(train, rest, choice_set(train))
                model.save(fitted)
                ours = model.predict(rest)
            plain_NJ = plain_log_probs(base if lora else fitted, fitted if lora else None, rest, model.choice_set)
        except LaborLLMError as error:
            sentence = str(error).replace(str(base), "FOLDER")
            return Outcome(name, "refused late" if steps.taken else "refused", sentence)
        except Exception as error:  # a traceback for the user
            return Outcome(name, "failed", _first_line(error))
    raw_NJ = ours.log_probs_NJ + ours.log_mass_N[:, None]
    worst = float(np.abs(raw_NJ - plain_NJ).max())
    return Outcome(name, "right" if worst <= RIGHT else "wrong", f"{worst:.1e} nats")


class Steps:
    """Counts training steps within its context."""

    def __init__(self) -> None:
        self.taken = 0

    def __enter__(self) -> None:
        self._step = FineTuning.training_step

        def counted(module: FineTuning, *arguments: object) -> torch.Tensor:
            self.taken += 1
            return self._step(module, *arguments)

        FineTuning.training_step = counted

    def __exit__(self, *_: object) -> None:
        FineTuning.training_step = self._step


@torch.no_grad()
def plain_log_probs(
    folder: Path, adapter: Path | None, panel: Careers, choices: Sequence[str]
) -> NDArray[np.float64]:
    """One forward pass for every record and title, with nothing of this package but the text, (N, J)."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    encoder = CareerEncoder(AutoTokenizer.from_pretrained(folder), ResumeTemplate(), Titles(), panel.taxonomy)
    return np.array([list(_of_record(model, prompt, encoder, choices)) for prompt in _prompts(encoder, panel)])


def _prompts(encoder: CareerEncoder, panel: Careers) -> Iterator[list[int]]:
    """The tokens before every record's title."""
    encoded = encoder.encode(panel)
    for person in range(len(encoded)):
        for record in range(*encoded.record_starts[person : person + 2]):
            yield encoded.ids_T[encoded.career_starts[person] : encoded.prompt_ends[record]].tolist()


def _of_record(
    model: torch.nn.Module, prompt: list[int], encoder: CareerEncoder, choices: Sequence[str]
) -> Iterator[float]:
    for code in choices:
        title = encoder.titles[code]
        logits = model(torch.tensor([[*prompt, *title]]), use_cache=False).logits[0]
        log_probs = log_softmax(logits[len(prompt) - 1 : -1].double().numpy(), axis=1)
        yield float(log_probs[np.arange(len(title)), title].sum())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; all if none is named")
    parser.add_argument("--lora", action="store_true", help="with adapters instead of full fine-tuning")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    _quiet()
    panel = careers()
    words = tokenizer(panel)
    names = arguments.names or list(architectures())
    console, outcomes = Console(), list[Outcome]()
    for name in names:
        gc.collect()  # what an error's frames hold
        outcomes.append(tried(name, panel, words, arguments.lora))
        console.print(f"{name:28} {outcomes[-1].outcome:13}{outcomes[-1].detail}", markup=False, soft_wrap=True)
    console.print(
        ", ".join(f"{count} {kind}" for kind, count in Counter(each.outcome for each in outcomes).items())
    )
    if not arguments.names:
        file = "architectures-lora.json" if arguments.lora else "architectures.json"
        result = {"architectures": [asdict(each) for each in outcomes], **versions("peft", "tokenizers")}
        write_result(arguments.out or default_result(file, toy=False), result)
    if any(each.fault for each in outcomes):
        sys.exit(1)


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    main()
