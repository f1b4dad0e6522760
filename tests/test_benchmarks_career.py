"""The benchmark of CAREER runs at toy size and writes what it promises; its rival is the same network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAREERS, CHOICES

from benchmarks.career_plain import PlainTransformer
from labor_llm.sequences.batches import collate
from labor_llm.sequences.codes import CodeBook
from labor_llm.sequences.transformer import CareerTransformer

ROOT = Path(__file__).parents[1]


def test_the_plain_network_is_the_same_network():
    torch.manual_seed(0)
    book = CodeBook.of(CAREERS, CHOICES, ("year", "education", "gender"))
    network = CareerTransformer(book, len(CHOICES) + 1, 2, 24, 48, 3, dropout=0.1).eval()
    coded = book.encode(CAREERS.select_persons(["p1", "p2", "p3"]))
    batch = collate(coded, np.arange(3))
    torch.testing.assert_close(PlainTransformer(network).eval()(batch), network(batch), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("career") / "result.json"
    command = [sys.executable, "-m", "benchmarks.career", "--toy", "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_the_result_has_rates_ratios_and_the_machine(result):
    for key in ("train_records_per_second", "score_records_per_second", "valid_perplexity", "peak_rss_gib"):
        assert result[key] > 0
    for what in ("train", "score"):
        ours, plain = (
            result["by_layers"]["1"]["systems"][name][f"{what}_records_per_second"]
            for name in ("labor_llm", "plain")
        )
        assert result[f"{what}_speedup_vs_plain"] == pytest.approx(ours / plain)
        assert result[f"{what}_speedup"] is None  # the reference has no rate for one layer
    assert {"processor", "cores"} <= result["machine"].keys()
    assert result["conditions"]["plain"]["precision"] == "32-true"


def test_both_learn_the_same(result):
    assert abs(result["valid_nats_minus_plain"]) < 0.1
    assert result["valid_perplexity"] < result["panel"]["occupations"]
