"""Arms at several numbers of training persons: which runs are one arm, and whose differences are shown."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from made_up_runs import QUICK, predictions, write_run

from experiments.pretrained import write
from labor_llm.comparison.plots import learning_curve_plot
from labor_llm.comparison.runs import Run
from labor_llm.comparison.training_sizes import learning_curves, markdown, runs_of_test
from labor_llm.errors import RunError
from labor_llm.evaluate import evaluate, paired_difference

QUALITY = {"career": 1.0, "nano-title": 1.2, "smollm2-title": 1.5}


def write_arm(
    folder: Path, name: str, persons: int | None, trained_on: int, quality: float, seed: int = 0, **config
):
    """A run of the arm, as it writes on how many persons it trained."""
    where = folder / f"{name}-{persons}-{seed}-{len(list(folder.iterdir()))}"
    predicted = predictions(quality, persons=40, seed=seed)
    write_run(where, name, predicted, **{"train_persons": persons, "test_persons": 40, "seed": seed} | config)
    metrics = json.loads((where / "metrics.json").read_text()) | {"training_persons": trained_on}
    (where / "metrics.json").write_text(json.dumps(metrics))
    return where


@pytest.fixture
def folder(tmp_path):
    for name, quality in QUALITY.items():
        for persons, trained_on in ((500, 500), (1000, 1000), (None, 4925)):
            write_arm(tmp_path, name, persons, trained_on, quality + trained_on / 10_000)
    write_arm(tmp_path, "smollm2-title-off_the_shelf", None, 4925, 0.2)
    return tmp_path


def of(folder: Path, reference: str = "career") -> pl.DataFrame:
    return learning_curves(runs_of_test(folder), reference, QUICK)


def test_differences_are_to_the_reference_of_the_same_number(folder):
    table = of(folder)
    assert table.select("training_persons", "arm").rows()[:3] == [
        (500, "smollm2-title"),
        (500, "nano-title"),
        (500, "career"),
    ]
    assert table["training_persons"].to_list() == [500] * 3 + [1000] * 3 + [4925] * 4
    for size in (500, 4925):
        row = table.row(
            by_predicate=(pl.col("arm") == "smollm2-title") & (pl.col("training_persons") == size), named=True
        )
        ours, theirs = (predictions(quality + size / 10_000, persons=40) for quality in (1.5, 1.0))
        paired, own = paired_difference(ours, theirs), evaluate(ours).estimate("perplexity")
        assert (row["difference"], row["difference_se"]) == pytest.approx((paired.difference, paired.se))
        assert (row["perplexity"], row["perplexity_se"]) == pytest.approx(own[:2])
        assert (row["records"], row["persons"], row["seeds"]) == (240, 40, 1)
    assert table.filter(arm="career")["difference"].null_count() == 3


def test_without_the_reference_at_a_number_there_is_no_difference(folder):
    write_arm(folder, "nano-title", 2000, 2000, 1.4)
    table = of(folder)
    (row,) = table.filter(training_persons=2000).to_dicts()
    assert (row["arm"], row["difference"]) == ("nano-title", None)
    assert row["perplexity"] is not None


def test_all_persons_and_their_number_are_one_point_and_seeds_one_model(folder):
    given = {"name": "panel", "raw": "/home/me/careers.csv"}  # with the first command, and left out later
    write_arm(folder, "career", 4925, 4925, 1.6, seed=1, dataset=given)
    table = of(folder)
    career = table.filter(arm="career", training_persons=4925).row(0, named=True)
    assert career["seeds"] == 2
    assert career["movers_perplexity"] is None  # of several runs there is no one value
    assert table.height == 10


def test_other_settings_are_other_arms_at_every_number(folder):
    for size in (500, 1000):
        write_arm(folder, "career", size, size, 1.0, trainer={"max_epochs": 9})
    arms = set(of(folder, "nano-title")["arm"])
    assert {"career", "career (trainer.max_epochs=9)"} < arms
    assert len(arms) == 5


def test_a_run_scored_again_belongs_to_its_arm(folder):
    fitted = next(folder.glob("career-500-*"))
    on = {
        "dataset": {"name": "panel", "raw": "/home/me/careers.csv"},
        "known_until": None,
        "train_persons": 500,
        "valid_persons": None,
    }
    write_arm(folder, "career", 500, 500, 1.3, fitted=str(fitted), fitted_on=on)
    table = of(folder)
    assert table.filter(arm="career").height == 3
    assert table.height == 10


def test_what_cannot_be_shown_is_named(folder):
    with pytest.raises(RunError, match="there is no arm 'logit'; there are career, nano-title, smollm2-title"):
        of(folder, "logit")
    write_arm(folder, "career", None, 4925, 1.0, test_persons=None)
    with pytest.raises(RunError, match=r"numbers of test persons: 40, all\. Name one"):
        runs_of_test(folder)
    with pytest.raises(RunError, match=r"numbers of test persons: 40, all\. Name one"):
        runs_of_test(folder, 30)
    assert len(runs_of_test(folder, 40)) == 10
    early = [
        replace(run, metrics={**run.metrics, "training_persons": None}) for run in runs_of_test(folder, 40)[:1]
    ]
    with pytest.raises(RunError, match="written by an earlier version"):
        learning_curves(early, "career", QUICK)


def test_the_table_has_an_arm_a_row(folder):
    table = of(folder)
    lines = markdown(table, "career").splitlines()
    assert lines[0] == "| arm, trained on | 500 | diff. | 1,000 | diff. | 4,925 | diff. |"
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [
        "`smollm2-title`",
        "`nano-title`",
        "`career`",
        "`smollm2-title-off_the_shelf`",
    ]
    best = table.filter(arm="smollm2-title", training_persons=500).row(0, named=True)
    cells = [cell.strip() for cell in lines[2].split("|")[2:4]]
    assert cells[0] == f"{best['perplexity']:.3f} ({best['perplexity_se']:.3f})"
    assert cells[1] == f"{best['difference']:.4f} ({best['difference_se']:.4f})"
    assert lines[4].split("|")[3].strip() == "ref."
    assert [cell.strip() for cell in lines[5].split("|")[2:4]] == ["-", "-"]
    assert "240 records of 40 test persons" in lines[-1]


def test_curves_lie_where_the_numbers_are(folder):
    table = of(folder)
    figure = learning_curve_plot(table, "career")
    left, right = figure.axes
    assert len(left.containers) == 3  # one arm has one number alone
    assert figure.legends[0].get_title().get_text() == "1 at one number alone: see the table"
    drawn = {bars.get_label(): bars.lines[0].get_ydata().tolist() for bars in left.containers}
    for arm, values in drawn.items():
        assert values == table.filter(arm=arm).sort("training_persons")["perplexity"].to_list()
    differences = table.filter(arm="nano-title").sort("training_persons")["difference"].to_list()
    assert differences in [bars.lines[0].get_ydata().tolist() for bars in right.containers]
    one = learning_curve_plot(table.filter(training_persons=4925), "career")
    assert len(one.axes[0].containers) == 4
    assert [label.get_text() for label in left.get_xticklabels()] == ["500", "1,000", "4,925"]


def test_all_is_written(folder, tmp_path):
    shown = write(folder, "career", None, tmp_path / "there")
    names = {f"pretrained.{ending}" for ending in ("csv", "md", "png", "svg")}
    assert {path.name for path in (tmp_path / "there").iterdir()} == names
    assert (tmp_path / "there" / "pretrained.md").read_text() == f"{shown}\n"
    assert pl.read_csv(tmp_path / "there" / "pretrained.csv").height == 10
    assert Run.read(next(folder.glob("career-500-*"))).metrics["training_persons"] == 500
