import json
import math
import warnings

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from drawn_predictions import edited, simulated
from sklearn.metrics import brier_score_loss, roc_auc_score

from labor_llm.errors import RunError
from labor_llm.evaluate import evaluate, paired_difference
from labor_llm.events import SET_EVENTS
from labor_llm.predictions import COLUMNS, Predictions

METRICS = ("perplexity", "perplexity_raw", "log_score", "top1", "top5", "top10")
EVENTS = ("move", *SET_EVENTS)


@pytest.fixture(scope="module")
def predictions():
    return simulated(60)


@pytest.fixture(scope="module")
def evaluation(predictions):
    return evaluate(predictions)


def in_subset(line: dict, subset: str) -> bool:
    return {
        "all": True,
        "first": line["first"],
        "transitions": not line["first"],
        "stayers": line["moved"] is False,
        "movers": line["moved"] is True,
    }[subset]


@pytest.mark.parametrize("subset", ["all", "first", "transitions", "stayers", "movers"])
def test_metrics_agree_with_a_loop(predictions, evaluation, subset):
    lines = [line for line in predictions.table.iter_rows(named=True) if in_subset(line, subset)]
    scored = [line for line in lines if line["log_prob"] is not None]
    weighted = [line for line in scored if line["weight"] is not None]
    mean = sum(line["log_prob"] for line in scored) / len(scored)
    raw = sum(line["log_prob"] + line["log_mass"] for line in scored) / len(scored)
    total = sum(line["weight"] for line in weighted)
    heavy = [line for line in lines if line["weight"] is not None]
    expected = {
        "log_score": mean,
        "perplexity": math.exp(-mean),
        "perplexity_raw": math.exp(-raw),
        "perplexity_weighted": math.exp(-sum(line["weight"] * line["log_prob"] for line in weighted) / total),
        "top5_weighted": sum(line["weight"] * ((line["rank"] or 99) <= 5) for line in heavy)
        / sum(line["weight"] for line in heavy),
    } | {
        f"top{k}": sum(line["rank"] is not None and line["rank"] <= k for line in lines) / len(lines)
        for k in (1, 5, 10)
    }
    for metric, value in expected.items():
        estimate = evaluation.estimate(metric, subset)
        assert estimate.value == pytest.approx(value)
        chosen = weighted if metric.endswith("weighted") else scored
        if metric.startswith("top"):
            chosen = heavy if metric.endswith("weighted") else lines
        assert estimate.records == len(chosen)
        assert estimate.persons == len({line["person_id"] for line in chosen})


@pytest.mark.parametrize("suffix", ["", "_weighted"])
@pytest.mark.parametrize("event", EVENTS)
def test_events_agree_with_sklearn(predictions, evaluation, event, suffix):
    later = predictions.table.filter(~pl.col("first") & (pl.lit(not suffix) | (pl.col("weight") > 0)))
    if event == "move":
        happened, probability = later["moved"].to_numpy(), 1 - np.exp(later["log_prob_stay"].to_numpy())
    else:
        happened, probability = later[event].to_numpy(), 1 / (1 + np.exp(-later[f"{event}_logit"].to_numpy()))
    weights = later["weight"].to_numpy() if suffix else None
    auc, brier = (evaluation.estimate(f"{event}_{score}{suffix}", "transitions") for score in ("auc", "brier"))
    assert auc.value == pytest.approx(roc_auc_score(happened, probability, sample_weight=weights))
    assert brier.value == pytest.approx(brier_score_loss(happened, probability, sample_weight=weights))
    assert auc.records == brier.records == later.height


def test_standard_error_of_perplexity_is_the_closed_form(predictions, evaluation):
    log_probs = predictions.table.drop_nulls("log_prob")
    mean, count = log_probs["log_prob"].mean(), len(log_probs)
    sums = [sum(x - mean for x in person["log_prob"]) for _, person in log_probs.group_by("person_id")]
    variance = len(sums) / (len(sums) - 1) * sum(x**2 for x in sums) / count**2
    perplexity = evaluation.estimate("perplexity")
    assert perplexity.se == pytest.approx(perplexity.value * math.sqrt(variance))
    assert evaluation.estimate("log_score").se == pytest.approx(math.sqrt(variance))


