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
from labor_llm.errors import ConfigError
from labor_llm.models.base import Workspace
from labor_llm.prepared import read_prepared
from labor_llm.wages import States, wage_regressions


def main(runs: list[Path]) -> None:
    """Load the models, take the states of all records, and regress."""
    configs = {run: run_folder.read_config(run) for run in runs}
    if len({config["dataset"]["name"] for config in configs.values()}) > 1:
        raise SystemExit("the runs are on different datasets: name those of one")
    home, first = runs[0].resolve().parents[2], configs[runs[0]]
    dataset = build(OmegaConf.create(first), ["dataset"])["dataset"]
    splits = dataset.split(read_prepared(dataset, home))
    representations: dict[str, States] = {}
    for run, config in configs.items():
        model = build(OmegaConf.create(config), ["model"])["model"].load(run / run_folder.MODEL)
        if not hasattr(model, "states"):
            raise ConfigError(
                f"{config['name']} has no representation of careers: name a run of career or language"
            )
        workspace = Workspace(None, progress=True)
        parts = ("train", "valid", "test")
        representations[config["name"]] = {part: model.states(getattr(splits, part), workspace) for part in parts}
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
