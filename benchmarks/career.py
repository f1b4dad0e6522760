"""How fast CAREER trains and scores, beside its reference code's rates and the same network written plainly.

    python -m benchmarks.career          minutes on two cores: writes benchmarks/results/career-cpu.json
    python -m benchmarks.career --toy    seconds, to see that it works

The reference code's rates were measured on two cores of an AMD EPYC, on another generated panel with 335
occupations: they are given, not measured again. The plain network (``career_plain``) is measured in turn with
ours, so its ratio holds whatever else the machine does. Both train on the same careers in the same steps from the
same weights; the plain network, which pads, in parts of similar lengths, as the reference code has its batches.
The seconds are those of training steps, fetching a batch left out, as in the reference's figures.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from benchmarks.career_plain import PlainTransformer, plain_optimizer
from benchmarks.machine import ROOT, default_result, peak_rss_gib, versions, write_result
from benchmarks.panel import generated_panel, process_perplexity
from labor_llm.models.base import choice_set
from labor_llm.sequences.batches import CodeBatch, CodeScoringBatches, CodeTrainingBatches, collate
from labor_llm.sequences.codes import CodeBook, CodedCareers
from labor_llm.sequences.heads import logit_count
from labor_llm.sequences.training import SCORED_RECORDS, CodeTrainerSettings, CodeTraining
from labor_llm.sequences.transformer import CareerTransformer

logger = logging.getLogger(__name__)

REFERENCE = {12: {"train": 3879, "score": 12_600}, 4: {"train": 10_051, "score": 28_000}}
"""Records per second of the reference code (keyonvafa/career-code, commit e4abcd4) by its layers: two cores of an
AMD EPYC, two threads, float32, 4,000 or 2,000 records a step, whichever was faster; measured 2026-11-21."""
OURS, PLAIN = "labor_llm", "plain"
SCORED_TOGETHER = {OURS: SCORED_RECORDS, PLAIN: 2048}
"""Records of a batch in scoring: the plain network is faster with 2,048 than with 8,192."""
PARTS = {OURS: 1, PLAIN: 6}
"""In how many parts of similar lengths a step is cut: the plain network is faster with six than with one."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the benchmark is."""

    careers: int
    held_out: int
    epochs: int
    layers: tuple[int, ...]
    careers_per_step: int
    warm_up: int = 3
    """Training steps that are not timed."""


TOY = Sizes(careers=64, held_out=16, epochs=1, layers=(1,), careers_per_step=8)
REAL = Sizes(careers=2048, held_out=512, epochs=2, layers=(12, 4), careers_per_step=256, warm_up=8)
"""About 4,800 records a step, where the reference was fastest with 4,000; the first epoch is not timed."""


def settings(size: Sizes, precision: str) -> CodeTrainerSettings:
    """Those of conf/model/career.yaml, but for a warm-up that fits a short training."""
    shipped = yaml.safe_load((ROOT / "conf" / "model" / "career.yaml").read_text())["trainer"]
    return CodeTrainerSettings(
        learning_rate=float(shipped["learning_rate"]),
        weight_decay=float(shipped["weight_decay"]),
        batch_size=size.careers_per_step,
        max_epochs=size.epochs,
        warmup_steps=8,
        precision=precision,
        accelerator="cpu",
    )


