"""What pretraining, fine-tuning and titles are worth, by the number of persons to learn from.

    labor-llm run -m experiment=pretrained dataset.raw=careers.csv.xz    and so the others, pretrained_*
    python -m experiments.pretrained outputs/nlsy97_panel

Reads the complete runs of the folder on one sample of test persons. Writes pretrained.csv, pretrained.md and the
curves as PNG and SVG into it, and prints the table in Markdown.
"""

import argparse
from pathlib import Path

from labor_llm.comparison.plots import learning_curve_plot, save
from labor_llm.comparison.side_by_side import Statistics
from labor_llm.comparison.training_sizes import learning_curves, markdown, runs_of_test
from labor_llm.errors import RunError
from labor_llm.run_folder import write_atomically

REPLICATES = 1000
"""Resamples of persons; what is shown are errors by formula."""


def write(folder: Path, reference: str, test_persons: int | None, to: Path) -> str:
    """Write the table and the curves; returns the table in Markdown."""
    runs = runs_of_test(folder, test_persons)
    table = learning_curves(runs, reference, Statistics(replicates=REPLICATES))
    shown = markdown(table, reference)
    to.mkdir(parents=True, exist_ok=True)
    write_atomically(to / "pretrained.csv", table.write_csv())
    write_atomically(to / "pretrained.md", f"{shown}\n")
    save(learning_curve_plot(table, reference), to, "pretrained")
    return shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs, such as outputs/nlsy97_panel")
    parser.add_argument("--reference", default="career", help="name of an arm")
    parser.add_argument("--test-persons", type=int, help="which sample of test persons, if there are several")
    parser.add_argument("--to", type=Path, help="where to write; the folder of the runs by default")
    args = parser.parse_args()
    try:
        print(write(args.folder, args.reference, args.test_persons, args.to or args.folder))
    except RunError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
