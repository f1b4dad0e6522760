"""Training and scoring at real sizes on one GPU: Llama 3.2 1B and Llama 3.1 8B with random weights.

    python -m benchmarks.gpu [--toy] [--out benchmarks/results/gpu.json] [--minutes 8]

Every part is written to the result as soon as it is done; what memory or time did not allow is said there. Weights
are random, since no speed of training or exact scoring depends on them; how much pruning saves does, so the 1B is
scored after its training, and the result states what probability the titles have in all.
"""

import argparse
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from benchmarks.gpu_models import Bench, Plan, Size, plan
from benchmarks.llama import random_model
from benchmarks.machine import default_result, matmul_rate, versions, write_result
from benchmarks.scoring_rivals import lm_eval_rival, naive_rival
from benchmarks.training import panel_facts, training_flops
from benchmarks.training_ours import train_ours
from benchmarks.training_rivals import StepClock, has_trl, train_padded, train_trl
from labor_llm.language.batches import ScoringBatches
from labor_llm.language.scoring import LOGITS_PER_PASS, PackedCareers
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trie import TitleTrie
from labor_llm.templates import Label, Titles, Tokens

logger = logging.getLogger(__name__)

TRAIN: dict[str, Callable[..., StepClock]] = {
    "labor_llm": train_ours,
    "trainer_padded": train_padded,
    "trl_packing": train_trl,
}


def train_part(bench: Bench, size: Size, adapter: str, system: str) -> dict[str, Any]:
    """Speed, use of the GPU and memory of one system; the project's 1B is kept for scoring.

    The use of the GPU counts ``benchmarks.training.training_flops``, padding left out, against the measured rate
    of bfloat16 matrix products: 6 N T + attention when all weights are trained, 4 N T + 6 A T + attention with
    adapters of A weights.
    """
    _reset_peak(bench.plan.device)
    model, encoded = bench.trainable(size, adapter).train(), bench.encoded(size)
    flops_per_token = training_flops(model, encoded.lengths) / float((encoded.lengths - 1).sum())
    clock = TRAIN[system](model, encoded, bench.tokenizer, bench.recipe(size))
    rate, peak = clock.rate(bench.plan.warm_up), _peak_gib(bench.plan.device)
    if system == "labor_llm" and adapter == "full":
        bench.kept[size.name] = model.to("cpu", bench.dtype)
    return {
        "tokens_per_second": rate,
        "share_of_matmul_rate": rate * flops_per_token / bench.matmul,
        "peak_gpu_gib": peak,
        "timed_seconds": sum(clock.seconds[bench.plan.warm_up :]),
        "timed_steps": len(clock.seconds) - bench.plan.warm_up,
        "supervised_tokens": sum(clock.tokens),
    }


@dataclass(frozen=True)
class ToScore:
    """Careers and titles under one label, in the order of the choice set."""

    encoded: EncodedCareers
    trie: TitleTrie
    titles: list[tuple[int, ...]]
    realised_N: NDArray[np.int64]

    @classmethod
    def of(cls, bench: Bench, label: Label, careers: int) -> "ToScore":
        """The first careers of the panel, over all titles of the taxonomy."""
        encoder = bench.encoder(label)
        some = bench.first_careers(careers)
        titles = [tuple(ids) for ids in encoder.titles.values()]
        place = {code: number for number, code in enumerate(encoder.titles)}
        realised = np.array([place[code] for code in some.table["occupation"]])
        return cls(encoder.encode(some), TitleTrie.of(titles), titles, realised)


def score(bench: Bench, scorer: TitleScorer, batch: PackedCareers) -> NDArray[np.float64]:
    """Of each record, log-probability of all titles and of the realised one, and what was not expanded, (Q, 3).

    The one place that knows the scorer's call.
    """
    batch = batch.to(torch.device(bench.plan.device))
    scores = scorer.score(batch)
    realised_Q = scores.raw_QJ.gather(1, batch.realised_Q[:, None])[:, 0]
    columns = (scores.raw_QJ.double().logsumexp(1), realised_Q.double(), scores.unexpanded_Q.double())
    return torch.stack(columns, dim=1).cpu().numpy()


