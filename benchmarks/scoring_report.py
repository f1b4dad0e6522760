"""What the rounds of the scoring benchmark come to: medians, largest differences, and a table.

Legend: Q records of a career, J titles.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

LM_EVAL, NAIVE, CACHE = "lm_eval", "naive", "prefix_cache"
EXACT, PRUNED, TOKEN = "exact", "pruned", "token_label"
RIVALS = (LM_EVAL, NAIVE, CACHE)
METHODS = {
    LM_EVAL: "lm-eval",
    NAIVE: "padded rows",
    CACHE: "prefix cache",
    EXACT: "ours, exact",
    PRUNED: "ours, pruned",
    TOKEN: "ours, label=token",
}


@dataclass
class Round:
    """One career scored every way."""

    tokens: int
    records: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Per record, by method."""
    raw: dict[str, Tensor] = field(default_factory=dict)
    """Log-probabilities before normalisation: of all records from ours, of the sampled ones from the rivals."""
    unexpanded_Q: Tensor = field(default_factory=lambda: torch.empty(0))
    """Probability that pruned scoring left unexpanded at each record."""
    exact_flops: int = 0
    sample: list[int] = field(default_factory=list)
    """Records on which the rivals were timed."""


def summary(rounds: Sequence[Round], rate: float) -> dict[str, Any]:
    """Medians over rounds, and the largest differences over all of them."""
    per_record = {name: statistics.median(each.seconds[name] for each in rounds) for name in METHODS}
    speedups = {f"{name}_speedup_vs_lm_eval": per_record[LM_EVAL] / per_record[name] for name in METHODS}
    shares = [each.exact_flops / (each.seconds[EXACT] * each.records) / rate for each in rounds]
    return {
        **speedups,
        "seconds_per_record": per_record,
        "seconds_per_record_by_round": {name: [each.seconds[name] for each in rounds] for name in METHODS},
        "max_abs_diff_nats": max(_difference(each, EXACT, LM_EVAL) for each in rounds),
        "max_abs_diff_nats_by_rival": {
            name: max(_difference(each, name, LM_EVAL) for each in rounds) for name in (NAIVE, CACHE)
        },
        "pruned_certified_mass": max(float(each.unexpanded_Q.max()) for each in rounds),
        "pruned_certified_mass_normalised": max(_normalised_unexpanded(each) for each in rounds),
        "pruned_max_abs_diff_probability": max(_probability_difference(each) for each in rounds),
        "exact_share_of_matmul_rate": statistics.median(shares),
        "exact_flops_per_record": statistics.median(each.exact_flops / each.records for each in rounds),
        "matmul_flops_per_second": rate,
        "rounds": len(rounds),
        "careers": [
            {"tokens": each.tokens, "records": each.records, "rivals_timed_on_records": each.sample}
            for each in rounds
        ],
    }


def _difference(result: Round, one: str, other: str) -> float:
    """The largest difference of two ways' raw log-probabilities, over all titles of the sampled records."""
    one_QJ, other_QJ = (
        result.raw[name] if name in RIVALS else result.raw[name][result.sample] for name in (one, other)
    )
    return float((one_QJ - other_QJ).abs().max())


def _probability_difference(result: Round) -> float:
    """The largest difference between the normalised probabilities of pruned and exact scoring, all records."""
    exact_QJ, pruned_QJ = (result.raw[name].double().softmax(-1) for name in (EXACT, PRUNED))
    return float((exact_QJ - pruned_QJ).abs().max())


def _normalised_unexpanded(result: Round) -> float:
    """The most by which pruning may have moved a normalised probability: what is unexpanded over the row's sum."""
    log_mass_Q = result.raw[PRUNED].double().logsumexp(-1)
    return float((result.unexpanded_Q / log_mass_Q.exp()).max())


def table_of(result: Mapping[str, Any], title: str) -> Table:
    """Seconds and ratios of every way."""
    table = Table(title=title, caption=caption_of(result), title_justify="left", caption_justify="left")
    for column in ("scoring", "seconds per record", "times as fast as lm-eval", "batch size"):
        table.add_column(column, justify="left" if column == "scoring" else "right")
    for name, words in METHODS.items():
        ratio = result[f"{name}_speedup_vs_lm_eval"]
        batch_size = str(result["batch_sizes"].get(name, ""))
        table.add_row(words, f"{result['seconds_per_record'][name]:.4g}", f"{ratio:.3g}", batch_size)
    return table


def caption_of(result: Mapping[str, Any]) -> str:
    """What the table's reader should know besides."""
    panel = result["panel"]
    perplexity = panel["valid_perplexity"]
    own = panel["valid_perplexity_of_process"]
    beside = f", of the process {own:.4g}" if own else ""
    return (
        f"exact and lm-eval differ by at most {result['max_abs_diff_nats']:.1e} nats; pruned leaves out at most "
        f"{result['pruned_certified_mass']:.1e} and differs by at most "
        f"{result['pruned_max_abs_diff_probability']:.1e} in probability; exact reaches "
        f"{result['exact_share_of_matmul_rate']:.0%} of the measured matmul rate; "
        f"{result['peak_rss_gib']:.2f} GiB. Validation perplexity: title {perplexity['title']:.4g}, "
        f"token {perplexity['token']:.4g}{beside}."
    )
