"""The generated panel is what it says it is, and the scoring benchmark runs and compares like with like."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from conftest import small_model
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import prepare
from benchmarks.machine import peak_rss_gib, write_result
from benchmarks.panel import generated_panel, process, process_log_probs, stay_rate
from benchmarks.scoring_engine import exact_flops
from benchmarks.scoring_report import METHODS
from benchmarks.scoring_rivals import naive_rival, prefix_cache_rival
from labor_llm.language.checks import plain_log_prob
from labor_llm.language.trie import TitleTrie

END = 7
TITLES = [(11, END), (11, 12, END), (14, 16, 17, 18, END), (19, END)]
PROMPTS = [[20, 21, 22], [20, 21, 22, 23, 24, 25, 26]]


def test_the_generated_panel_is_reproducible_and_holds_every_occupation():
    careers = generated_panel(2000, seed=1)
    assert careers.table.equals(generated_panel(2000, seed=1).table)
    assert set(careers.table["occupation"]) == set(careers.taxonomy.codes)
    assert abs(stay_rate(careers) - 0.63) < 0.01
    counts = np.diff(careers.person_starts)
    assert (counts.min(), counts.max()) == (5, 40)
    assert not set(careers.table["person_id"]) & set(generated_panel(10, seed=2).table["person_id"])


def test_the_process_is_a_distribution_and_the_panel_follows_it():
    occupations = len(generated_panel(1, seed=0).taxonomy.codes)
    rng = np.random.default_rng(0)
    history_PT = np.repeat(process(occupations).draw(4, 6, rng), occupations, axis=0)
    every_next = np.tile(np.arange(occupations), 4)[:, None]
    log_probs = process(occupations).log_probs(np.concatenate([history_PT, every_next], axis=1))[:, -1]
    np.testing.assert_allclose(np.exp(log_probs).reshape(4, -1).sum(1), 1)
    careers = generated_panel(3000, seed=3)
    log_probs_N = process_log_probs(careers)
    returns = careers.table.select(pl.struct("person_id", "occupation").is_first_distinct().not_()).to_series() & (
        careers.previous != careers.table["occupation"]
    )
    assert np.isfinite(log_probs_N).all()
    assert 8 < np.exp(-log_probs_N.mean()) < 10
    assert 0.03 < returns.mean() < 0.08  # 0.37 * 0.12, and some by chance


@pytest.mark.parametrize("batch_size", [1, 3, 10])
@pytest.mark.parametrize("rival", [naive_rival, prefix_cache_rival])
def test_rivals_score_as_one_forward_pass_per_title_does(rival, batch_size):
    model = small_model("llama")
    expected = [
        [plain_log_prob(model, torch.tensor(prompt), len(prompt), title).item() for title in TITLES]
        for prompt in PROMPTS
    ]
    scores = rival(model, batch_size)(PROMPTS, TITLES)
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=0)


def test_flops_are_those_that_torch_counts_less_the_hidden_keys():
    """A tree of one inner node after one prompt: prompt and node in one causal pass, by torch's counter."""
    model, length = small_model("llama", attention="eager"), 5
    counted = exact_flops(model, TitleTrie.of([(11, END), (11, 12)]), torch.tensor([length]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(length + 1)[None], use_cache=False, logits_to_keep=2)
    config = model.config
    hidden_keys = (length + 1) * length // 2  # torch counts the keys that causal attention hides
    width = config.num_attention_heads * config.head_dim
    hidden = 4 * config.num_hidden_layers * width * hidden_keys
    assert counted == counter.get_total_flops() - hidden


def test_a_result_is_written_whole_with_the_machine(tmp_path):
    write_result(tmp_path / "results" / "one.json", {"b": 1, "a": 2.5})
    content = json.loads((tmp_path / "results" / "one.json").read_text())
    assert (content["a"], content["b"]) == (2.5, 1)
    assert {"commit", "date", "machine"} <= set(content)
    assert content["machine"]["torch"] == torch.__version__
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["one.json"]
    assert peak_rss_gib() > 0.05


@pytest.mark.slow
def test_the_scoring_benchmark_compares_the_same_numbers(tmp_path):
    """At toy size, into a folder of its own; what is fast is no matter here."""
    pytest.importorskip("lm_eval")
    from benchmarks.scoring import main

    out = tmp_path / "scoring.json"
    main(["--toy", "--models", str(tmp_path / "models"), "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["seconds_per_record"]) == set(METHODS)
    assert {
        "exact_speedup_vs_lm_eval",
        "pruned_speedup_vs_lm_eval",
        "token_label_speedup_vs_lm_eval",
        "exact_share_of_matmul_rate",
        "pruned_certified_mass",
        "peak_rss_gib",
        "titles_mean_tokens",
        "inner_nodes",
        "rounds",
        "careers",
        "lm_eval_version",
        "lm_eval_batch_size",
        "machine",
    } <= set(result)
    assert result["max_abs_diff_nats"] < 1e-4
    assert max(result["max_abs_diff_nats_by_rival"].values()) < 1e-4
    assert result["pruned_certified_mass"] <= result["pruned_tolerance"]
    assert result["pruned_max_abs_diff_probability"] <= result["pruned_certified_mass_normalised"] + 1e-6
    assert len(list((tmp_path / "models").glob("*/complete.json"))) == 2


def test_a_generated_file_is_prepared_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "CHUNK", 40)
    records = prepare.generate(tmp_path / "panel.parquet", 100)
    measured = prepare.measure(tmp_path / "panel.parquet", tmp_path)
    assert (measured["persons"], measured["records"]) == (100, records)
    assert measured["records_per_second"] > 0
    assert prepare.measure_tokens(20)["render_tokenize_records_per_second_per_core"] > 0
