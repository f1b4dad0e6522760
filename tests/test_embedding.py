"""States against the model's own, the logit against its equations, and models that were fitted before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHOICES, TEST, TRAIN, VALID, language, panel
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from scipy.special import softmax

from labor_llm.build import build
from labor_llm.configs import check_overrides, conf_folder
from labor_llm.errors import ConfigError, DataError, RunError
from labor_llm.evaluate import evaluate
from labor_llm.language.adapters import Frozen
from labor_llm.language.backbones import HubBackbone
from labor_llm.models.base import Workspace
from labor_llm.models.embedding import Embedding, Features, _minimised
from labor_llm.models.empirical import Empirical
from labor_llm.models.language import LanguageModel
from labor_llm.predictions import Predictions
from labor_llm.run import with_fitted_language
from labor_llm.templates import ResumeTemplate, Titles

FEW = TEST.select_persons(["p50", "p53"])


def off_the_shelf(folder: Path) -> LanguageModel:
    return replace(language(), adapter=Frozen(), backbone=HubBackbone(name="shelf", path=str(folder)))


def embedding(folder: Path, **settings) -> Embedding:
    return Embedding(name="embedding", language=off_the_shelf(folder), **settings)


def own_states(model: LanguageModel, careers) -> np.ndarray:
    """The last of the hidden states that transformers reports, a forward pass per record."""
    tokenizer, rows = model._encoder.tokenizer, []
    for person in careers.table["person_id"].unique(maintain_order=True):
        career = careers.select_persons([person])
        text = ResumeTemplate().render(career, Titles()).text
        lines = text.splitlines(keepends=True)[-len(career) :]
        for record, line in enumerate(lines):
            prompt = text[: len(text) - sum(map(len, lines[record:]))] + line[: line.index(":") + 1]
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            with torch.no_grad():
                rows.append(model._module.model(ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("lora", [False, True])
def test_states_are_those_of_the_last_layer_at_the_end_of_the_prompt(model_folder, lora):
    model = off_the_shelf(model_folder).fit(TRAIN, VALID, CHOICES)
    if lora:
        config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        model._module.model = get_peft_model(model._module.model, config)
    states = model.states(FEW, Workspace())
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, own_states(model, FEW), atol=1e-4)


def test_a_career_is_read_once(gpt2_folder, monkeypatch):
    model = off_the_shelf(gpt2_folder).fit(TRAIN, VALID, CHOICES)
    monkeypatch.setattr("labor_llm.language.states.check_packing", lambda *args: None)
    read, layers = [], model._module.model.base_model
    layers.register_forward_pre_hook(lambda module, args, kwargs: read.append(args[0].numel()), with_kwargs=True)
    model.states(TEST, Workspace())
    assert sum(read) == model._encoder.encode(TEST).career_starts[-1]


def test_the_minimum_solves_the_equations_of_a_penalised_logit():
    rng = np.random.default_rng(0)
    features, places = rng.normal(size=(80, 5)).astype(np.float32), rng.integers(0, 4, 80)
    shares = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    examples = torch.from_numpy(features), torch.from_numpy(places)
    found = _minimised(examples, torch.from_numpy(shares), penalty=0.05, start=torch.zeros(6, 4)).double().numpy()
    design = np.column_stack([features, np.ones(80)])
    residuals = softmax(design @ found + shares, axis=1) - np.eye(4)[places]
    np.testing.assert_allclose(design.T @ residuals / 80 + 0.05 * found, 0, atol=1e-4)
    assert np.abs(found).max() > 0.1


def test_all_components_give_what_the_states_give(gpt2_folder):
    """The penalty does not care how the states are turned."""
    plain, turned = (embedding(gpt2_folder, pca=pca).fit(TRAIN, VALID, CHOICES) for pca in (None, 32))
    np.testing.assert_allclose(turned.log_probs(TEST), plain.log_probs(TEST), atol=5e-3)
    few = embedding(gpt2_folder, pca=2).fit(TRAIN, VALID, CHOICES)
    assert np.linalg.matrix_rank(few.weights_EJ_, tol=1e-5) == 2
    assert np.linalg.matrix_rank(plain.weights_EJ_, tol=1e-5) > 2


def test_features_are_standardised_and_what_is_constant_is_left_out():
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(50, 3)) * [1, 100, 0] + [0, 5, 7]).astype(np.float32)
    features = Features.of(states, None)
    np.testing.assert_allclose(features(states).std(0), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(features(states).mean(0), 0, atol=1e-5)
    assert Features.of(states, 2)(states).shape == (50, 2)


def test_it_is_saved_without_the_backbone(gpt2_folder, tmp_path):
    model = embedding(gpt2_folder).fit(TRAIN, VALID, CHOICES)
    model.save(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["embedding.safetensors"]
    loaded = embedding(gpt2_folder).load(tmp_path)
    np.testing.assert_allclose(loaded.log_probs(TEST), model.log_probs(TEST), atol=1e-6)


def test_too_many_components_are_refused(gpt2_folder):
    with pytest.raises(ConfigError, match=r"model\.pca must be at most 32: .* got 33"):
        embedding(gpt2_folder, pca=33).fit(TRAIN, VALID, CHOICES)


def composed(*overrides: str):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("run", list(overrides))


def built(*overrides: str):
    return build(with_fitted_language(composed(*overrides)), ["model"])["model"]


@pytest.fixture(scope="module")
def fitted_run(tmp_path_factory) -> Path:
    """The parts of a complete run of a language model that matter here; its template is not the default one."""
    words = [
        "template=resume_no_birth_year",
        "backbone.layers=1",
        "backbone.width=32",
        "backbone.heads=2",
        "backbone.feed_forward=64",
        "trainer.max_epochs=10",
        "trainer.precision=32-true",
        "trainer.accelerator=cpu",
    ]
    folder = tmp_path_factory.mktemp("run")
    OmegaConf.save(composed(*words), folder / "config.yaml", resolve=False)
    config = OmegaConf.create(
        {"name": "tiny", "model": OmegaConf.to_container(composed(*words).model, resolve=True)}
    )
    OmegaConf.save(config, folder / "config.yaml")
    built(*words).fit(TRAIN, VALID, CHOICES).save(folder / "model")
    (folder / "complete").touch()
    return folder


def test_states_of_a_fitted_model_predict(fitted_run, tmp_path):
    model = built("model=embedding", f"model.fitted={fitted_run}").fit(TRAIN, VALID, CHOICES)
    assert model._reader.template.name == "resume_no_birth_year"
    perplexity, without = (
        evaluate(Predictions.of(TEST, CHOICES, of.predict(TEST))).estimate("perplexity", "transitions").value
        for of in (model, Empirical().fit(TRAIN, VALID, CHOICES))
    )
    assert perplexity < 0.9 * without
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "here").symlink_to(tmp_path / "far" / "away")
    model.save(tmp_path / "here" / "run")
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["embedding.safetensors"]
    loaded = built("model=embedding", f"model.fitted={fitted_run}").load(tmp_path / "here" / "run")
    np.testing.assert_allclose(loaded.log_probs(TEST), model.log_probs(TEST), atol=1e-6)


def test_persons_whom_the_language_model_saw_are_counted(fitted_run):
    model = built("model=embedding", f"model.fitted={fitted_run}").fit(VALID, TEST, CHOICES)
    assert model.persons_seen(TRAIN) == TRAIN.persons
    assert model.persons_seen(VALID) == VALID.persons
    assert model.persons_seen(TEST) == 0


def test_a_run_that_cannot_be_taken_is_refused(fitted_run, tmp_path):
    def fit(run: Path, train=TRAIN):
        return built("model=embedding", f"model.fitted={run}").fit(train, train, ("1", "2"))

    with pytest.raises(RunError, match=r"is not the folder of a run; there is no complete run below it"):
        fit(tmp_path)
    OmegaConf.save(
        {"name": "markov", "model": OmegaConf.to_container(composed("model=markov").model)},
        tmp_path / "config.yaml",
    )
    (tmp_path / "complete").touch()
    with pytest.raises(ConfigError, match=r"the run in .* is of 'markov', which has no language model"):
        fit(tmp_path)
    other = panel("census1970_major_groups", person_id=["x", "y"], year=[1980, 1980], occupation=["1", "2"])
    with pytest.raises(DataError, match="fitted on occupations of taxonomy 'occ1990dd'"):
        fit(fitted_run, other)


PARTS = [
    "backbone=gpt2",
    "template=resume",
    "label=token",
    "prompt=titles",
    "adapter=lora",
    "trainer.max_epochs=4",
]


def unread(*overrides: str) -> list[str]:
    """What the command line says is not read."""
    try:
        check_overrides("run", ["model=embedding", *overrides])
    except ConfigError as error:
        return [line.partition(": model=embedding does not read ")[2] for line in str(error).splitlines()]
    return []


def test_how_titles_are_scored_is_not_read():
    assert unread("scoring=pruned") == ["scoring; it has model.language.scoring"]
    assert unread("model.language.scoring.max_tokens=99") == []


def test_overrides_of_what_a_fitted_run_says_are_refused():
    own = ["model.pca=4", "seed=1", "experiment=nlsy97_leaderboard"]
    keys = [override.partition("=")[0] for override in PARTS]
    assert unread(*own, *PARTS) == []
    assert unread("model.fitted=RUN", *own, *PARTS) == [f"{key}; it has that of model.fitted" for key in keys]


def test_random_weights_are_refused():
    with pytest.raises(ConfigError, match="adapter=frozen: backbone 'nano' has random weights"):
        built("model=embedding", "adapter=frozen").fit(TRAIN, VALID, CHOICES)
