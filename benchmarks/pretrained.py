"""Training and scoring at the size of a small pretrained model, SmolLM2's, compared with the usual ways.

    python -m benchmarks.pretrained [--toy] [--steps 8] [--out benchmarks/results/pretrained-cpu.json]

The weights are random: speed does not depend on them. All systems read the same generated careers, which are as
long as those of the NLSY97, and take the same number of optimizer steps in the same precision.
"""

import argparse
import gc
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.llama import SMOLLM2_135M, llama3_tokenizer
from benchmarks.machine import default_result, peak_rss_gib, seconds, versions, write_result
from benchmarks.memory import SETTINGS, bytes_per_weight, model_folder
from benchmarks.panel import generated_panel
from benchmarks.scoring import evenly_spaced
from benchmarks.scoring_engine import Engine, exact_flops, prompts
from benchmarks.scoring_rivals import lm_eval_rival
from benchmarks.training import panel_facts, training_flops
from benchmarks.training_ours import encode, train_ours
from benchmarks.training_rivals import Recipe, has_trl, train_padded, train_trl
from labor_llm.careers import Careers
from labor_llm.language.adapters import Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.batches import ScoringBatches
from labor_llm.language.scoring import PackedCareers
from labor_llm.language.tokens import CareerEncoder, EncodedCareers
from labor_llm.precision import bfloat16_pays
from labor_llm.templates import ResumeTemplate, Titles

logger = logging.getLogger(__name__)

