"""Processes that torchrun or srun starts: they compute what one does, the first writes, all end together."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import chain_panel
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only
from safetensors.numpy import load_file
from small_networks import coded
from test_devices import Heard
from test_run import TINY, run_folders

from labor_llm.errors import ConfigError
from labor_llm.models.base import Workspace, choice_set
from labor_llm.models.career import Career
from labor_llm.processes import ALONE, joined, starter

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "7",
}
SMALL = [
    *TINY,
    "trainer.batch_size=48",
    "trainer.micro_batch_size=24",
    "tracker=jsonl",
    "+dataset.split.train=0.9",
    "+dataset.split.valid=0.05",
    "+dataset.split.test=0.05",
]
FEW = {"layers": 1, "width": 8, "feed_forward": 8, "heads": 1}


@pytest.fixture
def surrounding(monkeypatch):
    """Sets the variables of an allocation."""

    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
def test_one_device_ignores_a_surrounding_allocation(variables, surrounding, monkeypatch, tmp_path):
    surrounding(variables | {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"})
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # as Lightning sets it when it is imported there
    with joined(1, 1, on_gpu=False) as processes:
        assert processes is ALONE
    careers, heard = chain_panel(persons=23), Heard()
    model = coded(Career, **FEW).fit(careers, careers, choice_set(careers), Workspace(tmp_path, heard))
    assert {name for name, _ in heard.metrics} >= {"train/loss", "valid/perplexity"}
    assert len(model.log_probs(careers)) == len(careers)


def test_processes_that_were_started_for_the_devices_are_used(surrounding):
    surrounding(SRUN)
    assert isinstance(starter(2, 2), SLURMEnvironment)
    surrounding(TORCHRUN)
    assert isinstance(starter(2, 2), TorchElasticEnvironment)


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (1, 4), (4, 1)])
def test_another_number_of_processes_is_refused(devices, nodes, variables, surrounding):
    surrounding(variables)
    with pytest.raises(ConfigError, match=f"started 4 processes, 2 of them .* trainer.devices={devices} and"):
        starter(devices, nodes)


def test_several_machines_need_a_starter():
    with pytest.raises(ConfigError, match=r"trainer.nodes=2: start .* by torchrun .* or srun"):
        starter(1, 2)
    assert starter(2, 1) is None


def test_a_task_that_slurm_started_alone_starts_its_devices_itself(surrounding):
    surrounding(SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"})
    assert starter(2, 1) is None


def command(outputs: Path, *words: str) -> list[str]:
    return ["-m", "labor_llm", "run", *SMALL, *words, f"outputs={outputs}"]


def torchrun(*words: str, **variables: str) -> subprocess.Popen:
    started = [sys.executable, "-m", "torch.distributed.run", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(started, env=environment, stderr=subprocess.PIPE, text=True)


def ended(*started: subprocess.Popen) -> list[str]:
    """What processes wrote to stderr; none of them stays behind."""
    try:
        return [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()


def same_runs(one: Path, other: Path) -> None:
    """Both outputs hold one run, and the two have the same weights up to rounding."""
    (first,), (second,) = run_folders(one), run_folders(other)
    assert not (second / "checkpoints").exists()
    expected = load_file(first / "model" / "model.safetensors")
    found = load_file(second / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The outputs of a run in one process."""
    outputs = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, *command(outputs)], check=True, capture_output=True)
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun(strategy, alone, tmp_path):
    words = command(tmp_path, "trainer.devices=2", f"trainer.strategy={strategy}")
    process = torchrun("--standalone", "--nproc-per-node=2", *words)
    (said,) = ended(process)
    assert process.returncode == 0, said
    assert said.count("results: ") == 1
    same_runs(alone, tmp_path)


@pytest.mark.slow
def test_two_machines(alone, tmp_path):
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{29600 + os.getpid() % 1000}", "--rdzv-id=test"]
    words = command(tmp_path, "trainer.nodes=2", "trainer.strategy=fsdp")
    machines = [torchrun("--nnodes=2", "--nproc-per-node=1", *meet, *words) for _ in range(2)]
    said = ended(*machines)
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "".join(said).count("results: ") == 1
    same_runs(alone, tmp_path)


@pytest.mark.slow
def test_srun(alone, tmp_path):
    step = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "1"}
    variables = (
        os.environ | SRUN | step | {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    )
    words = [sys.executable, *command(tmp_path, "trainer.devices=2", "trainer.strategy=fsdp")]
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    tasks = [subprocess.Popen(words, env=variables | rank, stderr=subprocess.PIPE, text=True) for rank in ranks]
    said = ended(*tasks)
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "".join(said).count("results: ") == 1
    same_runs(alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_that_one_process_finds_ends_all_with_one_sentence(rank):
    script = str(Path(__file__).with_name("failing_process.py"))
    process = torchrun("--standalone", "--nproc-per-node=2", script, "run", FAILS=f"{rank} mistake")
    (said,) = ended(process)
    assert process.returncode != 0
    assert said.count("labor-llm:") == 1
    assert "labor-llm: the model mixes careers\n" in said
