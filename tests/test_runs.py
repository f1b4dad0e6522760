"""How runs are told apart, and which of them are seeds of one model."""

from pathlib import Path

import pytest
from made_up_runs import QUICK, predictions, write_run

from labor_llm.compare import compare
from labor_llm.comparison.runs import differing_settings
from labor_llm.evaluate import evaluate
from labor_llm.predictions import Predictions


def test_runs_that_share_a_name_show_what_differs(tmp_path):
    for seed in (1, 2):
        tracker = {"mode": f"mode-{seed}"}
        write_run(
            tmp_path / f"{seed}", "nano", predictions(seed), seed=seed, tracker=tracker, model={"seed": seed}
        )
    assert compare([tmp_path]).table["run"].to_list() == ["nano (seed=2)", "nano (seed=1)"]


def test_a_setting_that_a_run_has_not_set_is_no_part_of_its_name(tmp_path):
    write_run(tmp_path / "1", "markov", predictions(3))
    write_run(tmp_path / "2", "markov", predictions(2.5), known_until=1982)
    comparison = compare([tmp_path], "markov", QUICK)
    assert set(comparison.table["run"]) == {"markov", "markov (known_until=1982)"}
    assert comparison.references == comparison.model_references == {"panel": "markov"}


def test_numbers_of_training_persons_make_other_models(tmp_path):
    for persons in (500, 1000, None):
        write_run(tmp_path / f"{persons}", "markov", predictions(2), train_persons=persons)
    models = compare([tmp_path], statistics=QUICK).models
    assert set(models["model"]) == {"markov", "markov (train_persons=500)", "markov (train_persons=1000)"}


def test_samples_of_test_persons_are_compared_apart(tmp_path):
    for persons, test_persons in ((60, None), (40, 40), (20, 20)):
        for name in ("markov", "nano"):
            predicted = predictions(2, persons=persons)
            write_run(tmp_path / f"{name}-{persons}", name, predicted, test_persons=test_persons)
    comparison = compare([tmp_path], statistics=QUICK)
    persons = comparison.table.select("dataset", "persons").unique().sort("persons").rows()
    assert persons == [("panel (20 test persons)", 20), ("panel (40 test persons)", 40), ("panel", 60)]
    assert set(comparison.models["model"]) == {"markov", "nano"}
    assert comparison.models["difference"].count() == 3


def test_a_model_that_is_scored_again_was_fitted_on_as_many_persons(tmp_path):
    fitted = write_run(tmp_path / "nano" / "1", "nano", predictions(2), train_persons=500, test_persons=40)
    on = {"dataset": {"name": "panel"}, "known_until": None, "train_persons": 500, "valid_persons": None}
    again = {"train_persons": 500, "fitted": str(fitted), "fitted_on": on}
    write_run(tmp_path / "nano" / "2", "nano", predictions(2), **again)
    write_run(tmp_path / "nano" / "3", "nano", predictions(2), train_persons=500)
    write_run(tmp_path / "nano" / "4", "nano", predictions(2), train_persons=1000)
    models = compare([tmp_path], statistics=QUICK).models
    assert set(models["model"]) == {"nano", "nano (train_persons=500)", "nano (train_persons=1000)"}


def test_runs_that_differ_in_nothing_show_their_folders(tmp_path):
    folders = [write_run(tmp_path / f"{number}", "nano", predictions(1.0)) for number in (1, 2)]
    assert set(compare([tmp_path]).table["run"]) == {f"nano in {folder}" for folder in folders}


def test_settings_that_follow_from_a_name_are_left_out():
    def lora(rank):
        return {"name": "lora", "_target_": "Lora", "alpha": 32, "rank": rank}

    adapters = [lora(8), lora(16), {"name": "none", "_target_": "Full"}]
    configs = [{"adapter": adapter, "model": {"adapter": adapter}} for adapter in adapters]
    assert differing_settings(configs) == {
        "adapter": ["lora", "lora", "none"],
        "adapter.rank": ["8", "16", "null"],
    }


def test_where_the_raw_file_lies_does_not_tell_runs_apart():
    configs = [
        {"dataset": {"name": "mine", "raw": raw}, "seed": seed} for raw, seed in (("a.csv", 0), ("b.csv", 1))
    ]
    assert differing_settings(configs) == {"seed": ["0", "1"]}


def test_a_seed_that_was_run_twice_counts_once(tmp_path):
    for time in ("20260101", "20260102"):
        write_run(tmp_path / time, "nano", predictions(2, seed=int(time)))
    models = compare([tmp_path], statistics=QUICK).models
    assert models["seeds"].to_list() == [1]
    newest = evaluate(predictions(2, seed=20260102)).estimate("log_score").value
    assert models["log_score"][0] == pytest.approx(newest)


def test_a_model_that_is_scored_again_is_the_same_model(tmp_path):
    fitted = write_run(tmp_path / "panel" / "nano" / "20260101", "nano", predictions(2))
    write_run(tmp_path / "panel" / "nano" / "20260102", "nano", predictions(1), fitted=str(fitted))
    models = compare([tmp_path], statistics=QUICK).models
    assert models.select("model", "seeds").rows() == [("nano", 1)]
    assert models["log_score"][0] == pytest.approx(evaluate(predictions(1)).estimate("log_score").value)


