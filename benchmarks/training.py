"""Supervised tokens per second of fine-tuning, beside transformers' Trainer and TRL's SFTTrainer.

    python -m benchmarks.training [--toy] [--rounds 3] [--out benchmarks/results/training-cpu.json]

All systems start from the same weights, read every training career equally often, and are judged by one function
on the same held-out careers. A supervised token is one with a loss: every token of a career but its first.
"""

import argparse
import gc
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.machine import ROOT, default_result, matmul_rate, peak_rss_gib, versions, write_result
from benchmarks.panel import generated_panel
from benchmarks.scoring_models import micro_backbone
from benchmarks.training_ours import encode, train_ours
from benchmarks.training_rivals import (
    Recipe,
    StepClock,
    career_ids,
    has_trl,
    rows_per_step,
    train_padded,
    train_trl,
)
from labor_llm.language.backbones import ScratchBackbone
from labor_llm.language.tokens import EncodedCareers
from labor_llm.precision import bfloat16_pays
from labor_llm.templates import ResumeTemplate, Titles

logger = logging.getLogger(__name__)

OURS, PADDED, GROUPED, PACKED = "labor_llm", "trainer_padded", "trainer_grouped", "trl_packing"
SYSTEMS = (OURS, PADDED, GROUPED, PACKED)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}

TrainSystem = Callable[[PreTrainedModel, EncodedCareers, PreTrainedTokenizerBase, Recipe], StepClock]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the benchmark is."""

    backbone: ScratchBackbone
    careers: int
    """A multiple of ``careers_per_step``, so that no system leaves careers out."""
    held_out: int
    max_records: int
    careers_per_step: int
    epochs: int
    row_tokens: int
    warm_up: int
    """Optimizer steps of every training that are not timed."""
    memory_careers: int
    memory_systems: tuple[str, ...]


def sizes(toy: bool) -> Sizes:
    """The real sizes, of the backbone in conf/backbone/micro.yaml; or some that take seconds."""
    if toy:
        backbone = ScratchBackbone(
            name="toy", layers=2, width=64, heads=2, feed_forward=128, vocabulary=600, learning_rate=3e-3
        )
        return Sizes(
            backbone=backbone,
            careers=80,
            held_out=16,
            max_records=12,
            careers_per_step=8,
            epochs=2,
            row_tokens=512,
            warm_up=2,
            memory_careers=8,
            memory_systems=(OURS,),
        )
    return Sizes(
        backbone=micro_backbone(),
        careers=160,
        held_out=64,
        max_records=40,
        careers_per_step=16,
        epochs=2,
        row_tokens=1024,
        warm_up=5,
        memory_careers=96,
        memory_systems=SYSTEMS,
    )


@dataclass(frozen=True)
class Material:
    """The careers of the benchmark, tokenized once for all systems."""

    tokenizer: PreTrainedTokenizerBase
    train: EncodedCareers
    held_out: EncodedCareers

    @classmethod
    def of(cls, size: Sizes) -> "Material":
        """Generated careers, and a tokenizer made from those to train on."""
        train = generated_panel(size.careers, seed=0, max_records=size.max_records)
        held_out = generated_panel(size.held_out, seed=1, max_records=size.max_records)
        tokenizer = size.backbone.tokenizer(ResumeTemplate().texts(train, Titles()))
        return cls(tokenizer, encode(tokenizer, train), encode(tokenizer, held_out))


TRAIN: dict[str, TrainSystem] = {
    OURS: train_ours,
    PADDED: train_padded,
    GROUPED: partial(train_padded, grouped=True),
    PACKED: train_trl,
}


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, encoded: EncodedCareers) -> float:
    """Mean nats per supervised token, in float32, one career at a time: the same judge for all."""
    model.eval()
    nats, tokens = 0.0, 0
    for place in range(len(encoded)):
        ids_L = torch.tensor(career_ids(encoded, place), device=model.device)
        logits_LV = model(ids_L[None], use_cache=False).logits[0, :-1].float()
        nats += float(cross_entropy(logits_LV, ids_L[1:], reduction="sum"))
        tokens += len(ids_L) - 1
    return nats / tokens


def training_flops(model: nn.Module, lengths: Iterable[int]) -> float:
    """Floating-point operations that training once on careers of these lengths needs, padding not counted.

    A token costs 6 operations per weight that it is multiplied with and that is trained (2 forward, 2 for the
    gradient of the input, 2 for that of the weight) and 4 per frozen one: 6 N T when all weights are trained,
    4 N T + 6 A T with A adapter weights. The table of embeddings is looked up, not multiplied, but the same table
    as output layer counts. Attention costs 6 D L^2 per layer and career of L tokens, D being heads times head
    size: two products over the causal half, D L^2 operations each, three times for both directions.
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    per_token = sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in linear)
    config: Any = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head
    return float(sum(per_token * length + attention * length**2 for length in map(int, lengths)))


