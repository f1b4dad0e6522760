"""The self-checks: wrong attention is refused in any precision, rounding is not."""

import copy
import logging
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers
from conftest import ARCHITECTURES, CHOICES, SMALL, TRAIN, VALID, bpe_tokenizer, small_model
from peft import LoraConfig, get_peft_model
from test_finetune import hub_model
from test_scoring import TRIAL, TRIE, packed
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from labor_llm.errors import RunError
from labor_llm.language.checks import check_packing, check_reading, check_scores, plain_log_prob
from labor_llm.language.finetune import FineTuning
from labor_llm.language.probes import exactly, probe_of
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.tokens import CareerEncoder
from labor_llm.language.trials import Trial
from labor_llm.language.trie import TitleTrie
from labor_llm.templates import ResumeTemplate, Titles

TOKENIZER = bpe_tokenizer("llama", ResumeTemplate().texts(TRAIN, Titles()))
ENCODED = CareerEncoder(TOKENIZER, ResumeTemplate(), Titles(), TRAIN.taxonomy).encode(TRAIN)


class Placeless(LlamaForCausalLM):
    """Takes every token's place from where it stands in the row."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class Deaf(LlamaForCausalLM):
    """Its layers keep the attention that they began with."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.config = copy.deepcopy(config)
            layer.self_attn.config._attn_implementation = "sdpa"


class Blind(LlamaForCausalLM):
    """Ignores masks, and with them where a padded career ends."""

    def forward(self, *args, career_starts=(), attention_mask=None, **kwargs):
        whole = [0, args[0].shape[1]] if args and career_starts else career_starts
        return super().forward(*args, career_starts=whole, **kwargs)


def llama(kind=LlamaForCausalLM, spread=0.02):
    """A small Llama of that class, its weights as small as before any training."""
    torch.manual_seed(0)
    config = ARCHITECTURES["llama"](600)
    config.initializer_range = spread
    return kind._from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Placeless, Deaf, Blind])
def test_wrong_attention_is_refused_when_scoring(kind, dtype):
    check_scores(llama().to(dtype), TRIE, 100, TRIAL)
    with pytest.raises(RunError, match="does not read its attention as transformers' models do") as caught:
        check_scores(llama(kind).to(dtype), TRIE, 100, TRIAL)
    assert ("no rounding" in str(caught.value)) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_careers_that_see_one_another_are_refused_before_training(dtype):
    check_packing(llama().to(dtype), ENCODED)
    with pytest.raises(RunError, match="does not keep careers apart"), torch.autocast("cpu", torch.bfloat16):
        check_packing(llama(Deaf).to(dtype), ENCODED)