def test_how_it_is_scored_again_makes_no_other_model(tmp_path):
    trained = {"trainer": {"accelerator": "auto", "devices": 1}}
    fitted = write_run(tmp_path / "nano" / "1", "nano", predictions(2), model=trained, keep_distribution=True)
    again = {"trainer": {"accelerator": "cpu", "devices": 2}}
    write_run(tmp_path / "nano" / "2", "nano", predictions(2), model=again, fitted=str(fitted))
    assert compare([tmp_path], statistics=QUICK).models.select("model", "seeds").rows() == [("nano", 1)]


def test_where_files_lie_is_in_no_name(tmp_path):
    for number in (1, 2):
        own = {"name": "panel", "raw": f"/home/me/{number}.csv", "taxonomy": f"/home/me/{number}-own.csv"}
        write_run(
            tmp_path / f"{number}", "nano", predictions(number), dataset=own, fitted=f"/home/me/gone/{number}"
        )
        on = {"dataset": own | {"name": "other"}, "known_until": None}
        write_run(tmp_path / f"{number}0", "nano", predictions(number), fitted="/home/me/gone", fitted_on=on)
    comparison = compare([tmp_path], statistics=QUICK)
    names = [*comparison.models["model"], *(name for name in comparison.table["run"])]
    assert len(set(comparison.models["model"])) == 4
    assert not [name for name in names if "/home" in name]


def test_seeds_stay_together_when_what_was_scored_is_gone(tmp_path):
    for data_seed in (5, 6):
        on = {"dataset": {"name": "a", "seed": data_seed}, "known_until": None}
        for seed in (0, 1):
            folder, gone = tmp_path / f"{data_seed}{seed}", f"gone/{seed}"
            write_run(folder, "nano", predictions(2, seed=seed), seed=seed, fitted=gone, fitted_on=on)
    models = compare([tmp_path], statistics=QUICK).models
    assert sorted(models.select("model", "seeds").rows()) == [
        ("nano (fitted.dataset.seed=5)", 2),
        ("nano (fitted.dataset.seed=6)", 2),
    ]


def test_a_model_that_was_fitted_on_other_data_names_them(tmp_path):
    fitted = write_run(
        tmp_path / "a" / "1", "nano", predictions(2), dataset={"name": "a", "raw": "/home/me/a.csv"}
    )
    write_run(tmp_path / "b" / "2", "nano", predictions(1), dataset={"name": "b"}, fitted=str(fitted))
    write_run(tmp_path / "b" / "3", "nano", predictions(1), dataset={"name": "b"})
    models = compare([tmp_path / "b"], statistics=QUICK).models
    assert set(models["model"]) == {"nano (fitted.dataset=a)", "nano (fitted.dataset=b)"}


def write_embedding(folder: Path, language: Path, seed: int) -> Path:
    """A run that rests on the run in another folder, of another seed; its own is always 0."""
    model = {"fitted": str(language), "language": {"seed": seed}}
    return write_run(folder, "embedding", predictions(2, seed=seed), model=model)


def test_seeds_of_what_a_model_rests_on_are_taken_together(tmp_path):
    for folder, seed in (("1", 1), ("2", 2), ("2 again", 2)):
        language = write_run(tmp_path / "nano" / folder, "nano", predictions(1), seed=seed)
        write_embedding(tmp_path / "embedding" / folder, language, seed)
    models = compare([tmp_path / "embedding"], statistics=QUICK).models
    assert models.select("model", "seeds").rows() == [("embedding", 2)]


def test_models_that_rest_on_other_data_are_told_apart(tmp_path):
    for number, until in ((1, None), (2, 1982)):
        dataset = {"name": "panel", "raw": f"{number}.csv"}
        language = write_run(
            tmp_path / f"{number}", "nano", predictions(1), seed=number, dataset=dataset, known_until=until
        )
        write_embedding(tmp_path / "embedding" / f"{number}", language, number)
    models = compare([tmp_path / "embedding"], statistics=QUICK).models
    assert set(models["model"]) == {"embedding", "embedding (model.fitted.known_until=1982)"}


def test_seeds_of_the_data_that_a_model_rests_on_make_other_models(tmp_path):
    for seed in (1, 2):
        language = write_run(tmp_path / f"{seed}", "nano", predictions(1), dataset={"name": "drawn", "seed": seed})
        write_embedding(tmp_path / "embedding" / f"{seed}", language, 0)
    models = compare([tmp_path / "embedding"], statistics=QUICK).models
    assert set(models["model"]) == {f"embedding (model.fitted.dataset.seed={seed})" for seed in (1, 2)}


def test_what_a_model_rests_on_and_is_gone_is_told_by_its_folder(tmp_path):
    for seed in (1, 2):
        write_embedding(tmp_path / f"{seed}", Path(f"gone/{seed}"), seed)
    models = compare([tmp_path], statistics=QUICK).models
    assert set(models["model"]) == {f"embedding (model.fitted={seed})" for seed in (1, 2)}


def test_a_cross_section_has_no_events(tmp_path):
    first = predictions(2).table.filter("first")
    write_run(tmp_path / "1", "markov", Predictions(first, ("cook", "nurse")))
    comparison = compare([tmp_path], statistics=QUICK)
    assert comparison.events.is_empty()
    assert list(comparison.notes) == ["panel: there are no events, for nobody has a second record."]