def precisions() -> list[str]:
    """float32, and bfloat16 where the processor multiplies it faster; the last is what ``auto`` chooses."""
    return ["float32", "bf16"] if bfloat16_pays() else ["float32"]


def available_systems() -> list[str]:
    """All systems, TRL's only where it is installed."""
    return [system for system in SYSTEMS if system != PACKED or has_trl()]


def recipe_of(size: Sizes, precision: str, seed: int) -> Recipe:
    """The recipe at a precision."""
    return Recipe(
        learning_rate=size.backbone.learning_rate,
        careers_per_step=size.careers_per_step,
        careers_per_pass=size.careers_per_step,
        epochs=size.epochs,
        row_tokens=size.row_tokens,
        bf16=precision == "bf16",
        seed=seed,
    )


@dataclass(frozen=True)
class Training:
    """What one training of one system came to."""

    tokens_per_second: float
    supervised_tokens: int
    steps: int
    timed_seconds: float
    loss: float


def train_once(system: str, size: Sizes, material: Material, recipe: Recipe, start: dict[str, Tensor]) -> Training:
    """Train from the given weights and judge the result."""
    model = size.backbone.model(material.tokenizer, torch.float32)
    model.load_state_dict(start)
    model.train()
    clock = TRAIN[system](model, material.train, material.tokenizer, recipe)
    rate, seconds = clock.rate(size.warm_up), sum(clock.seconds[size.warm_up :])
    loss = held_out_loss(model, material.held_out)
    gc.collect()
    return Training(rate, sum(clock.tokens), len(clock.tokens), seconds, loss)


def start_weights(size: Sizes, material: Material, seed: int) -> dict[str, Tensor]:
    """The random weights from which all systems of a round start."""
    torch.manual_seed(seed)
    return size.backbone.model(material.tokenizer, torch.float32).state_dict()


def run_rounds(size: Sizes, material: Material, rounds: int) -> dict[str, dict[str, list[Training]]]:
    """Systems take turns in every round, each round from weights of its own and beginning with another system."""
    systems = available_systems()
    done: dict[str, dict[str, list[Training]]] = {system: {p: [] for p in precisions()} for system in systems}
    for turn in range(rounds):
        start = start_weights(size, material, seed=turn)
        for precision in precisions():
            for system in systems[turn % len(systems) :] + systems[: turn % len(systems)]:
                training = train_once(system, size, material, recipe_of(size, precision, turn), start)
                done[system][precision].append(training)
                logger.info(
                    "round %d %s %s: %.0f supervised tokens/s, loss %.4f",
                    turn, precision, system, training.tokens_per_second, training.loss,
                )  # fmt: skip
    return done


def memory_in_fresh_process(system: str, precision: str, toy: bool) -> dict[str, float]:
    """RSS high-water mark in GiB of a process that only trains, before training and at its end."""
    command = [sys.executable, "-m", "benchmarks.training", "--memory-of", system, precision]
    command += ["--toy"] if toy else []
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(output.stdout.splitlines()[-1])


def measure_memory(system: str, precision: str, size: Sizes) -> dict[str, float]:
    """Train on a part of the careers in this process."""
    material = Material.of(size)
    some = generated_panel(size.memory_careers, seed=0, max_records=size.max_records)
    model = size.backbone.model(material.tokenizer, torch.float32)
    before = peak_rss_gib()
    TRAIN[system](model, encode(material.tokenizer, some), material.tokenizer, recipe_of(size, precision, 0))
    return {"peak_rss_gib": peak_rss_gib(), "before_training_gib": before}


def summary(trainings: Sequence[Training], flops_per_token: float, matmul: float) -> dict[str, Any]:
    """Medians and spread over rounds of one system at one precision."""
    rates, losses = [each.tokens_per_second for each in trainings], [each.loss for each in trainings]
    return {
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_by_round": rates,
        "share_of_matmul_rate": statistics.median(rates) * flops_per_token / matmul,
        "loss": statistics.mean(losses),
        "loss_by_round": losses,
        "supervised_tokens": trainings[0].supervised_tokens,
        "optimizer_steps": trainings[0].steps,
        "timed_seconds": sum(each.timed_seconds for each in trainings),
    }


