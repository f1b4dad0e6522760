"""What the representations of fitted models add to a regression of log wages, on the runs' own dataset.

    python -m experiments.wages RUN [RUN ...]

RUN: complete runs of model=career or model=language on one dataset with wages. Prints the table in Markdown and
writes wages.csv beside the runs' folders.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

from labor_llm import run_folder
from labor_llm.build import build
from labor_llm.comparison.runs import Run, distinct_names
from labor_llm.identity import own_careers
from labor_llm.models.base import Workspace
from labor_llm.wages import States, wage_regressions


def main(runs: list[Path]) -> None:
    """Load the models, take the states of all records, and regress."""
    configs = {name: run.config for name, run in distinct_names([Run.read(run) for run in runs]).items()}
    folders = dict(zip(configs, runs, strict=True))
    if len({str(config["dataset"]) for config in configs.values()}) > 1:
        raise SystemExit("the runs are on different datasets, or on different splits of one: name those of one")
    home, first = runs[0].resolve().parents[2], next(iter(configs.values()))
    dataset = build(OmegaConf.create(first), ["dataset"])["dataset"]
    splits = dataset.split(own_careers(dataset, first, runs[0].resolve()))
    representations: dict[str, States] = {}
    for name, config in configs.items():
        model = build(OmegaConf.create(config), ["model"])["model"].load(folders[name] / run_folder.MODEL)
        if not hasattr(model, "states"):
            raise SystemExit(f"{name} has no representation of careers: name a run of career or language")
        if seen := model.persons_seen(splits.test):
            raise SystemExit(f"{name} was trained on {seen} of the test persons")
        workspace = Workspace(None, progress=True)
        parts = ("train", "valid", "test")
        representations[name] = {part: model.states(getattr(splits, part), workspace) for part in parts}
    table = pl.DataFrame([asdict(line) for line in wage_regressions(splits, representations)])
    run_folder.write_atomically(home / dataset.name / "wages.csv", table.write_csv())
    print("| regressors | R2 | MSE | penalty |\n|---|---:|---:|---:|")
    for line in table.iter_rows(named=True):
        print(
            f"| {line['regressors']} | {line['r2']:.4f} ({line['r2_se']:.4f}) "
            f"| {line['mse']:.4f} ({line['mse_se']:.4f}) | {line['penalty']:g} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    main(parser.parse_args().runs)
