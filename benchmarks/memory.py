"""Bytes a weight and loss of every way to update weights, and the estimate of memory beside measured peaks.

    python -m benchmarks.memory [--toy] [--seeds 3] [--out benchmarks/results/memory-cpu.json]

Memory is that of a fresh process that trains a Llama with random weights of SmolLM2-135M's sizes. Bytes a weight
are measured with careers of 40 tokens in all, so that activations do not count. The loss is that of validation
careers, after the same steps on the wage panel.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.llama import SMOLLM2_135M
from benchmarks.machine import default_result, write_result
from benchmarks.memory_process import estimated, measured
from labor_llm.build import build
from labor_llm.careers import Careers
from labor_llm.configs import conf_folder
from labor_llm.datasets.report import Report
from labor_llm.datasets.wage_panel import WagePanel
from labor_llm.language.backbones import ScratchBackbone
from labor_llm.language.batches import collate
from labor_llm.language.loss import summed_nll
from labor_llm.models.base import choice_set
from labor_llm.models.language import LanguageModel
from labor_llm.precision import bfloat16_pays

logger = logging.getLogger(__name__)

IN_BACKWARD = {"update_in_backward": True, "clip_norm": None}
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, updates in the backward pass": IN_BACKWARD,
    "adamw, bf16 weights": {"weights": "bf16"},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "adafactor": {"optimizer": "adafactor"},
    "adamw_8bit, bf16 weights": {"optimizer": "adamw_8bit", "weights": "bf16"},
    "adafactor, bf16 weights": {"optimizer": "adafactor", "weights": "bf16"},
    "adamw_8bit, bf16 weights, updates in the backward pass": {
        "optimizer": "adamw_8bit",
        "weights": "bf16",
        **IN_BACKWARD,
    },
    "adafactor, bf16 weights, updates in the backward pass": {
        "optimizer": "adafactor",
        "weights": "bf16",
        **IN_BACKWARD,
    },
}
"""The first is the default; what the lowest is, is measured."""
FEW = [20, 20]
PASSES = [
    ("none", 4, {}),
    ("none", 8, {}),
    ("none", 4, {"gradient_checkpointing": True}),
    ("none", 8, {"gradient_checkpointing": True}),
    ("lora", 4, {}),
    ("lora", 8, {}),
    ("frozen", 4, {}),
]
"""Adapter, careers of a forward pass, settings."""
TOY = SMOLLM2_135M | {"vocab_size": 2000, "num_hidden_layers": 2}


def model_folder(folder: Path, sizes: Mapping[str, Any]) -> Path:
    """A Llama with random weights as one downloads them: safetensors in bfloat16."""
    LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).save_pretrained(folder)
    words = ScratchBackbone(
        name="words", layers=1, width=8, heads=1, feed_forward=8, vocabulary=300, learning_rate=1e-3
    )
    words.tokenizer(["some text"]).save_pretrained(folder)
    return folder


def bytes_per_weight(
    folder: Path, precision: str, names: Iterable[str] = tuple(SETTINGS)
) -> dict[str, dict[str, float]]:
    """By setting: at the peak of training, as measured and as estimated, and while loading."""
    rows = {}
    for name in names:
        settings = SETTINGS[name]
        order = {"precision": precision} | settings
        if settings.get("weights") == "bf16":
            order["precision"] = "bf16-mixed"
        since = time.perf_counter()
        sizes = measured(folder, FEW, **order)
        rows[name] = {
            "bytes_per_weight": sizes["peak"] / sizes["weights"],
            "bytes_per_weight_loading": sizes["loading"] / sizes["weights"],
            "bytes_per_weight_estimated": estimated(folder, FEW, **order) / sizes["weights"],
            "seconds": time.perf_counter() - since,
        }
        logger.info("%s: %s", name, rows[name])
    return rows


def estimates(folder: Path, length: int, precision: str) -> Iterator[dict[str, Any]]:
    """Estimated and measured peaks, in GB, of training and of scoring."""
    for adapter, careers, settings in PASSES:
        order = {"lengths": [length] * careers, "adapter": adapter, "precision": precision, **settings}
        sizes, estimate = measured(folder, **order), estimated(folder, **order)
        row = {
            "adapter": adapter,
            "tokens": length * careers,
            "settings": settings,
            "measured_gb": sizes["peak"] / 1e9,
            "estimated_gb": estimate / 1e9,
            "estimate_to_measured": estimate / sizes["peak"],
        }
        logger.info("%s", row)
        yield row


def panel() -> tuple[Careers, Careers]:
    """The wage panel's careers to train and to validate on."""
    dataset = WagePanel()
    (careers,) = dataset.parts(Report())
    splits = dataset.split(careers)
    return splits.train, splits.valid


def fitted(settings: Mapping[str, Any], seed: int, backbone: str, epochs: int) -> LanguageModel:
    """A language model, fully fine-tuned on the wage panel."""
    values = {"max_epochs": epochs, "patience": epochs + 1, "accelerator": "cpu"} | settings
    overrides = [f"++trainer.{key}={'null' if value is None else value}" for key, value in values.items()]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("run", [f"backbone={backbone}", f"seed={seed}", *overrides])
    model: LanguageModel = build(cfg, ["model"])["model"]
    train, valid = panel()
    return model.fit(train, valid, choice_set(train))


@torch.no_grad()
def loss(model: LanguageModel, careers: Careers) -> float:
    """Nats per token of whole careers, the first token of each left out."""
    encoded = model._encoder.encode(careers)
    network = model._module.model.eval()
    batch = collate(encoded, np.arange(len(encoded)), "padded", "all")
    return float(summed_nll(network.float(), batch["inputs"], batch["labels"])) / (
        len(encoded.ids_T) - len(encoded)
    )


def losses(seeds: int, backbone: str, epochs: int) -> dict[str, list[float]]:
    """By setting and seed, in nats per token of validation careers."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name, settings in SETTINGS.items():
            found.setdefault(name, []).append(loss(fitted(settings, seed, backbone, epochs), panel()[1]))
            logger.info("%s, seed %d: %.4f nats per token", name, seed, found[name][-1])
    return found


def benchmark(toy: bool, seeds: int, backbone: str, epochs: int) -> dict[str, Any]:
    """Everything that the result holds but for the machine."""
    precision = "bf16-mixed" if bfloat16_pays() else "32-true"
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(Path(scratch), TOY if toy else SMOLLM2_135M)
        rows: dict[str, dict[str, Any]] = dict(bytes_per_weight(folder, precision))
        peaks = list(estimates(folder, 40 if toy else 400, precision))
    plain, *_ = SETTINGS
    found = losses(seeds, backbone, epochs)
    for name, row in rows.items():
        row["loss"] = statistics.fmean(found[name])
        row["loss_gap_to_adamw"] = [one - other for one, other in zip(found[name], found[plain], strict=True)]
    return {
        "bytes_per_weight_default": rows[plain]["bytes_per_weight"],
        "bytes_per_weight_lowest": min(row["bytes_per_weight"] for row in rows.values()),
        "settings": rows,
        "estimates": peaks,
        "precision": precision,
        "loss": {"dataset": "wage_panel", "backbone": backbone, "epochs": epochs, "seeds": seeds},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="sizes that take seconds, for tests")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per setting")
    parser.add_argument("--backbone", default="nano", help="what is trained for the loss")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/memory-cpu.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = options.out or default_result("memory-cpu.json", options.toy)
    write_result(out, benchmark(options.toy, options.seeds, options.backbone, options.epochs))


if __name__ == "__main__":
    main()