def test_standard_errors_agree_with_a_bootstrap_of_persons():
    predictions, rng, draws = simulated(200, seed=1), np.random.default_rng(0), []
    table = predictions.table.with_columns(person=pl.col("person_id").cast(pl.Int64))
    scored, weighted = table.drop_nulls("log_prob"), table.drop_nulls(["log_prob", "weight"])
    later = table.filter(~pl.col("first"))
    moved, stay = later["moved"].to_numpy(), later["log_prob_stay"].to_numpy()
    weights = later["weight"].fill_null(0.0).to_numpy()
    heavy = weights > 0
    for _ in range(400):
        times_G = rng.multinomial(200, np.full(200, 1 / 200))
        times = {
            name: times_G[part["person"]]
            for name, part in [("s", scored), ("w", weighted), ("t", table), ("l", later)]
        }
        draws.append(
            [
                np.exp(-np.average(scored["log_prob"], weights=times["s"])),
                np.exp(-np.average(weighted["log_prob"], weights=times["w"] * weighted["weight"].to_numpy())),
                np.average(table["rank"].fill_null(99) <= 5, weights=times["t"]),
                roc_auc_score(moved, -stay, sample_weight=times["l"]),
                np.average((1 - np.exp(stay) - moved) ** 2, weights=times["l"]),
                roc_auc_score(moved[heavy], -stay[heavy], sample_weight=(times["l"] * weights)[heavy]),
            ]
        )
    evaluation = evaluate(predictions)
    names = ["perplexity", "perplexity_weighted", "top5"]
    ses = [evaluation.estimate(name).se for name in names]
    ses += [
        evaluation.estimate(name, "transitions").se for name in ("move_auc", "move_brier", "move_auc_weighted")
    ]
    np.testing.assert_allclose(ses, np.std(draws, axis=0), rtol=0.15)


def test_outside_the_choice_set_is_counted_and_a_miss(predictions, evaluation):
    outside = int((~predictions.table["in_choice_set"]).sum())
    assert evaluation.outside_choice_set == outside > 0
    assert evaluation.estimate("perplexity").records == evaluation.records - outside
    assert evaluation.estimate("top10").records == evaluation.records
    assert f", {outside} more outside the choice set)" in str(evaluation)