@torch.no_grad()
def score_part(
    bench: Bench, size: Size, label: Callable[[], Label], tolerance: float, model: PreTrainedModel
) -> dict[str, Any]:
    """Seconds per record of scoring every title of the taxonomy; the first batch comes twice and counts once."""
    work = ToScore.of(bench, label(), size.scored)
    _reset_peak(bench.plan.device)
    budget = min(bench.plan.max_tokens, max(1, LOGITS_PER_PASS // int(model.config.vocab_size)))
    scorer = TitleScorer(model.eval(), work.trie, budget, tolerance)
    batches = [batch["careers"] for batch in ScoringBatches(work.encoded, work.realised_N, budget)]
    score(bench, scorer, batches[0])
    start = _now(bench.plan.device)
    log_mass_N, realised_N, unexpanded_N = np.concatenate([score(bench, scorer, batch) for batch in batches]).T
    seconds = _now(bench.plan.device) - start
    return {
        "seconds_per_record": seconds / len(work.realised_N),
        "records": len(work.realised_N),
        "titles": len(work.titles),
        "tree_nodes": len(work.trie.tokens_M),
        "tokens_of_a_title": float(np.mean([len(title) for title in work.titles])),
        "mean_log_prob_of_the_realised": float(realised_N.mean()),
        "mean_title_mass": float(np.exp(log_mass_N).mean()),
        "mean_unexpanded": float(unexpanded_N.mean()),
        "max_unexpanded": float(unexpanded_N.max()),
        "peak_gpu_gib": _peak_gib(bench.plan.device),
    }


RIVAL_BATCH = 32
"""Rows of a rival's forward pass."""


def rival_part(bench: Bench, size: Size, model: PreTrainedModel) -> dict[str, Any]:
    """Seconds per record when every title is a row of its own: by lm-eval's HFLM, else by a plain loop in batches.

    All prompts are handed over at once; a few titles come first, untimed.
    """
    work = ToScore.of(bench, Titles(), size.scored)
    prompts = list(_prompts(work, size.rival_records))
    rival, name = naive_rival(model.eval(), RIVAL_BATCH), "naive batched loop (lm_eval is not installed)"
    if find_spec("lm_eval") is not None:
        rival, name = lm_eval_rival(model, bench.tokenizer, RIVAL_BATCH), "lm_eval HFLM"
    rival(prompts[:1], work.titles[:8])
    start = _now(bench.plan.device)
    log_probs_QJ = rival(prompts, work.titles)
    seconds = _now(bench.plan.device) - start
    return {
        "system": name,
        "seconds_per_record": seconds / len(prompts),
        "records": len(prompts),
        "mean_log_prob": float(log_probs_QJ.mean()),
    }


def _prompts(work: ToScore, records: int) -> Iterator[list[int]]:
    """The ids before the titles of records spread over all careers."""
    encoded = work.encoded
    for record in np.linspace(0, len(encoded.prompt_ends) - 1, records).astype(int):
        career = np.searchsorted(encoded.record_starts, record, side="right") - 1
        yield encoded.ids_T[encoded.career_starts[career] : encoded.prompt_ends[record]].tolist()


KNOWS_TITLES = 0.5
"""Probability that a model must give to all titles together before the speed of pruning means anything: one that
expects none of them has them all pruned at once."""

Part = Callable[[], dict[str, Any]]


def parts_of(bench: Bench) -> Iterator[tuple[str, Part]]:
    """Every measurement in the order of its worth, so that a short budget still says the most."""
    systems = [name for name in TRAIN if name != "trl_packing" or has_trl()]
    for size in bench.plan.models:
        for adapter in ("full", "lora") if size.full else ("lora",):
            for system in systems:
                name = f"{size.name}/train/{adapter}/{system}"
                yield name, lambda s=size, a=adapter, who=system: train_part(bench, s, a, who)  # type: ignore[misc]
        yield from _scoring_parts(bench, size)


def _scoring_parts(bench: Bench, size: Size) -> Iterator[tuple[str, Part]]:
    """Scoring with the weights that training left, or else random ones; they are dropped at the end."""

    def model() -> PreTrainedModel:
        if size.name not in bench.kept:
            bench.kept[size.name] = random_model(size.config, bench.dtype, bench.plan.device)
        return bench.kept[size.name].to(bench.plan.device)

    yield f"{size.name}/score/exact", lambda: score_part(bench, size, Titles, 0.0, model())
    yield f"{size.name}/score/pruned_1e-3", lambda: score_part(bench, size, Titles, 1e-3, model())
    yield f"{size.name}/score/token_label", lambda: score_part(bench, size, Tokens, 0.0, model())
    yield f"{size.name}/score/rival", lambda: rival_part(bench, size, model())
    bench.kept.clear()


def run_part(part: Part) -> dict[str, Any]:
    """The part's result, or why it has none: the parts after it still run."""
    try:
        return part()
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0]}
    except Exception as error:
        logger.exception("a part failed")
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def benchmark(toy: bool, out: Path, minutes: float) -> None:
    """Run the parts that begin before the time is up, and write the result after every one of them."""
    start, chosen = time.monotonic(), plan(toy)
    dtype = torch.float32 if chosen.device == "cpu" else torch.bfloat16
    bench = Bench(chosen, dtype, matmul_rate(dtype, chosen.device, 1 if toy else 7))
    result: dict[str, Any] = {
        "toy": toy,
        "device": torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu",
        "matmul_flops_per_second": bench.matmul,
        "versions": versions("torch", "transformers", "peft", "trl", "lm_eval", "pytorch-lightning"),
        "panel": {size.name: panel_facts(bench.encoded(size)) for size in chosen.models},
        "parts": {},
    }
    for name, part in parts_of(bench):
        passed = time.monotonic() - start
        late = passed > 60 * minutes
        result["parts"][name] = {"skipped": f"{minutes:g} minutes were up"} if late else run_part(part)
        result["parts"][name]["started_after_seconds"] = passed
        logger.info("%4.0f s  %s: %s", time.monotonic() - start, name, result["parts"][name])
        write_result(out, {**result, **headline(chosen, result["parts"])})


