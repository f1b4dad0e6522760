import json
import math
import warnings

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from labor_llm.errors import RunError
from labor_llm.evaluate import clustered_auc, clustered_mean, evaluate, paired_difference
from labor_llm.predictions import Predictions

METRICS = ("perplexity", "perplexity_raw", "perplexity_weighted", "log_score", "top1", "top5", "top10")


RAW = (pl.col("log_prob") + pl.col("log_mass")).alias("log_prob_raw")


def simulated(persons: int, seed: int = 0, years: int = 8) -> Predictions:
    """Predictions in which a person's records resemble each other; one person in ten has one record."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, years // 2, years], size=persons, p=[0.1, 0.4, 0.5])
    person = np.repeat(np.arange(persons), lengths)
    year = np.concatenate([np.arange(length) for length in lengths])
    taste = rng.normal(size=persons)[person]
    table = pl.DataFrame(
        {
            "person_id": person.astype(str),
            "year": year.astype(np.int32),
            "occupation": rng.choice(["cook", "nurse"], size=len(year)),
            "in_choice_set": rng.random(len(year)) > 0.05,
            "log_prob": -np.exp(0.5 * (taste + rng.normal(size=len(year)))),
            "log_mass": -rng.random(len(year)),
            "rank": rng.integers(1, 15, len(year), dtype=np.int32),
            "first": year == 0,
            "moved": rng.random(len(year)) < 1 / (1 + np.exp(-taste)),
            "log_prob_stay": -np.logaddexp(0, np.round(taste + rng.normal(size=len(year)), 1)),
            "weight": rng.uniform(0.5, 2, persons)[person],
        }
    )
    inside, later, weighted = (
        pl.col("in_choice_set"),
        ~pl.col("first"),
        pl.Series(rng.random(len(year)) < 0.9),
    )
    table = table.with_columns(
        pl.when(inside).then(pl.col("log_prob", "rank")),
        pl.when(later).then(pl.col("moved", "log_prob_stay")),
        pl.when(weighted).then(pl.col("weight")),
    )
    return Predictions(table.with_columns(RAW), ("cook", "nurse"))


def edited(predictions: Predictions, **columns: pl.Expr) -> Predictions:
    table = predictions.table.with_columns(**columns).with_columns(RAW)
    return Predictions(table, predictions.choice_set)


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
    expected = {
        "log_score": mean,
        "perplexity": math.exp(-mean),
        "perplexity_raw": math.exp(-raw),
        "perplexity_weighted": math.exp(-sum(line["weight"] * line["log_prob"] for line in weighted) / total),
    } | {
        f"top{k}": sum(line["rank"] is not None and line["rank"] <= k for line in lines) / len(lines)
        for k in (1, 5, 10)
    }
    for metric, value in expected.items():
        estimate = evaluation.estimate(metric, subset)
        assert estimate.value == pytest.approx(value)
        chosen = lines if metric.startswith("top") else weighted if metric.endswith("weighted") else scored
        assert estimate.records == len(chosen)
        assert estimate.persons == len({line["person_id"] for line in chosen})


def test_events_agree_with_sklearn(predictions, evaluation):
    transitions = predictions.table.filter(~pl.col("first"))
    moved, probability = transitions["moved"].to_numpy(), 1 - np.exp(transitions["log_prob_stay"].to_numpy())
    assert evaluation.estimate("move_auc", "transitions").value == pytest.approx(roc_auc_score(moved, probability))
    brier = evaluation.estimate("move_brier", "transitions")
    assert brier.value == pytest.approx(brier_score_loss(moved, probability))
    assert brier.records == transitions.height


def test_log_score_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    shares_NJ = rng.dirichlet(np.ones(4), size=50)
    realised_N = rng.integers(4, size=50)
    table = pl.DataFrame({"person_id": np.arange(50) // 5, "score": np.log(shares_NJ[np.arange(50), realised_N])})
    expected = -log_loss(realised_N, shares_NJ, labels=np.arange(4))
    assert clustered_mean(table, pl.col("score")).value == pytest.approx(expected)


@pytest.mark.parametrize("weight", [None, "weight"])
def test_standard_errors_are_those_of_clustered_least_squares(predictions, weight):
    records = predictions.table.drop_nulls(["log_prob", "weight"])
    persons = records["person_id"].to_numpy().astype(int)
    weights_N = records[weight].to_numpy() if weight else np.ones(len(records))
    fit = sm.WLS(records["log_prob"].to_numpy(), np.ones(len(records)), weights=weights_N).fit(
        cov_type="cluster", cov_kwds={"groups": persons}
    )
    estimate = clustered_mean(records, pl.col("log_prob"), pl.col(weight) if weight else None)
    assert estimate[:2] == pytest.approx((fit.params[0], fit.bse[0]))


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
            ]
        )
    evaluation = evaluate(predictions)
    names = ["perplexity", "perplexity_weighted", "top5"]
    ses = [evaluation.estimate(name).se for name in names]
    ses += [evaluation.estimate(name, "transitions").se for name in ("move_auc", "move_brier")]
    np.testing.assert_allclose(ses, np.std(draws, axis=0), rtol=0.15)


def naive_auc(events_N, scores_N):
    """The AUC and DeLong's standard error by comparing every event with every other record."""
    kernel = (scores_N[events_N][:, None] > scores_N[~events_N]) + 0.5 * (
        scores_N[events_N][:, None] == scores_N[~events_N]
    )
    m, n = kernel.shape
    return kernel.mean(), math.sqrt(kernel.mean(1).var(ddof=1) / m + kernel.mean(0).var(ddof=1) / n)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=4, max_size=40))
