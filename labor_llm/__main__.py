"""The command line: a verb, then Hydra's overrides."""

import errno
import logging
import re
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from os import environ
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser  # only Hydra's parser tells its flags from overrides
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig

from labor_llm.configs import (
    check_overrides,
    check_values,
    conf_folder,
    is_readable,
    jobs_of_sweep,
    quoted,
    user_folder,
)
from labor_llm.errors import ConfigError, LaborLLMError, unknown
from labor_llm.paths import from_home
from labor_llm.usage import usage

VERBS = {
    "run": "labor_llm.run:run",
    "prepare": "labor_llm.preparation:prepare",
    "describe": "labor_llm.preparation:describe",
    "variables": "labor_llm.preparation:variables",
    "score": "labor_llm.run:score",
    "forecast": "labor_llm.forecast:forecast",
    "compare": "labor_llm.compare:compare_verb",
}
HELP = """labor-llm predicts careers with language models, beside every rival.

  labor-llm variables dataset=nlsy97                  list the variables to download, and what an extract lacks
  labor-llm prepare dataset=nlsy97 dataset.raw=FILE   read a download into a table of careers
  labor-llm describe dataset=nlsy97                   what it holds: counts, shares, made-up examples of its text
  labor-llm run dataset=wage_panel model=markov       fit a model, score it, evaluate it
  labor-llm run -m backbone=nano,micro label=title,code     one run per combination
  labor-llm score RUN                                 score a finished run again
  labor-llm forecast RUN cutoff=2014                  draw the years after, and say how well they were foretold
  labor-llm compare RUN_OR_FOLDER ...                 one table, paired differences, standard errors

labor-llm VERB --help lists what can be chosen; labor-llm VERB --cfg job shows the configuration.
"""


OF_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
"""Errors of a full or read-only disk, of missing rights, and of names that are too long."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user decides how the threads of OpenMP wait."""
SPINS = "1000"
"""The fewest that cost a quiet machine nothing: experiments/FINDINGS.md of 2026-11-27."""


class JobFailedError(CompactHydraException):
    """A refused job of a sweep: the other jobs go on, and Hydra ends with this message, not a traceback."""


