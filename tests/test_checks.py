"""The self-checks: wrong attention is refused in any precision, rounding is not."""

import copy
import logging

import pytest
import torch
from conftest import ARCHITECTURES, TRAIN, bpe_tokenizer, small_model
from peft import LoraConfig, get_peft_model
from test_scoring import TRIE, packed
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from labor_llm.errors import RunError
from labor_llm.language.checks import check_packing, check_scores, plain_log_prob
from labor_llm.language.probes import in_float32, probe_of
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.tokens import CareerEncoder
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
    check_scores(TitleScorer(llama().to(dtype), TRIE, 100), packed())
    with pytest.raises(RunError, match="does not read its attention as transformers' models do") as caught:
        check_scores(TitleScorer(llama(kind).to(dtype), TRIE, 100), packed())
    assert ("no rounding" in str(caught.value)) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_careers_that_see_one_another_are_refused_before_training(dtype):
    check_packing(llama().to(dtype), ENCODED)
    with pytest.raises(RunError, match="does not keep them apart"), torch.autocast("cpu", torch.bfloat16):
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
    scorer, batch = TitleScorer(model, TitleTrie.of(titles), 100), packed()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), torch.no_grad():
        ours_J = scorer.score(batch).raw_QJ[0]
        plain = [plain_log_prob(model, batch.ids_T, int(batch.prompt_ends_Q[0]), title) for title in titles]
        assert (ours_J - torch.stack(plain)).abs().max() > 0.5, "too little rounding to test anything"
        with caplog.at_level(logging.DEBUG, "labor_llm.language.checks"):
            check_scores(scorer, batch)
        check_packing(model, ENCODED)
    assert "rounding moves the log-probability of a title by up to" in caplog.text


def test_broken_weights_are_refused_in_bfloat16():
    model = llama().to(torch.bfloat16)
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(RunError, match="weights are broken"):
        check_scores(TitleScorer(model, TRIE, 100), packed())


def test_a_probe_of_every_architecture_passes(architecture):
    check_scores(TitleScorer(small_model(architecture).to(torch.bfloat16), TRIE, 100), packed())


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
    with in_float32(model) as exact:
        assert type(exact) is Qwen3ForCausalLM
        assert exact is not model
    assert model.training
    assert (model.config.num_hidden_layers, model.dtype) == (8, torch.bfloat16)
    check_scores(TitleScorer(model.eval(), TRIE, 100), packed())


def test_a_model_in_float32_is_checked_itself():
    model = llama()
    with torch.autocast("cpu", torch.bfloat16), in_float32(model) as exact:
        assert exact is model
        assert not torch.is_autocast_enabled("cpu")