class Clock(Callback):
    """Seconds and records of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.records: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds.append(time.perf_counter() - self._since)
        self.records.append(len(batch["targets_T"]))


class SimilarLengths:
    """The careers of every step in parts of similar lengths, the shortest first."""

    def __init__(self, whole: CodeTrainingBatches, parts: int) -> None:
        self.whole, self.parts = whole, parts

    def __len__(self) -> int:
        return len(self.whole) * self.parts

    def __iter__(self) -> Iterator[CodeBatch]:
        coded = self.whole.coded
        for batch in self.whole:
            persons = np.searchsorted(coded.starts, batch["rows_T"][batch["places_T"] == 0].numpy())
            by_length = persons[np.argsort(coded.lengths[persons], kind="stable")]
            for part in np.array_split(by_length, self.parts):
                yield collate(coded, part, batch["step_records"])


class PlainTraining(CodeTraining):
    """The same objective, rate and clock with AdamW as it comes."""

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        rate = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
        optimizer = plain_optimizer(self.model, self.settings.learning_rate, self.settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Material:
    """Coded careers, and the sizes of the network that reads them."""

    book: CodeBook
    train: CodedCareers
    held_out: CodedCareers
    facts: dict[str, Any]

    @classmethod
    def of(cls, size: Sizes) -> "Material":
        """Generated careers of all occupations."""
        train, held_out = generated_panel(size.careers, seed=0), generated_panel(size.held_out, seed=1)
        shipped = yaml.safe_load((ROOT / "conf" / "model" / "career.yaml").read_text())
        book = CodeBook.of(train, choice_set(train), shipped["covariates"])
        facts = {
            "careers": size.careers,
            "records": len(train),
            "held_out_records": len(held_out),
            "occupations": len(book.occupations),
            "valid_perplexity_of_process": process_perplexity(held_out),
        }
        return cls(book, book.encode(train), book.encode(held_out), facts)

    def network(self, layers: int, seed: int) -> CareerTransformer:
        """The network of conf/model/career.yaml with random weights and so many layers."""
        torch.manual_seed(seed)
        shipped = yaml.safe_load((ROOT / "conf" / "model" / "career.yaml").read_text())
        shape = {name: shipped[name] for name in ("width", "feed_forward", "heads", "dropout")}
        return CareerTransformer(self.book, logit_count(len(self.book.occupations), True), layers, **shape)


def measure(system: str, layers: int, size: Sizes, material: Material, seed: int) -> dict[str, float]:
    """Train, validate and score once with one of the systems."""
    network: nn.Module = material.network(layers, seed)
    precision = "auto" if system == OURS else "32-true"
    kind = CodeTraining if system == OURS else PlainTraining
    network = network if system == OURS else PlainTransformer(network)
    batches = CodeTrainingBatches(material.train, size.careers_per_step, seed)
    steps, parts = size.epochs * batches.steps, PARTS[system]
    module = kind(network, len(material.book.occupations), settings(size, precision), steps, seed)
    clock = Clock()
    module.train()
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[clock],
        max_epochs=size.epochs,
        accumulate_grad_batches=parts,
        precision=module.settings.resolved_precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches if parts == 1 else SimilarLengths(batches, parts))
    module.eval()
    log_probs_N, seconds = scored(module, material.held_out, SCORED_TOGETHER[system])
    timed = slice(size.warm_up * parts, None)
    return {
        "train_records_per_second": sum(clock.records[timed]) / sum(clock.seconds[timed]),
        "score_records_per_second": len(log_probs_N) / seconds,
        "valid_perplexity": float(torch.exp(-log_probs_N.mean())),
    }


@torch.inference_mode()
def scored(module: CodeTraining, coded: CodedCareers, together: int) -> tuple[Tensor, float]:
    """Log-probabilities of what was realised (N,), and the seconds of all distributions, the second time."""
    log_probs_N, targets_N = torch.empty(len(coded.targets_N)), torch.from_numpy(coded.targets_N)
    batches = CodeScoringBatches(coded, together, module.fills_rows)
    mixed = module.settings.resolved_precision == "bf16-mixed"
    for _ in range(2):
        seconds = 0.0
        for place in range(len(batches)):
            batch = batches[place]
            since = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                rows, log_probs_TJ = module.predict_step(batch, place)
            seconds += time.perf_counter() - since
            log_probs_N[rows] = log_probs_TJ.gather(1, targets_N[rows, None].clamp(min=0))[:, 0]
    return log_probs_N[targets_N >= 0], seconds


def summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians over rounds, and each round's rates."""
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    return {**medians, "by_round": list(rounds)}


def benchmark(toy: bool, rounds: int) -> dict[str, Any]:
    """All systems in turn, each round from other weights."""
    size = TOY if toy else REAL
    material = Material.of(size)
    results: dict[str, Any] = {}
    for layers in size.layers:
        done: dict[str, list[dict[str, float]]] = {OURS: [], PLAIN: []}
        for turn in range(rounds):
            for system in (OURS, PLAIN) if turn % 2 == 0 else (PLAIN, OURS):
                done[system].append(measure(system, layers, size, material, turn))
                logger.info("round %d, %d layers, %s: %s", turn, layers, system, done[system][-1])
        results[str(layers)] = compared(layers, {system: summary(each) for system, each in done.items()})
    first = results[str(size.layers[0])]
    return {
        **first,
        "by_layers": results,
        "reference_records_per_second": REFERENCE,
        "panel": material.facts,
        "recipe": {
            **settings(size, "auto").__dict__,
            "resolved_precision": settings(size, "auto").resolved_precision,
        },
        "conditions": {
            system: {
                "precision": settings(size, "auto").resolved_precision if system == OURS else "32-true",
                "parts_of_a_step": PARTS[system],
                "records_scored_together": SCORED_TOGETHER[system],
            }
            for system in (OURS, PLAIN)
        },
        "peak_rss_gib": peak_rss_gib(),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "toy": toy,
        "versions": versions("torch", "pytorch-lightning"),
    }


def compared(layers: int, systems: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours, and what it is ahead of the others."""
    ours, plain = systems[OURS], systems[PLAIN]
    reference = REFERENCE.get(layers)
    result: dict[str, Any] = {"layers": layers, **{k: v for k, v in ours.items() if k != "by_round"}}
    for what in ("train", "score"):
        rate = ours[f"{what}_records_per_second"]
        result[f"{what}_speedup"] = rate / reference[what] if reference else None
        result[f"{what}_speedup_vs_plain"] = rate / plain[f"{what}_records_per_second"]
    gaps = [
        float(np.log(a["valid_perplexity"] / b["valid_perplexity"]))
        for a, b in zip(ours["by_round"], plain["by_round"], strict=True)
    ]
    return {**result, "valid_nats_minus_plain": statistics.mean(gaps), "systems": systems}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.career", description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="sizes that take seconds, for tests")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/career-cpu.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*no `val_dataloader`")
    out = options.out or default_result("career-cpu.json", options.toy)
    write_result(out, benchmark(options.toy, options.rounds))


if __name__ == "__main__":
    main()