@pytest.mark.parametrize(
    "columns",
    [
        {"moved": pl.lit(None, pl.Boolean), "first": pl.lit(True), "log_prob_stay": pl.lit(None, pl.Float64)},
        {"moved": pl.when(~pl.col("first")).then(pl.lit(True))},
        {"moved": pl.when(~pl.col("first")).then(pl.lit(False))},
        {"person_id": pl.lit("only")},
        {"log_prob": pl.lit(-math.inf), "log_prob_stay": pl.lit(-math.inf)},
        {"log_mass": pl.lit(-2000.0)},
        {
            "in_choice_set": pl.lit(False),
            "log_prob": pl.lit(None, pl.Float64),
            "rank": pl.lit(None, pl.Int32),
        },
        dict.fromkeys(["rank", "log_prob", "log_prob_stay"], pl.lit(None)),
    ],
    ids=[
        "no-transitions",
        "all-move",
        "none-moves",
        "one-person",
        "impossible",
        "no-mass",
        "all-outside",
        "realised-only",
    ],
)
def test_the_undefined_is_null_without_a_warning(predictions, columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate(edited(predictions, **columns))
    json.dumps(evaluation.to_dict(), allow_nan=False)
    assert all(math.isfinite(value) for value in evaluation.scalars().values())
    assert not evaluation.table["value"].is_nan().any()
    assert not evaluation.table["se"].is_nan().any()


def test_without_weights_or_anybody_at_risk_there_are_no_such_metrics(predictions):
    nobody = {name: pl.lit(None, COLUMNS[name]) for event in SET_EVENTS for name in (event, f"{event}_logit")}
    bare = evaluate(edited(predictions, weight=pl.lit(None, pl.Float64), **nobody)).to_dict()["metrics"]
    assert set(bare["transitions"]) == {*METRICS, "move_auc", "move_brier"}


def test_no_records():
    evaluation = evaluate(Predictions(simulated(5).table.clear(), ("cook",)))
    assert evaluation.records == 0
    assert evaluation.table["value"].is_null().all()


def test_zero_weights_weigh_nothing(predictions):
    zeros = edited(predictions, weight=pl.col("weight").fill_null(0.0))
    assert evaluate(zeros).estimate("perplexity_weighted") == evaluate(predictions).estimate("perplexity_weighted")


def twice(names) -> list[str]:
    return [*names, *(f"{name}_weighted" for name in names)]


def test_names_of_scalars_and_of_json(evaluation):
    scalars, result = evaluation.scalars("valid"), evaluation.to_dict()
    perplexity = evaluation.estimate("perplexity")
    assert scalars["valid/perplexity"] == perplexity.value
    assert scalars["valid/perplexity_se"] == perplexity.se
    assert scalars["valid/movers/top5"] == result["metrics"]["movers"]["top5"]["value"]
    assert result["metrics"]["all"]["perplexity"] == perplexity._asdict()
    assert result["outside_choice_set"] == evaluation.outside_choice_set
    scores = [f"{event}_{score}" for event in EVENTS for score in ("auc", "brier")]
    assert set(result["metrics"]["transitions"]) == {*twice(METRICS), *twice(scores)}
    assert set(result["metrics"]["all"]) == set(twice(METRICS))


def test_an_evaluation_prints_itself_in_one_line(predictions):
    inside = Predictions(predictions.table.filter("in_choice_set"), predictions.choice_set)
    evaluation = evaluate(inside)
    value, se, records, persons = evaluation.estimate("perplexity")
    assert str(evaluation) == f"perplexity {value:.3f} (se {se:.3f}; {records} records of {persons} persons)"


def test_paired_difference_is_that_of_clustered_least_squares_and_antisymmetric(predictions):
    other = edited(predictions, log_prob=pl.col("log_prob") * 1.1 + 0.05 * pl.col("year").sin())
    forward, back = paired_difference(predictions, other), paired_difference(other, predictions)
    records = (predictions.table["log_prob"] - other.table["log_prob"]).drop_nulls()
    groups = predictions.table.drop_nulls("log_prob")["person_id"].to_numpy().astype(int)
    fit = sm.OLS(records.to_numpy(), np.ones(len(records))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert (forward.difference, forward.se) == pytest.approx((fit.params[0], fit.bse[0]))
    assert (forward.z, forward.p) == pytest.approx((fit.tvalues[0], fit.pvalues[0]))
    assert (back.difference, back.se, back.p) == pytest.approx((-forward.difference, forward.se, forward.p))
    assert forward.records == len(records)
    assert "difference in log score" in str(forward)


def test_paired_difference_does_not_mind_the_order_of_records(predictions):
    other = edited(predictions, log_prob=pl.col("log_prob") * 1.1)
    shuffled = Predictions(other.table.sample(fraction=1, shuffle=True, seed=0), other.choice_set)
    assert paired_difference(predictions, shuffled) == paired_difference(predictions, other)


def test_a_model_does_not_differ_from_itself(predictions):
    same = paired_difference(predictions, predictions)
    assert (same.difference, same.se, same.z, same.p) == (0, 0, None, None)


def test_other_records_are_refused_with_their_number(predictions):
    fewer = Predictions(predictions.table.slice(3), predictions.choice_set)
    with pytest.raises(RunError, match="3 records differ"):
        paired_difference(predictions, fewer)
    changed = edited(
        predictions, occupation=pl.when(pl.col("year") == 0).then(pl.lit("pilot")).otherwise("occupation")
    )
    with pytest.raises(RunError, match="60 records differ"):
        paired_difference(changed, predictions)


def test_where_only_realized_occupations_were_scored_the_raw_probabilities_count(predictions):
    nothing = pl.lit(None, pl.Float64)
    realized = Predictions(predictions.table.with_columns(log_prob=nothing), predictions.choice_set)
    assert realized.realized_only
    assert not predictions.realized_only
    expected = paired_difference(edited(predictions, log_prob=pl.col("log_prob_raw")), predictions)
    assert paired_difference(realized, predictions) == expected
    assert expected.difference < 0