def test_auc_of_one_record_per_person_is_delongs_ties_included(records):
    events_N, scores_N = np.array([r[0] for r in records]), np.array([float(r[1]) for r in records])
    if min(events_N.sum(), (~events_N).sum()) < 2:
        return
    estimate = clustered_auc(np.arange(len(records)), events_N, scores_N)
    assert estimate[:2] == pytest.approx(naive_auc(events_N, scores_N), abs=1e-7)
    assert estimate.value == pytest.approx(roc_auc_score(events_N, scores_N))


def test_auc_of_doubled_records_has_the_standard_error_of_the_single_ones():
    rng = np.random.default_rng(0)
    events_N, scores_N = rng.random(300) < 0.4, rng.normal(size=300)
    single = clustered_auc(np.arange(300), events_N, scores_N)
    double = clustered_auc(np.repeat(np.arange(300), 2), np.repeat(events_N, 2), np.repeat(scores_N, 2))
    assert double[:2] == pytest.approx(single[:2])


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
        {"weight": pl.lit(None, pl.Float64)},
    ],
    ids=[
        "no-transitions",
        "all-move",
        "none-moves",
        "one-person",
        "impossible",
        "no-mass",
        "all-outside",
        "unweighted",
    ],
)
def test_the_undefined_is_null_without_a_warning(predictions, columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate(edited(predictions, **columns))
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert "null" in text
    assert all(math.isfinite(value) for value in evaluation.scalars().values())
    assert not evaluation.table["value"].is_nan().any()
    assert not evaluation.table["se"].is_nan().any()


def test_no_records():
    evaluation = evaluate(Predictions(simulated(5).table.clear(), ("cook",)))
    assert evaluation.records == 0
    assert evaluation.table["value"].is_null().all()


def test_zero_weights_weigh_nothing(predictions):
    zeros = edited(predictions, weight=pl.col("weight").fill_null(0.0))
    assert evaluate(zeros).estimate("perplexity_weighted") == evaluate(predictions).estimate("perplexity_weighted")


def test_names_of_scalars_and_of_json(evaluation):
    scalars, result = evaluation.scalars("valid"), evaluation.to_dict()
    perplexity = evaluation.estimate("perplexity")
    assert scalars["valid/perplexity"] == perplexity.value
    assert scalars["valid/perplexity_se"] == perplexity.se
    assert scalars["valid/movers/top5"] == result["metrics"]["movers"]["top5"]["value"]
    assert result["metrics"]["all"]["perplexity"] == perplexity._asdict()
    assert result["outside_choice_set"] == evaluation.outside_choice_set
    assert set(result["metrics"]["transitions"]) == {*METRICS, "move_auc", "move_brier"}
    assert set(result["metrics"]["all"]) == set(METRICS)


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
