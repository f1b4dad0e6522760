"""Command lines are checked as a whole, a user's folder comes first, components are built or all refused."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labor_llm import configs
from labor_llm.build import build
from labor_llm.configs import check_overrides, check_values, conf_folder, quoted, user_folder
from labor_llm.errors import ConfigError, DataError

ENTRIES = {
    "run.yaml": "seed: 0\n"
    "defaults: [{dataset: panel}, {model: text}, {backbone: nano}, {trainer: default}, _self_,"
    "{experiment: null}]",
    "model/text.yaml": "name: ${backbone.name}\nparts: [{read: '${backbone}'}]\ntrainer: ${trainer}",
    "model/codes.yaml": "trainer: {max_epochs: 7, learning_rate: '${trainer.learning_rate}'}\n"
    "backbone: own\nname: '${model.backbone}'",
    "model/states.yaml": "defaults: [/trainer@language.trainer: default, _self_]\n"
    "fitted: null\nlanguage: {backbone: '${backbone}'}",
    "dataset/panel.yaml": "name: panel",
    "dataset/table.yaml": "name: table\nraw: ???",
    "backbone/nano.yaml": "name: nano\nlayers: 2",
    "backbone/micro.yaml": "name: micro\nlayers: 4",
    "trainer/default.yaml": "max_epochs: 3\nlearning_rate: 0.1",
    "experiment/big.yaml": "# @package _global_\ndefaults: [{override /dataset: table}]\nseed: 5",
    "experiment/sweep.yaml": "# @package _global_\nhydra: {mode: MULTIRUN}",
}


def write(folder: Path, entries: dict[str, str]) -> Path:
    for name, text in entries.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


@pytest.fixture(autouse=True)
def conf(tmp_path, monkeypatch):
    folder = write(tmp_path / "conf", ENTRIES)
    monkeypatch.setattr(configs, "conf_folder", lambda: folder)
    return folder


def composed(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("run", list(overrides))


def mistakes(*overrides: str, sweep: bool = False) -> list[str]:
    try:
        check_overrides("run", overrides, sweep)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_the_shipped_configurations_are_found():
    assert conf_folder().is_absolute()
    assert (conf_folder() / "command_line.yaml").is_file()


def test_overrides_that_the_model_does_not_read_are_mistakes_outside_a_sweep():
    assert mistakes("model=codes", "trainer.max_epochs=4", "backbone=micro", "seed=1") == [
        "trainer.max_epochs=4: model=codes does not read trainer.max_epochs; it has model.trainer.max_epochs",
        "backbone=micro: model=codes does not read backbone; it has model.backbone",
    ]
    assert (
        mistakes("model=codes", "trainer.learning_rate=1", "trainer=default", "model.trainer.max_epochs=4") == []
    )
    assert mistakes("model=codes,text", "trainer.max_epochs=4", sweep=True) == []
    assert mistakes("model=codes", "experiment=sweep", "trainer.max_epochs=4") == []


def test_parts_that_a_language_model_within_a_model_has_of_its_own_are_not_read():
    own = ["trainer@model.language.trainer=default", "model.language.trainer.max_epochs=4"]
    assert mistakes("model=states", "backbone=micro", "trainer.max_epochs=4", *own) == [
        "trainer.max_epochs=4: model=states does not read trainer.max_epochs; "
        "it has model.language.trainer.max_epochs"
    ]


def test_what_a_fitted_run_replaces_is_not_read_outside_a_sweep():
    overrides = {
        "backbone.layers=3": "backbone.layers",
        "model.language.trainer.max_epochs=4": "model.language.trainer.max_epochs",
        "trainer@model.language.trainer=default": "model.language.trainer",
    }
    fitted = ["model=states", "model.fitted=RUN", "seed=1"]
    assert mistakes("model=states", "model.fitted=null", *overrides) == []
    assert mistakes(*fitted, *overrides) == [
        f"{override}: model=states does not read {key}; it has that of model.fitted"
        for override, key in overrides.items()
    ]
    assert mistakes(*fitted) == mistakes(*fitted, *overrides, sweep=True) == []


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=1", "trainer.max_epochs=4", "backbone=micro"],
        ["dataset.raw=x", "dataset=table"],
        ["experiment=big", "dataset.raw=x"],
        ["+trainer.new=1", "trainer.new=2"],
        ["++trainer.new=1", "~trainer.learning_rate"],
        ["~backbone"],
        ["+backbone@trainer.backbone=nano", "trainer.backbone.layers=3"],
        ["hydra.job.chdir=false", "hydra/job_logging=none"],
    ],
)
def test_what_hydra_takes_is_taken(overrides):
    assert mistakes(*overrides) == []


def test_every_mistake_is_reported_at_once():
    found = mistakes("backbone=nanoo", "trainer.max_epoch=3", "datset=table", "words", "seed=1", "x=[")
    assert found[0] == "cannot read 'words': expected key=value"
    assert found[1].startswith("cannot read 'x=[': ")
    assert found[2] == "unknown backbone 'nanoo'. Did you mean 'nano'? Known: micro, nano."
    assert found[3].startswith("unknown key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?")
    assert found[4].startswith("unknown key 'datset'. Did you mean 'dataset'")
    assert len(found) == 5


def test_a_key_without_its_section_is_found_by_its_last_part():
    assert "trainer.learning_rate" in mistakes("learning_rate=1")[0]


def test_a_key_may_exist_with_one_entry_of_a_group_only():
    assert mistakes("dataset=table", "dataset.raw=x") == []
    assert "unknown key 'dataset.raw'" in mistakes("dataset.raw=x")[0]
    swept = mistakes("dataset=table,panel", "dataset.raw=x", sweep=True)
    assert len(swept) == 1
    assert "unknown key 'dataset.raw'" in swept[0]


def test_each_entry_of_a_sweep_is_checked():
    assert mistakes("backbone=nano,micro", "seed=1,2,3", "trainer.max_epochs=range(1,4)", sweep=True) == []
    found = mistakes("backbone=nano,micor,nan0", "seeed=1,2", sweep=True)
    assert [line.split(".")[0] for line in found] == [
        "unknown backbone 'micor'",
        "unknown backbone 'nan0'",
        "unknown key 'seeed'",
    ]


def test_a_sweep_needs_its_flag_or_a_configuration_that_is_a_sweep():
    assert mistakes("seed=1,2") == ["seed=1,2: add -m to run one job per value (a list is written [a,b])"]
    assert mistakes("seed=1,2", "experiment=sweep") == []


def test_nested_groups_and_package_overrides_are_judged_too():
    assert mistakes("hydra/launcher=submitit")[0].startswith("unknown hydra/launcher 'submitit'. Known: basic")
    assert mistakes("+backbone@trainer.backbone=nanoo")[0].startswith("unknown backbone 'nanoo'")
    assert mistakes("~trainer.nothing") == [
        "~trainer.nothing: Could not delete from config. 'trainer.nothing' does not exist."
    ]
    assert mistakes("hydra.job.chdirr=true")[0].startswith("unknown key 'hydra.job.chdirr'. Did you mean")


def test_a_broken_file_is_one_clear_message_and_no_override_is_blamed(conf):
    write(conf, {"trainer/default.yaml": "max_epochs: [3"})
    found = mistakes("backbone=micro", "seed=1")
    assert len(found) == 1
    assert "trainer/default.yaml" in found[0]


def test_checking_leaves_hydra_uninitialised():
    mistakes("backbone=nanoo")
    assert not GlobalHydra.instance().is_initialized()


def test_a_users_folder_adds_and_replaces(conf, tmp_path):
    own = write(tmp_path / "my own", {"backbone/nano.yaml": "layers: 9", "backbone/mine.yaml": "layers: 7"})
    with user_folder(str(own)):
        assert composed(conf, "backbone=nano").backbone.layers == 9
        assert composed(conf, "backbone=mine").backbone.layers == 7
        assert composed(conf, "backbone=micro").backbone.layers == 4
        assert mistakes("backbone=mine") == []
    assert composed(conf).backbone.layers == 2
    assert mistakes("backbone=mine") != []


def test_a_users_folder_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"), user_folder(str(tmp_path / "nowhere")):
        pass


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1))
@example("a b/c,d=e'\"")
@example("${oc.env:HOME}\\${x}\\\\")
@example("[x]{y}(z):\\")
def test_any_text_survives_hydras_grammar_and_omegaconf(text):
    assume(text != "???")
    value = OverridesParser.create().parse_override(f"runs=[{quoted(text)}]").value()
    assert list(OmegaConf.create({"runs": value}).runs) == [text]


def test_missing_values_and_broken_references_are_reported_together():
    cfg = OmegaConf.create(
        {"a": {"raw": "???", "list": ["${nope}"]}, "b": "${a.raw}", "c": "${a}", "d": None, "e": "${e}"}
    )
    with pytest.raises(ConfigError) as error:
        check_values(cfg)
    lines = str(error.value).splitlines()
    assert lines[0] == "a.raw has no value: add a.raw=..."
    assert lines[1] == "a.list.0: Interpolation key 'nope' not found"
    assert [line.split(":")[0] for line in lines[2:]] == ["e"]


component = dataclass(config=ConfigDict(extra="forbid"), frozen=True, kw_only=True)


@component
class Backbone:
    layers: int = 2
    sizes: list[int] | None = None


@component
class Adapter:
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


@component
class Model:
    backbone: Backbone
    adapter: Adapter | None = None
    epochs: int = 3
    learning_rate: float = 0.1
    extra: Any = None


def unreadable() -> None:
    raise DataError("panel.csv has no column 'year'")


def ours() -> None:
    raise AttributeError("a mistake of ours")


def parts(**changes: Any) -> DictConfig:
    here = f"{__name__}."
    cfg = OmegaConf.create(
        {
            "rate": 0.1,
            "backbone": {"_target_": here + "Backbone", "layers": 3, "sizes": [1, 2]},
            "adapter": {"_target_": here + "Adapter", "rank": 2},
            "model": {
                "_target_": here + "Model",
                "backbone": "${backbone}",
                "adapter": "${adapter}",
                "learning_rate": "${rate}",
                "extra": {"plain": [1, {"deep": True}]},
            },
            "tracker": None,
            "callbacks": [{"_target_": here + "Adapter", "rank": 1}],
        }
    )
    OmegaConf.set_struct(cfg, True)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def refused(*sections: str, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        build(parts(**changes), sections)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone__layers": True}, "backbone.layers: must be a number, got true"),
        ({"backbone__sizes": [1, False]}, "backbone.sizes: must be a number, got false"),
        ({"rate": True}, "rate: must be a number, got true"),
    ],
)
def test_true_is_not_one(changes, said):
    assert refused("model", **changes) == [said]
    assert build(parts(model__extra=True), ["model"])["model"].extra is True


def test_build_gives_objects_and_plain_containers():
    built = build(parts(), ["model", "tracker", "callbacks"])
    assert built["model"].backbone == Backbone(layers=3, sizes=[1, 2])
    assert built["model"].extra == {"plain": [1, {"deep": True}]}
    assert type(built["model"].backbone.sizes) is list
    assert type(built["model"].extra["plain"]) is list
    assert built["tracker"] is None
    assert built["callbacks"] == [Adapter(rank=1)]


def test_build_reports_every_mistake_under_the_key_that_mends_it():
    assert refused(
        "model",
        "backbone",
        "callbacks",
        backbone__layers="abc",
        backbone__sizes=[1, "x"],
        adapter__rank=0,
        rate="fast",
        model__epochs="many",
        model__epoch=3,
        callbacks=[{"_target_": f"{__name__}.Adapter", "rank": 0}],
    ) == [
        "backbone.layers: input should be a valid integer, unable to parse string as an integer, got 'abc'",
        "backbone.sizes.1: input should be a valid integer, unable to parse string as an integer, got 'x'",
        "adapter: rank must be at least 1, got 0",
        "model.epochs: input should be a valid integer, unable to parse string as an integer, got 'many'",
        "rate: input should be a valid number, unable to parse string as a number, got 'fast'",
        "unknown key 'model.epoch'. Did you mean 'model.epochs' or 'model.extra'? "
        "Known: model.adapter, model.backbone, model.epochs, model.extra, model.learning_rate.",
        "callbacks.0: rank must be at least 1, got 0",
    ]


def test_build_reports_what_is_missing_or_cannot_be_imported():
    assert refused("backbone", backbone__layers="???") == ["backbone.layers has no value: add backbone.layers=..."]
    assert refused("tracker", tracker={"_target_": f"{__name__}.Adapter"}) == ["tracker.rank: field required"]
    assert refused("model", adapter__rank="${nope}") == ["adapter.rank: Interpolation key 'nope' not found"]
    assert "No module named 'nowhere'" in refused("tracker", tracker={"_target_": "nowhere.Tracker"})[0]
    assert refused("tracker", tracker={"_target_": f"{__name__}.unreadable"}) == [
        "tracker: panel.csv has no column 'year'"
    ]


def test_build_lets_a_mistake_of_ours_through():
    with pytest.raises(AttributeError, match="a mistake of ours"):
        build(parts(tracker={"_target_": f"{__name__}.ours"}), ["tracker"])