@pytest.mark.parametrize("mixed", [False, True], ids=["bfloat16", "lora"])
def test_rounding_is_not_refused(mixed, caplog):
    """A model of SmolLM2's width in bfloat16 with titles of many tokens, all of them improbable."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=576,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    titles = [(*torch.randint(20, 500, (count,)).tolist(), 7) for count in (1, 5, 9, 14, 20)]
    if mixed:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    trie, batch = TitleTrie.of(titles), packed()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), torch.no_grad():
        ours_J = TitleScorer(model, trie, 100).score(batch).raw_QJ[0]
        plain = [plain_log_prob(model, batch.ids_T, int(batch.prompt_ends_Q[0]), title) for title in titles]
        assert (ours_J - torch.stack(plain)).abs().max() > 0.5, "too little rounding to test anything"
        with caplog.at_level(logging.DEBUG, "labor_llm.language.checks"):
            check_scores(model, trie, 100, TRIAL)
        check_packing(model, ENCODED)
    assert "rounding moves the log-probability of a title by up to" in caplog.text


def test_broken_weights_are_refused_in_bfloat16():
    model = llama().to(torch.bfloat16)
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(RunError, match="weights are broken"):
        check_scores(model, TRIE, 100, TRIAL)


def test_a_probe_of_every_architecture_passes(architecture):
    check_scores(small_model(architecture).to(torch.bfloat16), TRIE, 100, TRIAL)


def test_a_probe_has_every_kind_of_layer_and_leaves_the_model_as_it_was():
    kinds = ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 4
    config = Qwen3Config(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=kinds,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16).train()
    state = torch.get_rng_state()
    probe = probe_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert probe.config.layer_types == kinds[:4]
    assert len(probe.model.layers) == 4
    assert {weight.dtype for weight in probe.parameters()} == {torch.float32}
    assert all(weight.std() > 0 for weight in probe.parameters())
    with exactly(model):
        assert not model.training
    assert model.training
    assert (model.config.num_hidden_layers, model.dtype) == (8, torch.bfloat16)
    check_scores(model, TRIE, 100, TRIAL)


def test_a_model_in_float32_is_checked_itself_and_nothing_is_rounded(monkeypatch):
    monkeypatch.setattr("labor_llm.language.checks.probe_of", lambda model: llama())
    with torch.autocast("cpu", torch.bfloat16):
        with exactly(llama()):
            assert not torch.is_autocast_enabled("cpu")
        with pytest.raises(RunError, match="does not read its attention"):
            check_scores(llama(Deaf), TRIE, 100, TRIAL)


ROTATION = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [8.0, 4.0, 2.0, 1.5],
}


def turning_otherwise_beyond(tokens: int) -> LlamaForCausalLM:
    """A Llama whose positions change in the whole row as soon as a place in it is beyond so many tokens."""
    torch.manual_seed(0)
    config = ARCHITECTURES["llama"](600)
    config.rope_parameters = ROTATION | {"original_max_position_embeddings": tokens}
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_length_that_only_a_long_career_crosses_is_tried(layout):
    lengths = sorted(ENCODED.lengths.tolist())
    trial = Trial.of(ENCODED, room=10_000)
    assert trial.longest > 1.5 * lengths[-1]
    check_reading(turning_otherwise_beyond(trial.longest), trial, layout)
    for tokens in (lengths[-1] - 1, lengths[-1] + 10):  # test persons may have longer careers
        with pytest.raises(
            RunError, match=r"LlamaForCausalLM .*reads a short text otherwise as soon as a long one"
        ):
            check_reading(turning_otherwise_beyond(tokens), trial, layout)
    check_packing(turning_otherwise_beyond(lengths[-1] + 10), ENCODED)
    with pytest.raises(RunError, match="does not keep careers apart"):
        check_packing(turning_otherwise_beyond(lengths[-1] - 1), ENCODED)


def test_a_window_that_only_the_mask_knows_is_refused_where_a_career_reaches_beyond_it():
    def model(window: int) -> PhimoeForCausalLM:
        sizes = {"num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": window}
        torch.manual_seed(0)
        return PhimoeForCausalLM(PhimoeConfig(vocab_size=600, **SMALL | sizes)).eval()

    trial = Trial.of(ENCODED, room=10_000)
    for tokens, refused in ((trial.longest, False), (trial.longest // 2, True)):
        with pytest.raises(RunError, match="PhimoeForCausalLM") if refused else nullcontext():
            check_reading(model(tokens), trial, "packed")
        with pytest.raises(RunError, match="PhimoeForCausalLM") if refused else nullcontext():
            check_scores(model(tokens), TRIE, 100, trial)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", ["DeepseekV3", "Lfm2"])
def test_what_cannot_be_scored_is_refused_before_training(family, layout, tmp_path, monkeypatch):
    """Latent attention is read in one row but not over a tree; convolutions mix careers in one row."""
    own = {
        "DeepseekV3": {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 2,
        },
        "Lfm2": {"layer_types": ["conv", "full_attention"]},
    }[family]
    TOKENIZER.save_pretrained(tmp_path)
    config = getattr(transformers, f"{family}Config")(vocab_size=len(TOKENIZER), **SMALL | own)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    steps = []
    monkeypatch.setattr(FineTuning, "training_step", lambda *_: steps.append(_))
    with pytest.raises(RunError, match=rf"{family}ForCausalLM .*Use another architecture"):
        hub_model(tmp_path, layout=layout).fit(TRAIN, VALID, CHOICES)
    assert not steps


def test_only_what_scoring_needs_is_tried():
    model = llama()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits if logits.shape[1] > 3 else logits * 1.1)
    check_scores(llama(), None, 100, TRIAL)
    with pytest.raises(RunError, match=r"gives .* nats for 2 tokens of a title"):
        check_scores(model, None, 100, TRIAL)


def test_the_pieces_of_a_title_are_compared_one_by_one(monkeypatch):
    """Two tokens of a title that are wrong by as much, one up and one down, have the right sum."""
    score = TitleScorer.score

    def shifted(scorer, batch):
        scores = score(scorer, batch)
        if scorer.trie.titles == ((11,),):
            scores.raw_QJ[:] += 0.01
        return scores

    trie = TitleTrie.of([(11, 7)])
    check_scores(llama(), trie, 100, TRIAL)
    monkeypatch.setattr(TitleScorer, "score", shifted)
    with pytest.raises(RunError, match="for 1 tokens of a title"):
        check_scores(llama(), trie, 100, TRIAL)


def test_the_trial_has_a_long_career_beside_the_shortest_with_records_of_their_own():
    trial = Trial.of(ENCODED, room=ENCODED.lengths.max() + 20)
    order = np.argsort(ENCODED.lengths, kind="stable")
    assert trial.careers.lengths.tolist() == [ENCODED.lengths.max() + 20, *ENCODED.lengths[order[:2]]]
    assert trial.short.lengths.tolist() == ENCODED.lengths[order[:2]].tolist()
    titles = {tuple(ENCODED.ids_T[a:b]) for a, b in zip(ENCODED.prompt_ends, ENCODED.title_ends, strict=True)}
    for part in (trial.careers, trial.short):
        spans = zip(part.prompt_ends, part.title_ends, strict=True)
        assert {tuple(part.ids_T[start:end]) for start, end in spans} <= titles
    header = slice(0, ENCODED.header_ends[order[-1]] - ENCODED.career_starts[order[-1]])
    longest = ENCODED.ids_T[ENCODED.career_starts[order[-1]] :]
    assert (trial.careers.ids_T[header] == longest[header]).all()
    assert trial.careers.title_ends[1] == trial.longest
