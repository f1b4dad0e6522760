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
    against = runs[reference].predictions()
    lines = [_line(name, run, run.predictions(), against) for name, run in runs.items()]
    return pl.DataFrame(lines, infer_schema_length=None).sort("perplexity", nulls_last=True)


def _line(name: str, run: Run, predictions: Predictions, against: Predictions) -> dict[str, Any]:
    perplexity, paired = evaluate(predictions).estimate("perplexity"), paired_difference(predictions, against)
    reads_text = run.config["model"].get("backbone") is not None
    return {
        "model": name,
        "backbone": run.config["backbone"]["name"] if reads_text else None,
        "label": run.config["label"]["name"] if reads_text else None,
        "perplexity": perplexity.value,
        "se": perplexity.se,
        "difference": paired.difference,
        "difference_se": paired.se,
        "seconds": sum(run.metrics["seconds"].values()),
    }


def markdown(table: pl.DataFrame) -> str:
    """The table as it stands in the README."""
    rows = ["| model | perplexity | difference to CAREER | seconds |", "|---|---:|---:|---:|"]
    for line in table.iter_rows(named=True):
        difference = "ref." if line["difference_se"] is None else f"{line['difference']:+.4f}"
        error = "" if line["difference_se"] is None else f" ({line['difference_se']:.4f})"
        rows.append(
            f"| `{line['model']}` | {line['perplexity']:.3f} ({line['se']:.3f}) | {difference}{error} "
            f"| {line['seconds']:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs, such as outputs/nlsy97_panel")
    parser.add_argument("--reference", default="career", help="name of a run")
    args = parser.parse_args()
    table = leaderboard(distinct_names(read_runs([args.folder])), args.reference)
    write_atomically(args.folder / "leaderboard.csv", table.write_csv())
    print(markdown(table))


if __name__ == "__main__":
    main()
