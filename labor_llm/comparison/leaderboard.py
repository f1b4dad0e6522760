"""The leaderboard of the runs on one dataset, best first, with paired differences to CAREER.

    labor-llm run -m experiment=nlsy97_leaderboard dataset.raw=careers.csv.xz
    python -m experiments.leaderboard outputs/nlsy97_panel

Writes leaderboard.csv into the folder and prints the table in Markdown. Perplexities are over all records of the
test persons, errors clustered by person; the difference is in mean log score, in nats, positive: better than the
reference.
"""

import argparse
from pathlib import Path
from typing import Any

import polars as pl

from labor_llm.comparison.runs import Run, distinct_names, read_runs
from labor_llm.evaluate import evaluate, paired_difference
from labor_llm.predictions import Predictions
from labor_llm.run_folder import write_atomically


def leaderboard(runs: dict[str, Run], reference: str) -> pl.DataFrame:
    """One line per run: model, backbone, label, perplexity, se, difference, difference_se, seconds."""
    if reference not in runs:
        raise SystemExit(f"there is no run {reference!r}: name one of {', '.join(runs)} with --reference")
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs, such as outputs/nlsy97_panel")
    parser.add_argument("--reference", default="career", help="name of a run")
    args = parser.parse_args()
    runs = [run for run in read_runs([args.folder]) if run.config["predict"] == "test"]
    table = leaderboard(distinct_names(runs), args.reference)
    write_atomically(args.folder / "leaderboard.csv", table.write_csv())
    print(markdown(table, args.reference))


if __name__ == "__main__":
    main()