def main() -> int:
    """Answer a command line; 0 if all went well, 2 for a mistake of the user, 130 if interrupted, 143 if ended."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as peft imports it, it warns of missing kernels
    wait_asleep()
    try:
        return _answer(sys.argv[1:])
    except (KeyboardInterrupt, SystemExit) as stop:
        how, status = _stopped(stop)
        if not how:
            raise
        _say(f"{how}; the same command goes on from what was saved")
        return status
    except (LaborLLMError, HydraException) as error:
        if _wants_traceback():
            raise
        _say(str(error))
        return 2


def _stopped(stop: BaseException) -> tuple[str, int]:
    """How the user or the system stopped the program, and the exit status; empty if it ended by itself.

    While Lightning trains or predicts, it turns an interrupt and SIGTERM into SystemExit.
    """
    if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    lightning = sys.modules.get("pytorch_lightning.utilities.exceptions")
    if lightning is not None and isinstance(stop, lightning.SIGTERMException):
        return "ended by SIGTERM", 128 + signal.SIGTERM
    return "", 0


def wait_asleep() -> None:
    """Let the threads of OpenMP fall asleep soon while they wait for each other, unless the user has chosen.

    By default they spin for milliseconds: with another program on the same cores, a run takes 5 to 20 times as
    long. Some microseconds cost nothing on a quiet machine. OpenMP reads the variable as PyTorch is imported.
    """
    if not any(name in environ for name in WAITING):
        environ["GOMP_SPINCOUNT"] = SPINS


def _answer(words: Sequence[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        sys.stdout.write(HELP)
    elif "--version" in words:
        sys.stdout.write(f"labor-llm {version('labor-llm')}\n")
    elif words[0] in VERBS:
        _call_hydra(words[0], words[1:])
    else:
        raise ConfigError(f"{unknown('verb', words[0], VERBS)} Write: labor-llm VERB [key=value ...]")
    return 0


def _call_hydra(verb: str, words: Sequence[str]) -> None:
    """Check the whole command line, then let Hydra compose it and run the verb once or many times."""
    parser = get_args_parser()
    parser.prog = f"labor-llm {verb}"
    args = parser.parse_intermixed_args(words)
    _check_flags(args)
    overrides = with_paths(verb, args.overrides)
    with user_folder(args.config_dir):
        if args.help:
            sys.stdout.write(usage(verb))
            return
        check_overrides(args.config_name or verb, overrides, args.multirun, _check_parts)
        if args.multirun and args.cfg:
            jobs = jobs_of_sweep(args.config_name or verb, overrides)
            sys.stdout.write("".join(f"job {number}: {job}\n" for number, job in enumerate(jobs)))
            return
        flags = {name: value for name, value in vars(args).items() if name not in ("overrides", "config_dir")}
        task = _task(verb)
        with _command_line([*_as_words(flags), *overrides]):
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=verb)(task)()


def _check_parts(cfg: DictConfig) -> None:
    """Try to build what a run is made of; only after another mistake, so that all are said at once."""
    from labor_llm.build import build

    build(cfg, [part for part in ("dataset", "model", "tracker") if part in cfg])


def _check_flags(args: Namespace) -> None:
    """Refuse what Hydra would answer with a traceback or by hiding the shipped configurations."""
    if args.config_path:
        raise ConfigError("--config-path would hide the shipped configurations; use --config-dir")
    listed = args.cfg == "job" and not (args.resolve or args.package)
    sweep = args.multirun and not listed
    if sum(map(bool, (args.run, sweep, args.cfg, args.info, args.shell_completion))) > 1:
        raise ConfigError(
            "choose one of --run, --multirun (-m), --cfg, --info and --shell-completion; "
            "-m with --cfg job alone lists the jobs of a sweep"
        )
    if args.resolve and not args.cfg:
        raise ConfigError("--resolve belongs to --cfg")


def with_paths(verb: str, words: Sequence[str]) -> list[str]:
    """Overrides that Hydra can read: paths are quoted; those that stand alone become ``runs`` or ``run``."""
    paths = [word for word in words if verb in ("compare", "score", "forecast") and _is_path(word)]
    overrides = [_with_path_value(word) for word in words if word not in paths]
    if verb != "compare" and len(paths) > 1:
        raise ConfigError(f"{verb} takes one run, got {len(paths)}: {', '.join(paths)}")
    if paths:
        values = ",".join(map(quoted, paths))
        overrides.append(f"runs=[{values}]" if verb == "compare" else f"run={values}")
    return overrides


def _is_path(word: str) -> bool:
    return "=" not in word or _exists(word)


def _with_path_value(word: str) -> str:
    """Hydra reads neither the tilde nor the brackets of ``dataset.raw=~/Downloads/default (1).zip``."""
    key, _, value = word.partition("=")
    odd = re.search(r"[^\w./-]", value)
    if value.startswith("~/") or (odd and (_exists(value) or ("/" in value and not is_readable(word)))):
        return f"{key}={quoted(str(from_home(Path(value))))}"
    return word


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long or too odd for a path
        return False


def _as_words(flags: dict[str, Any]) -> list[str]:
    """Flags as Hydra reads them; it would refuse a flag that stands between overrides."""
    given = {f"--{name.replace('_', '-')}": value for name, value in flags.items() if value}
    return [flag if value is True else f"{flag}={value}" for flag, value in given.items()]


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads its command line from ``sys.argv`` only."""
    typed = sys.argv
    sys.argv = [typed[0], *words]
    try:
        yield
    finally:
        sys.argv = typed


def _task(verb: str) -> TaskFunction:
    """The function that Hydra calls with each configuration."""
    typed = sys.argv

    def task(cfg: DictConfig) -> Any:
        sys.argv = typed  # Lightning starts the other processes of a job with it
        try:
            check_values(cfg)
            return resolve_name(VERBS[verb])(cfg)
        except Exception as error:
            message = _message(error)
            if message and not _wants_traceback():
                raise _refusal(message) from error
            if not message and _in_sweep():  # Hydra shows the first failure of a sweep only, and at its end
                traceback.print_exc()
            raise

    return task


def _message(error: Exception) -> str | None:
    """The sentence for an error that the user can mend, here or on the machine; None for our own mistakes."""
    if isinstance(error, LaborLLMError):
        return str(error)
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"the system refuses: {error.strerror}{where}. Mend it; the same command goes on from what was saved"
        )
    return None


def _refusal(message: str) -> BaseException:
    """What ends a single run at once, and lets the other jobs of a sweep go on."""
    if not _in_sweep():
        _say(message)
        return SystemExit(2)
    config = HydraConfig.get()
    _say(f"job {config.job.num} ({' '.join(config.overrides.task)}): {message}")
    return JobFailedError(message)


def _in_sweep() -> bool:
    return bool(HydraConfig.get().mode is RunMode.MULTIRUN)


def _wants_traceback() -> bool:
    return environ.get("HYDRA_FULL_ERROR") == "1"


def _say(message: str) -> None:
    if "TORCHELASTIC_RUN_ID" in environ and environ.get("RANK") != "0":  # torchrun's first process says it
        return
    lines = message.splitlines()
    text = "".join(f"\n  {line}" for line in lines) if len(lines) > 1 else f" {message}"
    sys.stderr.write(f"labor-llm:{text}\n")


if __name__ == "__main__":
    # Under its own name, so that launchers can send the task to other processes.
    sys.exit(resolve_name("labor_llm.__main__:main")())
