"""Trackers: where the aggregates of a run go while it goes on. Survey records never go to any of them."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    import wandb

from labor_llm.errors import ConfigError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
DISABLED = "disabled"
MODES = {"offline": "offline", "dryrun": "offline", "online": "online", "run": "online", DISABLED: DISABLED}
"""What WANDB_MODE may say, in the words of ``Wandb.mode``."""
SETTINGS = ConfigDict(extra="forbid")


class Tracker(Protocol):
    """Receives numbers while a run goes on, then the results and how it ended."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def summarize(self, results: Mapping[str, float]) -> None: ...

    def finish(self, failed: bool = False) -> None: ...


class NoTracker:
    """Keeps nothing: for models that are fitted outside a run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Forget the metrics."""

    def summarize(self, results: Mapping[str, float]) -> None:
        """Forget the results."""

    def finish(self, failed: bool = False) -> None:
        """Nothing to close."""


class MetricsFile:
    """One JSON object a line. A resumed run appends: of two lines with the same step, the later one holds."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8", buffering=1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._write({"step": step, **_numbers(metrics)})

    def summarize(self, results: Mapping[str, float]) -> None:
        self._write({"summary": _numbers(results)})

    def finish(self, failed: bool = False) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, allow_nan=False) + "\n")


def _numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class WandbRun(MetricsFile):
    """A Weights & Biases run beside the metrics file; both receive the same numbers."""

    def __init__(self, folder: Path, run: "wandb.Run") -> None:
        super().__init__(folder)
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        super().log(metrics, step)
        self._run.log({"step": step, **metrics})

    def summarize(self, results: Mapping[str, float]) -> None:
        super().summarize(results)
        self._run.summary.update(dict(results))

    def finish(self, failed: bool = False) -> None:
        super().finish(failed)
        self._run.finish(exit_code=int(failed))


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class JsonLines:
    """Metrics go into the run folder's ``metrics.jsonl`` and nowhere else."""

    name: str = "jsonl"

    def start(self, folder: Path, config: Mapping[str, Any]) -> Tracker:
        """Open the metrics file of a run."""
        return MetricsFile(folder)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Wandb:
    """Weights & Biases; offline unless told otherwise, read with ``wandb leet`` or sent with ``wandb sync``."""

    name: str = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "labor-llm"
    entity: str | None = None
    base_url: str | None = None
    """Address of a self-hosted server; W&B's own if None."""
    run_name: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        asked = os.environ.get("WANDB_MODE", "").lower()
        if asked and MODES.get(asked) not in (self.mode, DISABLED):
            raise ValueError(
                f"the environment has WANDB_MODE={asked}, and tracker.mode is {self.mode}: "
                + (f"set tracker.mode={MODES[asked]}" if asked in MODES else f"known are {', '.join(MODES)}")
                + ", or unset WANDB_MODE"
            )

    def start(self, folder: Path, config: Mapping[str, Any]) -> Tracker:
        """Open one W&B run for a run folder; a resumed folder continues the run of the same id.

        Code, git diffs, console output and host details are not captured: what leaves the machine is the
        config and what is logged, nothing else.
        """
        if variable := _disabling():
            logger.info("%s: W&B is left out, the metrics are in %s", variable, METRICS_FILE)
            return MetricsFile(folder)
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_save_requirements=False,
            silent=True,
            **({"base_url": self.base_url} if self.base_url else {}),
        )
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                dir=folder.absolute(),  # a folder may be called ~name
                id=folder.name,
                name=self.run_name,
                group=self.group,
                tags=list(self.tags),
                config=dict(config),
                mode=self.mode,
                resume="allow",
                reinit="create_new",
                settings=settings,
            )
        except wandb.Error as error:
            raise ConfigError(
                f"tracker.mode={self.mode}: W&B refuses ({error}). Run `wandb login` first, or use "
                "tracker.mode=offline or tracker=jsonl."
            ) from error
        run.define_metric("*", step_metric="step")
        return WandbRun(folder, run)


def _disabling() -> str | None:
    """The variable of the environment that turns W&B off, if there is one."""
    if os.environ.get("WANDB_MODE", "").lower() == DISABLED:
        return f"WANDB_MODE={DISABLED}"
    disabled = os.environ.get("WANDB_DISABLED", "")  # what transformers reads
    return f"WANDB_DISABLED={disabled}" if disabled.lower() in ("1", "on", "true", "yes") else None
