"""The memory of training or scoring one model, measured in a process that does nothing else.

    python -m benchmarks.memory_process '{"folder": ..., "lengths": [400, 400], "trainer": {...}}'

Prints JSON. On a CPU, memory is what the process holds resident more than it did before it loaded the model, with
all libraries loaded and tried on a small model before; on a GPU, what PyTorch has allocated there.
"""

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.machine import ROOT, peak_rss_gib
from labor_llm.language.adapters import Adapter, Frozen, FullFineTuning, Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.batches import TrainingBatches, ValidationBatches
from labor_llm.language.finetune import FineTuning, TrainerSettings, fine_tune, score_careers
from labor_llm.language.memory import Plan
from labor_llm.language.scoring import ExactScoring
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trie import TitleTrie
from labor_llm.tracking import NoTracker

ADAPTERS: dict[str, Adapter] = {
    "none": FullFineTuning(learning_rate=1e-5),
    "lora": Lora(),
    "frozen": Frozen(),
}
TITLE_TOKENS, RECORD_TOKENS, TOKENS = 5, 20, 10_000
SMALLEST = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}


def estimated(folder: Path, lengths: Sequence[int], adapter: str = "none", **trainer: Any) -> float:
    """What the project estimates for the same, in bytes."""
    backbone = HubBackbone(name="measured", path=str(folder))
    settings = trainer_settings(lengths, trainer)
    plan = Plan(
        backbone=backbone,
        adapter=ADAPTERS[adapter],
        tokenizer=backbone.tokenizer([]),
        settings=settings,
        scoring=ExactScoring(),
        lengths=tuple(sorted(lengths, reverse=True)),
        tree=TitleTrie.of(titles(TOKENS)).nodes,
    )
    return plan.estimate.training if plan.adapter.trains else plan.estimate.scored


def trainer_settings(lengths: Sequence[int], trainer: dict[str, Any]) -> TrainerSettings:
    """All careers in one forward pass, unless it is said otherwise."""
    together = len(lengths)
    defaults = {"learning_rate": 1e-5, "max_epochs": 1, "batch_size": together, "micro_batch_size": together}
    return TrainerSettings(**defaults | trainer)


def measured(folder: Path, lengths: Sequence[int], adapter: str = "none", **trainer: Any) -> dict[str, float]:
    """Bytes that a model in a folder needs at its peak: while loading, in training steps, and in scoring.

    Every step reads careers of the given lengths, in tokens.
    """
    order = {"folder": str(folder.resolve()), "lengths": list(lengths), "adapter": adapter, "trainer": trainer}
    command = [sys.executable, "-m", "benchmarks.memory_process", json.dumps(order)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def careers(lengths: Sequence[int], vocabulary: int) -> EncodedCareers:
    """Random tokens as careers of these lengths: every 20 are a record, the last 5 of which its title."""
    starts = np.cumsum([0, *lengths])
    ends = [np.arange(RECORD_TOKENS, length + 1, RECORD_TOKENS) for length in lengths]
    title_ends = np.concatenate([start + career for start, career in zip(starts, ends, strict=False)])
    return EncodedCareers(
        ids_T=np.random.default_rng(0).integers(3, vocabulary, starts[-1]).astype(np.int32),
        career_starts=starts,
        record_starts=np.cumsum([0, *map(len, ends)]),
        prompt_ends=title_ends - TITLE_TOKENS,
        title_ends=title_ends,
        header_ends=starts[:-1] + 5,
    )


def titles(vocabulary: int) -> list[tuple[int, ...]]:
    """300 titles of five tokens, which share hardly any."""
    rng = np.random.default_rng(1)
    return [(*rng.integers(3, vocabulary, TITLE_TOKENS - 1).tolist(), 1) for _ in range(300)]


def train(model: PreTrainedModel, lengths: Sequence[int], settings: TrainerSettings) -> None:
    """Two optimizer steps as a run takes them, a validation on one short career, and the best weights."""
    twice = careers([*lengths, *lengths], model.config.vocab_size)
    batches = TrainingBatches(twice, settings.batch_size, settings.micro_batch_size, settings.loss_on, 0)
    module = FineTuning(model, settings, batches.steps, 0)
    held_out = ValidationBatches(careers([RECORD_TOKENS], model.config.vocab_size), 1)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as folder:
        fine_tune(module, batches, held_out, NoTracker(), Path(folder), False)


def score(model: PreTrainedModel, lengths: Sequence[int], settings: TrainerSettings) -> None:
    """The exact scores of 300 titles of five tokens at every record."""
    encoded = careers(lengths, model.config.vocab_size)
    trie = TitleTrie.of(titles(model.config.vocab_size))
    module = FineTuning(model, settings, 1, 0)
    score_careers(module, encoded, np.full(len(encoded.prompt_ends), -1), trie, ExactScoring(), False)


def work(model: PreTrainedModel, order: dict[str, Any]) -> None:
    """What the order asks for."""
    settings = trainer_settings(order["lengths"], order["trainer"])
    adapter = ADAPTERS[order["adapter"]]
    adapted = adapter.apply(model, HubBackbone(name="measured", path=order["folder"]))
    (train if adapter.trains else score)(adapted, order["lengths"], settings)


def dtype(order: dict[str, Any]) -> torch.dtype:
    """What the backbone's weights are loaded as."""
    settings = trainer_settings(order["lengths"], order["trainer"])
    if settings.weights == "bf16":
        return torch.bfloat16
    mixed = torch.bfloat16 if settings.resolved_precision == "bf16-mixed" else torch.float32
    return ADAPTERS[order["adapter"]].base_dtype(mixed)


def resident() -> int:
    """Bytes that the process holds now; what it held at most is counted from here on."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return round(peak_rss_gib() * 2**30)


def main() -> None:
    """Load, work, and say how much memory that took."""
    order = json.loads(sys.argv[1])
    transformers_logging.disable_progress_bar()
    small = LlamaForCausalLM(LlamaConfig(**SMALLEST, num_attention_heads=2)).to(dtype(order))
    work(small, order | {"lengths": [RECORD_TOKENS] * len(order["lengths"])})
    del small
    on_gpu = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if on_gpu else resident()
    model = AutoModelForCausalLM.from_pretrained(order["folder"], dtype=dtype(order), use_safetensors=True)
    weights = sum(weight.numel() for weight in model.parameters())
    loading = round(peak_rss_gib() * 2**30) - before
    loaded = 0 if on_gpu else resident() - before
    work(model, order)
    peak = torch.cuda.max_memory_allocated() if on_gpu else round(peak_rss_gib() * 2**30)
    result = {"weights": weights, "loading": loading, "loaded": loaded, "peak": peak - before}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