def headline(systems: dict[str, dict[str, dict[str, Any]]], best: str) -> dict[str, Any]:
    """Ratios of speeds at the same precision, and as users find them by default; the gap of the losses."""

    def ratio(rival: str, theirs: str) -> float | None:
        if rival not in systems:
            return None
        return systems[OURS][best]["tokens_per_second"] / systems[rival][theirs]["tokens_per_second"]

    ours, trainer = (systems[system][best]["loss_by_round"] for system in (OURS, PADDED))
    gaps = [mine - other for mine, other in zip(ours, trainer, strict=True)]
    return {
        "tokens_per_second": systems[OURS][best]["tokens_per_second"],
        "precision": best,
        "vs_trainer_padded": ratio(PADDED, best),
        "vs_trainer_grouped": ratio(GROUPED, best),
        "vs_trl_packing": ratio(PACKED, best),
        "vs_trainer_padded_default": ratio(PADDED, "float32"),
        "loss_gap_to_trainer": statistics.mean(gaps),
        "loss_gap_to_trainer_by_round": gaps,
        "loss_gap_to_trainer_sd": statistics.stdev(gaps) if len(gaps) > 1 else None,
        "share_of_matmul_rate": systems[OURS][best]["share_of_matmul_rate"],
    }


def panel_facts(encoded: EncodedCareers) -> dict[str, Any]:
    """How many careers, and how different their lengths."""
    lengths, records = encoded.lengths, np.diff(encoded.record_starts)
    return {
        "careers": len(encoded),
        "records": int(records.sum()),
        "tokens": int(lengths.sum()),
        "supervised_tokens": int(lengths.sum() - len(lengths)),
        "tokens_of_a_career": {
            "mean": float(lengths.mean()),
            "min": int(lengths.min()),
            "max": int(lengths.max()),
        },
    }


def benchmark(toy: bool, rounds: int) -> dict[str, Any]:
    """Run everything and put it together."""
    size = sizes(toy)
    material = Material.of(size)
    model = size.backbone.model(material.tokenizer, torch.float32)
    lengths = material.train.lengths
    flops_per_token = training_flops(model, lengths) / float(lengths.sum() - len(lengths))
    matmul = {name: matmul_rate(DTYPES[name], "cpu", 1 if toy else 7) for name in precisions()}
    trainings = run_rounds(size, material, rounds)
    systems = {
        system: {name: summary(each, flops_per_token, matmul[name]) for name, each in by_precision.items()}
        for system, by_precision in trainings.items()
    }
    for system, name in _memory_runs(size, list(systems), toy):
        systems[system][name]["memory"] = memory_in_fresh_process(system, name, toy)
    best = precisions()[-1]
    return {
        **headline(systems, best),
        "peak_rss_gib": systems[OURS][best]["memory"]["peak_rss_gib"],
        "peak_rss_gib_trainer_padded": systems[PADDED][best].get("memory", {}).get("peak_rss_gib"),
        "systems": systems,
        "not_installed": [system for system in SYSTEMS if system not in systems],
        "toy": toy,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "versions": versions("torch", "transformers", "trl", "pytorch-lightning"),
        "panel": {"train": panel_facts(material.train), "held_out": panel_facts(material.held_out)},
        "model": {
            "backbone": size.backbone.name,
            "weights": sum(weight.numel() for weight in model.parameters()),
            "flops_per_supervised_token": flops_per_token,
        },
        "matmul_flops_per_second": matmul,
        "recipe": {
            **recipe_of(size, best, 0).__dict__,
            "trl_rows_per_step": rows_per_step(material.train, recipe_of(size, best, 0)),
            "warm_up_steps": size.warm_up,
        },
    }


def _memory_runs(size: Sizes, systems: Sequence[str], toy: bool) -> Iterator[tuple[str, str]]:
    for system in size.memory_systems:
        if system in systems:
            yield from ((system, name) for name in (precisions()[-1:] if toy else precisions()))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="sizes that take seconds, for tests")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/training-cpu.json")
    parser.add_argument("--memory-of", nargs=2, metavar=("SYSTEM", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        system, precision = options.memory_of
        sys.stdout.write(json.dumps(measure_memory(system, precision, sizes(options.toy))) + "\n")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = options.out or default_result("training-cpu.json", options.toy)
    write_result(out, benchmark(options.toy, options.rounds))


if __name__ == "__main__":
    main()
