"""The leaderboard of the runs on one dataset with another reference than CAREER.

    labor-llm run -m experiment=nlsy97_leaderboard dataset.raw=careers.csv.xz    writes it with CAREER
    python -m experiments.leaderboard outputs/nlsy97_panel --reference markov

Prints the table in Markdown.
"""

import argparse
from pathlib import Path

from labor_llm.comparison.leaderboard import leaderboard, markdown, runs_in
from labor_llm.errors import RunError


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs, such as outputs/nlsy97_panel")
    parser.add_argument("--reference", default="career", help="name of a run")
    args = parser.parse_args()
    try:
        runs = runs_in(args.folder)
        if args.reference not in runs:
            raise SystemExit(f"no run {args.reference!r}: name another with --reference, of {', '.join(runs)}")
        print(markdown(leaderboard(runs, args.reference), args.reference))
    except RunError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
