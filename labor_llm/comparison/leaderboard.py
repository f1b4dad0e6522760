"""The leaderboard of the runs on one dataset, best first, with paired differences to one of them.

Perplexities are over all records of the test persons, errors clustered by person; the difference is in mean log
score, in nats, positive: better than the reference.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import polars as pl
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from labor_llm.comparison.runs import Run, distinct_names, read_runs
from labor_llm.errors import RunError
from labor_llm.evaluate import evaluate, paired_difference
from labor_llm.predictions import Predictions
from labor_llm.run_folder import write_atomically

logger = logging.getLogger(__name__)


class Leaderboard(Callback):
    """At the end of a sweep, writes leaderboard.csv of all runs on its dataset, and prints it."""

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls it once all jobs went well."""
        folder = Path(config.outputs) / config.dataset.name
        try:
            table = leaderboard(runs_in(folder, config.get("test_persons")), self.reference)
        except RunError as error:  # the runs are there all the same
            logger.warning("no leaderboard: %s", error)
            return
        write_atomically(folder / "leaderboard.csv", table.write_csv())
        sys.stdout.write(f"{markdown(table, self.reference)}\n")


def runs_in(folder: Path, test_persons: int | None = None) -> dict[str, Run]:
    """The complete runs under a folder that predicted so many test persons, all of them if None, by name."""
    of_test = [run for run in read_runs([folder]) if run.config["predict"] == "test"]
    return distinct_names([run for run in of_test if run.config.get("test_persons") == test_persons])


def leaderboard(runs: dict[str, Run], reference: str) -> pl.DataFrame:
    """One line per run: model, backbone, label, perplexity, se, difference, difference_se, seconds."""
    if reference not in runs:
        known = ", ".join(runs) or "none of test persons"
        raise RunError(f"there is no run {reference!r} to compare with; there are {known}.")
    against = runs[reference].predictions()
    lines = [_line(name, run, against) for name, run in runs.items()]
    return pl.DataFrame(lines, infer_schema_length=None).sort("perplexity", nulls_last=True)


def _line(name: str, run: Run, against: Predictions) -> dict[str, Any]:
    predictions = run.predictions()
    perplexity, paired = evaluate(predictions).estimate("perplexity"), paired_difference(predictions, against)
    model, seconds = run.config["model"], run.metrics["seconds"]
    language = model.get("language", model)  # an embedding has a language model of its own
    return {
        "model": name,
        "backbone": language["backbone"]["name"] if "backbone" in language else None,
        "label": language["label"]["name"] if "label" in language else None,
        "perplexity": perplexity.value,
        "se": perplexity.se,
        "difference": paired.difference,
        "difference_se": paired.se,
        "seconds": sum(seconds.values()) if "fit" in seconds else None,  # unknown of a fit that was resumed
    }


def markdown(table: pl.DataFrame, reference: str) -> str:
    """The table as it stands in the README."""
    rows = [f"| model | perplexity | difference to `{reference}` | seconds |", "|---|---:|---:|---:|"]
    for line in table.iter_rows(named=True):
        difference = _with_error(line["difference"], line["difference_se"], "+.4f")
        shown = "ref." if line["model"] == reference else difference
        seconds = "-" if line["seconds"] is None else f"{line['seconds']:.0f}"
        rows.append(
            f"| `{line['model']}` | {_with_error(line['perplexity'], line['se'], '.3f')} | {shown} | {seconds} |"
        )
    return "\n".join(rows)


def _with_error(value: float | None, error: float | None, form: str) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" + ("" if error is None else f" ({error:{form.lstrip('+')}})")
