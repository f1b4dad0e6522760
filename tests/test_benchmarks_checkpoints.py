"""The benchmark of kinds of checkpoint tells right ones, refused ones and wrong ones apart."""

from transformers import LlamaForCausalLM

from benchmarks import checkpoint_kinds
from benchmarks.checkpoint_kinds import KINDS, Made, llama
from benchmarks.checkpoints import ADAPTERS, outcome


def test_a_whole_checkpoint_is_right_and_its_neighbor_wrong(tmp_path, monkeypatch):
    right = outcome("one-file", ADAPTERS["frozen"], tmp_path / "right" / "model")
    assert right.verdict == "right", right.text
    monkeypatch.setitem(KINDS, "other", lambda folder: Made(other(llama(folder))))
    assert outcome("other", ADAPTERS["frozen"], tmp_path / "other" / "model").verdict == "WRONG"


def other(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.lm_head.weight.data[5] += 0.01
    return model


def test_what_must_be_refused_and_is_complete_is_wrong(tmp_path, monkeypatch):
    assert outcome("no-output-layer", ADAPTERS["frozen"], tmp_path / "a" / "model").verdict == "refused"
    monkeypatch.setitem(KINDS, "spoiled", checkpoint_kinds.damaged(lambda folder: None))
    assert outcome("spoiled", ADAPTERS["frozen"], tmp_path / "b" / "model").verdict == "WRONG"