TOY = SMOLLM2_135M | {
    "vocab_size": 1024,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
OURS, LORA, PADDED, TRL = "labor_llm", "labor_llm_lora", "trainer_padded", "trl_packing"
LENGTHS = ((0.01, 114), (0.05, 198), (0.25, 375), (0.5, 418), (0.75, 456), (0.95, 517), (0.99, 563))
"""Quantiles of the tokens of a career of the NLSY97 panel, as SmolLM2's tokenizer cuts it."""
WARM_UP = 2
"""Optimizer steps of every training that are not timed."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is computed."""

    config: dict[str, Any]
    steps: int
    pool: int
    """Generated careers from which those to train on are chosen by their length."""
    records: tuple[int, int]
    """Fewest and most of a generated career."""
    careers_per_step: int = 8
    row_tokens: int = 1024
    scored: int = 8
    """Records of a career that are scored, the middles of equal stretches."""
    memory_settings: tuple[str, ...] = tuple(SETTINGS)
    """Settings whose bytes a weight are measured, the default first."""
    rival_batch: int = 16
    """Titles of a batch of lm-evaluation-harness."""


def size_of(toy: bool, steps: int) -> Size:
    """The real size, or one of seconds."""
    if toy:
        first, *_, last = SETTINGS
        return Size(config=TOY, steps=3, pool=40, records=(4, 8), scored=2, memory_settings=(first, last))
    return Size(config=SMOLLM2_135M, steps=steps, pool=600, records=(5, 48))


@dataclass(frozen=True)
class Material:
    """Careers, tokenized once for all systems."""

    careers: Careers
    tokenizer: PreTrainedTokenizerBase
    train: EncodedCareers

    @classmethod
    def of(cls, size: Size) -> "Material":
        """As many careers as the steps read, and a tokenizer made from those that they are chosen from."""
        pool = generated_panel(size.pool, 0, *size.records)
        texts = ResumeTemplate().texts(pool, Titles())
        tokenizer = llama3_tokenizer(texts, min(4096, size.config["vocab_size"]))
        chosen = as_long_as_nlsy97(encode(tokenizer, pool).lengths, size.steps * size.careers_per_step)
        careers = pool.select_persons(pool.table["person_id"].unique(maintain_order=True).gather(chosen))
        return cls(careers, tokenizer, encode(tokenizer, careers))


def as_long_as_nlsy97(lengths_P: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """So many places of the lengths, each once, whose quantiles are about those of the NLSY97."""
    shares, tokens = zip(*LENGTHS, strict=True)
    left = np.ones(len(lengths_P), dtype=bool)
    for wanted in np.interp((np.arange(number) + 0.5) / number, shares, tokens):
        left[np.argmin(np.where(left, np.abs(lengths_P - wanted), np.inf))] = False
    return np.flatnonzero(~left)


def random_model(size: Size, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The architecture with random weights, the same each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**size.config)).to(dtype)


def adapted_model(size: Size, dtype: torch.dtype) -> PreTrainedModel:
    """The same, frozen, with the adapter of ``adapter=lora``."""
    return Lora().apply(random_model(size, dtype), HubBackbone(name="random", path="."))


def product_rate(model: nn.Module, tokens: int, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of the model's own matrix products, forward and both gradients, each the best of several trials.

    Every shape of the model's linear layers counts as often as it occurs. So 1.0 is the most that training on
    passes of so many tokens can reach.
    """
    shapes = [tuple(part.weight.shape) for part in model.modules() if isinstance(part, nn.Linear)]
    flops, needed = 0.0, 0.0
    for shape in set(shapes):
        outputs, inputs = shape
        x, weight = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        grad = torch.randn(tokens, outputs).to(dtype)
        products = (
            partial(torch.mm, x, weight.T),
            partial(torch.mm, grad, weight),
            partial(torch.mm, grad.T, x),
        )
        for product in products:
            product()
            needed += shapes.count(shape) * min(seconds(product) for _ in range(repeats))
            flops += shapes.count(shape) * 2 * tokens * outputs * inputs
    return flops / needed


def trainings(size: Size, material: Material) -> dict[str, dict[str, Any]]:
    """Supervised tokens per second of every system after the warm-up, one after the other in this process."""
    bf16 = bfloat16_pays()
    base = torch.bfloat16 if bf16 else torch.float32
    rate = product_rate(random_model(size), int(material.train.lengths.mean()) * size.careers_per_step, base)
    recipe = Recipe(
        learning_rate=1e-4,
        careers_per_step=size.careers_per_step,
        careers_per_pass=size.careers_per_step,
        epochs=1,
        row_tokens=size.row_tokens,
        bf16=bf16,
        seed=0,
    )
    systems = {
        OURS: (partial(random_model, size), train_ours),
        LORA: (partial(adapted_model, size, base), train_ours),
        PADDED: (partial(random_model, size), train_padded),
    } | ({TRL: (partial(random_model, size), train_trl)} if has_trl() else {})
    results = {}
    for name, (make, train) in systems.items():
        model = make().train()
        flops = training_flops(model, material.train.lengths) / float((material.train.lengths - 1).sum())
        clock = train(model, material.train, material.tokenizer, recipe)
        speed = clock.rate(WARM_UP)
        results[name] = {
            "tokens_per_second": speed,
            "share_of_matmul_rate": speed * flops / rate,
            "flops_per_token": flops,
            "seconds_of_steps": clock.seconds,
            "tokens_of_steps": clock.tokens,
        }
        logger.info("%s: %.0f supervised tokens/s, %.0f%% of the rate of products", name, speed,
                    100 * speed * flops / rate)  # fmt: skip
        if name == OURS:
            results[name]["peak_rss_gib"] = peak_rss_gib()
        del model, clock
        gc.collect()
    return {"systems": results, "matmul_flops_per_second": rate, "precision": "bf16" if bf16 else "float32"}


def _records(career: PackedCareers, places: Sequence[int]) -> PackedCareers:
    """The career with some of its records."""
    return replace(
        career,
        careers_Q=career.careers_Q[places],
        prompt_ends_Q=career.prompt_ends_Q[places],
        title_ends_Q=career.title_ends_Q[places],
        realised_Q=career.realised_Q[places],
    )


def scoring(size: Size, material: Material) -> dict[str, Any]:
    """Seconds per record to score all titles, in float32: exactly, and by lm-evaluation-harness on one record."""
    model = random_model(size).eval()
    encoder = CareerEncoder(material.tokenizer, ResumeTemplate(), Titles(), material.careers.taxonomy)
    titles = [encoder.titles[code] for code in material.careers.taxonomy.codes]
    engine, harness = Engine(model, titles), lm_eval_rival(model, material.tokenizer, size.rival_batch)
    person = material.careers.table["person_id"][0]
    encoded = encoder.encode(material.careers.select_persons([person]))
    places = evenly_spaced(len(encoded.prompt_ends), size.scored)
    career = ScoringBatches(encoded, np.zeros(len(encoded.prompt_ends), dtype=np.int64), 10**9)[0]["careers"]
    some = _records(career, places)
    rate = product_rate(model, 2048, torch.float32)
    engine.score(_records(career, places[:1]))  # to warm up
    spent, scores = [], []
    for _ in range(2):
        spent.append(seconds(lambda: scores.append(engine.score(some))))
    share = exact_flops(model, engine.trie, some.prompt_ends_Q) / min(spent) / rate
    logger.info("exact: %.2f s a record, %.0f%% of the rate of products", min(spent) / len(places), 100 * share)
    middle = len(places) // 2
    theirs: list[torch.Tensor] = []
    lm_eval = seconds(lambda: theirs.append(harness([prompts(career)[places[middle]]], titles)))
    ours = min(spent) / len(places)
    return {
        "exact_share_of_matmul_rate": share,
        "exact_vs_lm_eval": lm_eval / ours,
        "exact_seconds_per_record": ours,
        "records_scored": len(places),
        "matmul_flops_per_second": rate,
        "lm_eval_seconds_per_record": lm_eval,
        "lm_eval_batch_size": size.rival_batch,
        "max_abs_diff_nats": float((scores[0].raw_QJ[middle] - theirs[0][0]).abs().max()),
        "titles": len(titles),
        "titles_mean_tokens": float(np.mean([len(title) for title in titles])),
        "inner_nodes": engine.trie.nodes,
    }


def memory_of_weights(config: Mapping[str, Any], precision: str, names: Sequence[str]) -> dict[str, Any]:
    """Bytes a weight at the peak of full fine-tuning, activations left out: the default and the lowest setting."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(Path(scratch), config)
        rows = bytes_per_weight(folder, "bf16-mixed" if precision == "bf16" else "32-true", names)
    sizes = [row["bytes_per_weight"] for row in rows.values()]
    return {
        "bytes_per_weight_default": sizes[0],
        "bytes_per_weight_lowest": min(sizes),
        "bytes_per_weight": {name: row["bytes_per_weight"] for name, row in rows.items()},
    }


def benchmark(size: Size) -> dict[str, Any]:
    """Train, score, and put it together."""
    material = Material.of(size)
    training = trainings(size, material)
    speed = {name: each["tokens_per_second"] for name, each in training["systems"].items()}
    return {
        "train_tokens_per_second": speed[OURS],
        "train_share_of_matmul_rate": training["systems"][OURS]["share_of_matmul_rate"],
        "train_vs_trainer_padded": speed[OURS] / speed[PADDED],
        "train_vs_trl_packing": speed[OURS] / speed[TRL] if TRL in speed else None,
        "lora_vs_full": speed[LORA] / speed[OURS],
        "train_peak_rss_gib": training["systems"][OURS]["peak_rss_gib"],
        "training": training,
        "scoring": (scored := scoring(size, material)),
        **{key: scored[key] for key in ("exact_share_of_matmul_rate", "exact_vs_lm_eval")},
        **memory_of_weights(size.config, training["precision"], size.memory_settings),
        "panel": panel_facts(material.train),
        "weights": sum(weight.numel() for weight in random_model(size).parameters()),
        "versions": versions("torch", "transformers", "peft", "trl", "lm_eval", "pytorch-lightning"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.pretrained", description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="sizes that take seconds, for tests")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of every training")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/pretrained-cpu.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = options.out or default_result("pretrained-cpu.json", options.toy)
    write_result(out, benchmark(size_of(options.toy, options.steps)) | {"toy": options.toy})


if __name__ == "__main__":
    main()
