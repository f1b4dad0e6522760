"""What users type, what they see, and the exit code."""

import errno
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from labor_llm import __main__, configs, usage
from labor_llm.__main__ import main, with_paths
from labor_llm.errors import ConfigError, RunError

REPOSITORY = Path(__file__).parents[1]
ENTRIES = {
    "command_line.yaml": (REPOSITORY / "conf" / "command_line.yaml").read_text(),
    "run.yaml": "defaults: [command_line, {dataset: panel}, {backbone: nano}, _self_]\nseed: 0",
    "score.yaml": "# labor-llm score RUN: again.\n# With RUN.\ndefaults:\n  - command_line\n  - _self_\n\n"
    "run: ???  # the run\n# not for users\nmore:\n  seed: 0  # of it\n\nhydra:\n  sweep:\n    dir: here",
    "compare.yaml": "defaults: [command_line, _self_]\nruns: []",
    "dataset/panel.yaml": "_target_: types.SimpleNamespace\nname: panel",
    "dataset/table.yaml": "name: table\nraw: ???",
    "backbone/nano.yaml": "layers: 2",
    "experiment/both.yaml": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      backbone: nano,micro",
    "experiment/nothing.yaml": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      backbone: glob(x*)",
    "backbone/micro.yaml": "layers: 4",
}
calls: list[Any] = []


FAILURES = {
    7: RunError("seed 7 is unlucky"),
    8: KeyError("ours"),
    9: KeyboardInterrupt(),
    10: OSError(errno.ENOSPC, "No space left on device", "/full/disk"),
}


def fake_run(cfg: DictConfig) -> float:
    logging.getLogger("labor_llm").info("fitting with seed %s", cfg.seed)
    calls.append((cfg.backbone.layers, cfg.seed))
    calls.append(sys.argv[1:])
    if cfg.seed in FAILURES:
        raise FAILURES[cfg.seed]
    return 1.0


def fake_training(cfg: DictConfig) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)  # as Lightning does


def fake_compare(cfg: DictConfig) -> None:
    calls.append(list(cfg.runs))


