"""Models off the shelf and what they are told: prompts against the plain way, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHOICES, TEST, TRAIN, VALID, language, save_model

from labor_llm.errors import ConfigError
from labor_llm.language.adapters import Frozen
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.checks import plain_log_prob
from labor_llm.language.prompts import InContextPrompt, PlainPrompt, TitlesPrompt
from labor_llm.models.base import Workspace
from labor_llm.models.language import LanguageModel
from labor_llm.templates import Codes, ResumeTemplate, Titles, Tokens

PROMPTS = [PlainPrompt(), TitlesPrompt(), InContextPrompt(careers=2)]
FEW = TEST.select_persons(["p50", "p53"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 that reads 1024 tokens."""
    return save_model("gpt2", tmp_path_factory.mktemp("gpt2"), n_positions=1024)


def off_the_shelf(folder, prompt=None, **changes) -> LanguageModel:
    settings = {"adapter": Frozen(), "backbone": HubBackbone(name="shelf", path=str(folder))}
    return replace(language(), **settings | {"prompt": prompt or PlainPrompt()} | changes)


def told(model: LanguageModel) -> str:
    """The text that stands before every career."""
    return model._encoder.tokenizer.decode(model._encoder.prompt)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_probabilities_are_those_of_the_text_read_as_a_whole(model_folder, prompt):
    """Every record of a person, each in a forward pass of its own over prompt, career and title."""
    model = off_the_shelf(model_folder, prompt).fit(TRAIN, VALID, CHOICES)
    before, found = told(model), model.predict(FEW)
    tokenizer, backbone = model._encoder.tokenizer, model._module.model
    row = 0
    for person in FEW.table.partition_by("person_id", maintain_order=True):
        career = FEW.select_persons([person["person_id"][0]])
        text = before + ResumeTemplate().render(career, Titles()).text
        lines = text.splitlines(keepends=True)[-person.height :]
        for record, line in enumerate(lines):
            start = text[: len(text) - sum(map(len, lines[record:]))] + line[: line.index(":") + 1]
            ids = torch.tensor(tokenizer(start)["input_ids"])
            for place, code in enumerate(CHOICES):
                title = tokenizer(f" {TRAIN.taxonomy.title(code)}\n")["input_ids"]
                with torch.no_grad():
                    expected = plain_log_prob(backbone, ids, len(ids), title)
                raw = found.log_probs_NJ[row, place] + found.log_mass_N[row]
                assert raw == pytest.approx(float(expected), abs=1e-3)
            row += 1
    assert row == len(FEW)


def test_the_list_has_a_line_for_every_title_of_the_choice_set(folder):
    model = off_the_shelf(folder, TitlesPrompt()).fit(TRAIN, VALID, CHOICES)
    first, *lines = told(model).splitlines()
    assert first == "The job titles are, one per line:"
    assert lines == [f"- {TRAIN.taxonomy.title(code)}" for code in CHOICES]
    coded = off_the_shelf(folder, TitlesPrompt(), label=Codes()).fit(TRAIN, VALID, CHOICES)
    assert all(line.startswith("- job_") for line in told(coded).splitlines()[1:])


def test_in_context_careers_are_whole_ones_of_training_persons(folder):
    texts = set(ResumeTemplate().texts(TRAIN, Titles()))
    model = off_the_shelf(folder, InContextPrompt(careers=3)).fit(TRAIN, VALID, CHOICES)
    shown = [f"{career}<END OF DATA>\n" for career in told(model).split("<END OF DATA>\n")[:-1]]
    assert len(shown) == 3
    assert set(shown) <= texts


def test_the_seed_draws_the_careers_and_more_of_them_begin_alike(folder):
    def drawn(**settings):
        return told(off_the_shelf(folder, InContextPrompt(**settings)).fit(TRAIN, VALID, CHOICES))

    assert drawn(careers=2) == drawn(careers=2)
    assert drawn(careers=2) != drawn(careers=2, seed=1)
    assert drawn(careers=3).startswith(drawn(careers=2))


def test_what_a_model_is_told_changes_what_it_says_and_is_saved(folder, tmp_path):
    found = []
    for prompt in PROMPTS:
        model = off_the_shelf(folder, prompt).fit(TRAIN, VALID, CHOICES)
        model.save(tmp_path / prompt.name)
        assert not list((tmp_path / prompt.name).glob("*.safetensors"))  # the weights are the backbone's
        loaded = off_the_shelf(folder, prompt).load(tmp_path / prompt.name)
        found.append(model.log_probs(TEST))
        np.testing.assert_allclose(loaded.log_probs(TEST), found[-1], atol=1e-6)
    for other in found[1:]:
        assert np.abs(other - found[0]).max() > 1e-2


def test_tokens_on_disk_are_kept_apart_by_prompt(folder, tmp_path):
    workspace = Workspace(tokens=tmp_path)
    for prompt in PROMPTS:
        model = off_the_shelf(folder, prompt).fit(TRAIN, VALID, CHOICES)
        np.testing.assert_allclose(model.predict(TEST, workspace).log_probs_NJ, model.log_probs(TEST), atol=1e-6)
    assert len(list(tmp_path.iterdir())) == len(PROMPTS)


def test_nothing_is_trained_and_a_fitted_model_off_the_shelf_is_itself(tmp_path):
    fitted = language(max_epochs=1).fit(TRAIN, VALID, CHOICES)
    fitted.save(tmp_path)
    model = off_the_shelf(tmp_path).fit(TRAIN, VALID, CHOICES)
    assert not any(weight.requires_grad for weight in model._module.model.parameters())
    np.testing.assert_allclose(model.log_probs(TEST), fitted.log_probs(TEST), atol=1e-5)


def test_a_prompt_that_leaves_no_room_is_refused_with_its_numbers(folder):
    many = off_the_shelf(folder, InContextPrompt(careers=12))
    with pytest.raises(
        ConfigError,
        match=r"prompt=in_context has \d{4} tokens and a header with one record up to \d+ more, but backbone "
        r"'shelf' reads 1024\. Lower prompt\.careers \(now 12\), or a backbone with a longer context",
    ):
        many.fit(TRAIN, VALID, CHOICES)


def test_records_that_a_prompt_leaves_no_room_for_are_dropped_from_the_oldest(tmp_path):
    """With room for the prompt and few records, every record is predicted all the same."""
    short = save_model("gpt2", tmp_path, n_positions=230)
    model = off_the_shelf(short, TitlesPrompt()).fit(TRAIN, VALID, CHOICES)
    assert np.isfinite(model.log_probs(TEST)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": InContextPrompt(careers=41)}, r"prompt\.careers must be at most 40.*got 41"),
        ({"prompt": TitlesPrompt(), "adapter": language().adapter}, "prompt=titles is for models off the shelf"),
        ({"backbone": language().backbone}, "adapter=frozen: backbone 'tiny' has random weights"),
        ({"label": Tokens()}, "adapter=frozen: label=token adds a vocabulary entry per title"),
    ],
)
def test_what_cannot_be_is_refused(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        off_the_shelf(folder, **changes).fit(TRAIN, VALID, CHOICES)