def headline(chosen: Plan, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ratios to the rivals, by model; None where a number is missing or pruning had nothing to weigh."""

    def ratio(ours: str, theirs: str, key: str) -> float | None:
        mine, other = parts.get(ours, {}).get(key), parts.get(theirs, {}).get(key)
        return mine / other if mine and other else None

    found: dict[str, Any] = {}
    for size in chosen.models:
        for adapter in ("full", "lora") if size.full else ("lora",):
            train = f"{size.name}/train/{adapter}"
            for rival in ("trainer_padded", "trl_packing"):
                found[f"{train}/vs_{rival}"] = ratio(f"{train}/labor_llm", f"{train}/{rival}", "tokens_per_second")
        for way in ("exact", "pruned_1e-3", "token_label"):
            rival, ours = f"{size.name}/score/rival", f"{size.name}/score/{way}"
            knows = way != "pruned_1e-3" or parts.get(ours, {}).get("mean_title_mass", 0) > KNOWS_TITLES
            found[f"{ours}/times_faster_than_rival"] = ratio(rival, ours, "seconds_per_record") if knows else None
    return {"headline": found}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_gib(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="tiny models on the processor, for tests")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins later than this")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.toy and not torch.cuda.is_available():
        parser.error("there is no GPU on this machine; --toy runs on the processor")
    benchmark(options.toy, options.out or default_result("gpu.json", options.toy), options.minutes)


if __name__ == "__main__":
    main()