def fake_score(cfg: DictConfig) -> None:
    calls.append(cfg.run)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working folder, a small conf, and verbs that note how they were called."""
    for name, text in ENTRIES.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for module in (configs, usage, __main__):
        monkeypatch.setattr(module, "conf_folder", lambda: tmp_path / "conf")
    for verb in ("run", "compare", "score"):
        monkeypatch.setitem(__main__.VERBS, verb, f"{__name__}:fake_{verb}")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    calls.clear()
    yield tmp_path
    root.handlers, root.level = handlers, level


@pytest.fixture
def type_in(monkeypatch, capsys):
    """Types a command line; gives the exit code, stdout and stderr."""

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["labor-llm", *words])
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert sys.argv == ["labor-llm", *words]
        assert not GlobalHydra.instance().is_initialized()
        out, err = capsys.readouterr()
        return code, out, err

    return typed


def test_a_run_is_called_with_its_configuration_and_leaves_no_files(type_in):
    code, out, err = type_in("run", "backbone=micro", "seed=3")
    assert code == 0
    assert calls == [(4, 3), ["run", "backbone=micro", "seed=3"]]
    assert (out, err) == ("", "fitting with seed 3\n")
    assert list(Path().iterdir()) == []


def test_several_mistakes_are_reported_at_once(type_in):
    code, out, err = type_in("run", "backbone=nanoo", "seeed=3", "table")
    assert code == 2
    assert out == ""
    assert err.startswith("labor-llm:\n  cannot read 'table': expected key=value\n")
    assert "unknown backbone 'nanoo'. Did you mean 'nano'?" in err
    assert "unknown key 'seeed'. Did you mean 'seed'?" in err
    assert "Traceback" not in err
    assert calls == []


def test_a_missing_value_is_named(type_in):
    assert type_in("run", "dataset=table") == (
        2,
        "",
        "labor-llm: dataset.raw has no value: add dataset.raw=...\n",
    )


def test_a_refusal_is_a_message_and_a_traceback_on_request(type_in, monkeypatch):
    code, _, err = type_in("run", "seed=7")
    assert code == 2
    assert err.endswith("labor-llm: seed 7 is unlucky\n")
    assert "Traceback" not in err
    assert "HYDRA" not in err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RunError):
        type_in("run", "seed=7")


def test_what_the_system_refuses_is_a_sentence(type_in):
    code, _, err = type_in("run", "seed=10")
    assert code == 2
    assert "labor-llm: the system refuses: No space left on device (/full/disk). Mend it" in err
    assert "Traceback" not in err


def test_a_mistake_of_ours_keeps_its_traceback(type_in, monkeypatch):
    monkeypatch.setattr(sys, "gettrace", lambda: None)  # Hydra raises instead where a debugger or coverage is on
    code, _, err = type_in("run", "seed=8")
    assert code == 1
    assert "Traceback" in err
    assert "fake_run" in err


@pytest.mark.parametrize("verb", ["run", "training"])
def test_an_interrupt_says_how_to_go_on(type_in, monkeypatch, verb):
    monkeypatch.setitem(__main__.VERBS, "run", f"{__name__}:fake_{verb}")
    code, _, err = type_in("run", "seed=9")
    assert code == 130
    assert err.endswith("labor-llm: interrupted; the same command goes on from what was saved\n")


def test_a_sweep_runs_every_combination_with_flags_anywhere(type_in):
    code, _, _ = type_in("run", "seed=1,2", "-m", "backbone=nano,micro")
    assert code == 0
    assert calls[::2] == [(2, 1), (4, 1), (2, 2), (4, 2)]
    (sweep,) = Path("outputs/sweeps").iterdir()
    assert [path.name for path in sweep.iterdir()] == ["multirun.yaml"]


NO_JOB = "there is no such value, so no job would run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=glob(*)"], f"seed=glob(*): {NO_JOB}; glob(...) chooses among the entries of a group"),
        (["backbone=glob(z*)"], f"backbone=glob(z*): {NO_JOB}. Known: micro, nano"),
        (["seed=range(5,5)", "backbone=nano,micro"], f"seed=range(5,5): {NO_JOB}"),
        (["+experiment=nothing"], f"backbone=glob(x*): {NO_JOB}"),
    ],
)
def test_a_sweep_without_a_job_is_refused(type_in, words, said):
    for listed in ([], ["--cfg", "job"]):
        code, out, err = type_in("run", "-m", *words, *listed)
        assert (code, out, calls) == (2, "", [])
        assert said in err


def test_a_glob_that_matches_runs_what_it_matches(type_in):
    assert type_in("run", "-m", "backbone=glob(n*)")[0] == 0
    assert calls[::2] == [(2, 0)]


def test_a_folder_is_no_number(type_in, monkeypatch):
    code, _, err = type_in("score", "run=5")
    assert (code, err) == (2, "labor-llm: run names a folder, got 5: write run=./NAME if it is called so\n")


def test_a_failing_job_does_not_stop_the_others(type_in):
    code, _, err = type_in("run", "-m", "seed=7,8,1")
    assert code != 0
    assert calls[::2] == [(2, 7), (2, 8), (2, 1)]
    assert "labor-llm: job 0 (seed=7): seed 7 is unlucky\n" in err
    assert err.count("Traceback") == err.count("KeyError: 'ours'") == 1
    assert not HydraConfig.initialized()


def test_a_sweep_with_a_mistake_starts_no_job(type_in):
    code, _, err = type_in("run", "-m", "backbone=nano,micor", "seed=1")
    assert code == 2
    assert "unknown backbone 'micor'. Did you mean 'micro'?" in err
    assert calls == []


def test_a_users_folder_holds_for_single_runs_and_sweeps(type_in, workplace):
    own = workplace / "work" / "my own" / "backbone"
    own.mkdir(parents=True)
    (own / "nano.yaml").write_text("layers: 9\n")
    (own / "mine.yaml").write_text("layers: 7\n")
    assert type_in("run", "--config-dir", "my own")[0] == 0
    assert type_in("run", "-m", "-cd", "my own", "backbone=mine,micro,nano")[0] == 0
    assert calls[::2] == [(9, 0), (7, 0), (4, 0), (9, 0)]
    assert (
        type_in("run", "--config-dir", "nowhere")[2] == "labor-llm: --config-dir: there is no folder 'nowhere'\n"
    )


def test_showing_a_configuration_runs_nothing(type_in):
    code, out, _ = type_in("run", "--cfg", "job", "backbone=micro")
    assert code == 0
    assert out == "dataset:\n  _target_: types.SimpleNamespace\n  name: panel\nbackbone:\n  layers: 4\nseed: 0\n"
    assert calls == []


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "--info", "all"),
        ("-m", "--cfg", "hydra"),
        ("-m", "--cfg", "job", "--resolve"),
        ("--resolve",),
        ("--config-path", "x"),
        ("seed=1,2",),
        ("-m", "seed=x("),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(type_in, words):
    code, out, err = type_in("run", *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"labor-llm: .+\n", err)
    assert calls == []


def test_paths_follow_compare_and_score(type_in):
    assert type_in("compare", "outputs/panel", "a b,c'${x}", "d\\")[0] == 0
    Path("lr=1,2").mkdir()
    assert type_in("compare", "lr=1,2")[0] == 0
    assert type_in("score", "my run")[0] == 0
    assert type_in("score", "run=other")[0] == 0
    assert calls == [["outputs/panel", "a b,c'${x}", "d\\"], ["lr=1,2"], "my run", "other"]


def test_paths_as_values_need_no_quotes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    Path("default (1).zip").touch()
    words = ["dataset.raw=~/Downloads/x.zip", "dataset.raw=default (1).zip", "seed=1,2", f"x=[{'1,' * 300}2]"]
    assert with_paths("run", words) == [
        "dataset.raw='/home/ada/Downloads/x.zip'",
        "dataset.raw='default (1).zip'",
        *words[2:],
    ]


def test_score_takes_one_run(type_in):
    assert type_in("score", "a", "b") == (2, "", "labor-llm: score takes one run, got 2: a, b\n")
    assert type_in("score")[2] == "labor-llm: run has no value: add run=...\n"
    with pytest.raises(ConfigError):
        with_paths("score", ["a", "b"])


def test_a_sweep_is_listed_and_not_run(type_in):
    code, out, _ = type_in("run", "-m", "seed=1,2", "+experiment=both", "hydra.verbose=true", "--cfg", "job")
    assert code == 0
    assert out.splitlines() == [
        f"job {number}: backbone={backbone} seed={seed} +experiment=both"
        for number, (backbone, seed) in enumerate([("nano", 1), ("nano", 2), ("micro", 1), ("micro", 2)])
    ]
    assert not calls


def test_help_and_version(type_in):
    assert "labor-llm compare" in type_in("--help")[1]
    assert type_in()[1] == type_in("-h")[1]
    assert type_in("--version")[1] == type_in("run", "--version")[1]
    code, out, _ = type_in("run", "--help")
    assert code == 0
    assert "group=entry, [in brackets] by default:\n  dataset: [panel], table\n  backbone: micro, [nano]\n" in out


def test_help_has_the_words_of_the_configuration_file(type_in):
    code, out, _ = type_in("score", "--help")
    assert code == 0
    assert out.startswith(
        "labor-llm score RUN: again.\nWith RUN.\n\n"
        "Settings, key=value:\n  run: ???  # the run\n  more:\n    seed: 0  # of it\n\n  --cfg job"
    )


@pytest.mark.parametrize("verb", __main__.VERBS)
def test_help_has_every_setting_and_group_of_a_shipped_verb(verb):
    shown = started("-m", "labor_llm", verb, "--help").stdout
    cfg = yaml.safe_load((REPOSITORY / "conf" / f"{verb}.yaml").read_text())
    own = set(cfg) - {"defaults", "hydra"}
    chosen = {name for entry in cfg["defaults"] if isinstance(entry, dict) for name in entry}
    assert shown.startswith(f"labor-llm {verb}")
    assert own | chosen <= set(re.findall(r"^  (\w+):", shown, re.MULTILINE))
    assert "hydra:" not in shown


def test_a_group_that_a_verb_lacks_is_named(type_in):
    words = ("score", "RUN", "dataset=panel", "seeed=1")
    assert type_in(*words)[2] == (
        "labor-llm:\n  dataset=panel: score has no dataset to choose; it has no groups\n"
        "  unknown key 'seeed'. Known: more, run.\n"
    )
    assert "dataset" not in type_in("score", "RUN", "x=1")[2]


def test_an_unknown_verb_has_its_near_miss(type_in):
    code, _, err = type_in("rnu", "seed=1")
    assert code == 2
    assert err.startswith("labor-llm: unknown verb 'rnu'. Did you mean 'run'?")


def started(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def test_the_shipped_configuration_is_shown_from_any_folder():
    shown = started("-m", "labor_llm", "run", "--cfg", "job", "seed=3")
    assert shown.returncode == 0, shown.stderr
    assert "seed: 3" in shown.stdout


def test_a_mistake_in_a_process_of_its_own():
    refused = started("-m", "labor_llm", "run", "datset=wage_panel")
    assert refused.returncode == 2
    assert "unknown key 'datset'. Did you mean 'dataset'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_command_line_loads_nothing_heavy():
    loaded = started("-c", "import sys, labor_llm.__main__; print(*sys.modules)").stdout.split()
    assert "labor_llm.__main__" in loaded
    assert not {"torch", "polars", "pydantic", "transformers", "labor_llm.build"} & set(loaded)


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "9"}, "9")],
)
def test_threads_soon_sleep_at_barriers_unless_the_user_chose(type_in, monkeypatch, chosen, spins):
    for name in __main__.WAITING:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    type_in("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == spins
