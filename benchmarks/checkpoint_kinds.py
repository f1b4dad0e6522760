"""Kinds of checkpoint, each built tiny by the classes of transformers and peft, with the model that it means.

A kind is a function that fills a folder. It returns a ``Made``: the settings of the backbone besides its path, and
the float32 model whose numbers are right, or None where nothing but a refusal is.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH = 64
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
SAFE = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@dataclass(frozen=True)
class Made:
    """What a kind of checkpoint is."""

    right: nn.Module | None = None
    """The model in float32, or None if the folder must be refused."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the backbone."""


Kind = Callable[[Path], Made]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    """Register a kind by its function's name."""
    KINDS[make.__name__.replace("_", "-")] = make
    return make


def tokenizer(words: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE that keeps every text whole."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer, bpe.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    texts = ["The worker has the following records of work experience, one entry per line, including managers"]
    trainer = BpeTrainer(
        vocab_size=words, special_tokens=["<s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def llama(folder: Path, tied: bool = False, seed: int = 0, **saving: Any) -> LlamaForCausalLM:
    """Save a Llama whose probabilities are far from uniform; return it."""
    words = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(words), tie_word_embeddings=tied, initializer_range=0.2, **SIZES)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, **saving)
    words.save_pretrained(folder)
    return model


def change_config(folder: Path, **changes: Any) -> None:
    """Write other settings into config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write other weights."""
    save_file(change(load_file(folder / SAFE)), folder / SAFE, metadata={"format": "pt"})


def without(folder: Path, part: str) -> None:
    """Leave out the weights whose name contains the part."""
    change_weights(folder, lambda weights: {name: value for name, value in weights.items() if part not in name})


def linear(name: str) -> bool:
    """Whether a weight is one of the matrices that methods of quantization pack."""
    return "proj.weight" in name


# whole checkpoints


@kind
def one_file(folder: Path) -> Made:
    return Made(llama(folder))


@kind
def shards(folder: Path) -> Made:
    return Made(llama(folder, max_shard_size="100KB"))


@kind
def tied_head(folder: Path) -> Made:
    return Made(llama(folder, tied=True))


@kind
def bare_model_of_a_tied_head(folder: Path) -> Made:
    model = llama(folder, tied=True)
    model.model.save_pretrained(folder)
    return Made(model)


@kind
def subfolder(folder: Path) -> Made:
    return Made(llama(folder / "step_3"), {"subfolder": "step_3"})


@kind
def pickle_that_was_chosen(folder: Path) -> Made:
    model = llama(folder)
    (folder / SAFE).unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return Made(model, {"weights": "pickle"})


@kind
def angles_of_positions_left_over(folder: Path) -> Made:
    model = llama(folder)
    change_weights(folder, lambda old: old | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    return Made(model)


@kind
def reward_head_left_over(folder: Path) -> Made:
    model = llama(folder)
    change_weights(folder, lambda old: old | {"v_head.summary.weight": torch.ones(1, WIDTH)})
    return Made(model)


@kind
def tokens_without_embeddings(folder: Path) -> Made:
    model, words = llama(folder), tokenizer()
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.add_tokens(["<|im_start|>"])
    words.save_pretrained(folder)
    return Made(model)


@kind
def known_architecture_with_code_of_its_own(folder: Path) -> Made:
    model = llama(folder)
    with_code(folder, ("AutoConfig", "AutoModelForCausalLM"), "modeling_llama")
    return Made(model)


@kind
def generation_code(folder: Path) -> Made:
    model = llama(folder)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code(folder))
    return Made(model)


# damaged ones


def damaged(change: Callable[[Path], None]) -> Kind:
    """A Llama with something wrong."""

    def make(folder: Path) -> Made:
        llama(folder)
        change(folder)
        return Made()

    return make


def half(folder: Path) -> None:
    path = folder / SAFE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def missing_shard(folder: Path) -> None:
    shutil.rmtree(folder)
    llama(folder, max_shard_size="100KB")
    next(iter(folder.glob("model-00002*"))).unlink()


def index_of_pickles(folder: Path) -> None:
    weights = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    torch.save(weights, folder / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "weights.bin")}
    (folder / f"{SAFE}.index.json").write_text(json.dumps(index))


def only_pickled(folder: Path) -> None:
    torch.save(load_file(folder / SAFE), folder / "pytorch_model.bin")
    (folder / SAFE).unlink()


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "no-output-layer": lambda folder: without(folder, "lm_head"),
    "no-mlp-in-one-layer": lambda folder: without(folder, "layers.1.mlp"),
    "other-shape": lambda folder: change_config(folder, intermediate_size=48),
    "fewer-layers-than-weights": lambda folder: change_config(folder, num_hidden_layers=1),
    "bias-left-over": lambda folder: change_weights(
        folder, lambda old: old | {"model.layers.0.self_attn.q_proj.bias": torch.ones(WIDTH)}
    ),
    "half-a-file": half,
    "git-lfs-pointer": lambda folder: (folder / SAFE).write_text(POINTER),
    "git-lfs-pointer-as-tokenizer": lambda folder: (folder / "tokenizer.json").write_text(POINTER),
    "empty-file": lambda folder: (folder / SAFE).write_bytes(b""),
    "missing-shard": missing_shard,
    "no-weights": lambda folder: (folder / SAFE).unlink(),
    "index-of-pickles": index_of_pickles,
    "pickle-that-was-not-chosen": only_pickled,
    "empty-config": lambda folder: (folder / "config.json").write_text(""),
    "config-is-a-list": lambda folder: (folder / "config.json").write_text("[1]"),
    "config-without-type": lambda folder: (folder / "config.json").write_text("{}"),
    "config-with-text-for-a-number": lambda folder: change_config(folder, hidden_size="wide"),
    "empty-tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "tokenizer-of-another-model": lambda folder: tokenizer(320).save_pretrained(folder),
}
KINDS |= {name: damaged(change) for name, change in DAMAGED.items()}


# foreign ones


def of_class(name: str, **sizes: Any) -> Kind:
    """A model of another kind, with a tokenizer beside it."""

    def make(folder: Path) -> Made:
        model_class = getattr(transformers, name)
        words = tokenizer()
        given = {"vocab_size": len(words), "max_position_embeddings": 1024, **sizes}
        model_class(model_class.config_class(**given)).save_pretrained(folder)
        words.save_pretrained(folder)
        return Made()

    return make


def diffusers(folder: Path) -> Made:
    llama(folder / "text_encoder")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return Made()


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ONE = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
KINDS |= {
    "bert": of_class("BertForMaskedLM", **SMALL),
    "vision-transformer": of_class("ViTModel", **SMALL, image_size=16, patch_size=8),
    "encoder-decoder": of_class("BartForConditionalGeneration", **ONE, encoder_attention_heads=2),
    "classifier": of_class("LlamaForSequenceClassification", **SMALL),
    "pipeline-of-diffusers": diffusers,
}


# code of checkpoints


def code(folder: Path) -> str:
    """Python that leaves a file where it runs."""
    return f"from pathlib import Path\nPath({str(folder.parent / 'code-ran')!r}).touch()\n"


def with_code(folder: Path, classes: tuple[str, ...], module: str) -> None:
    """Say that these classes are in a module that comes with the checkpoint."""
    change_config(folder, auto_map=dict.fromkeys(classes, f"{module}.Own"))
    (folder / f"{module}.py").write_text(code(folder))


@kind
def architecture_of_its_own(folder: Path) -> Made:
    llama(folder)
    with_code(folder, ("AutoConfig", "AutoModelForCausalLM"), "modeling_own")
    change_config(folder, model_type="made_up")
    return Made()


@kind
def tokenizer_of_its_own(folder: Path) -> Made:
    llama(folder)
    (folder / "tokenizer.json").unlink()
    names = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "tokenization_own.py").write_text(code(folder))
    return Made()


# quantized ones

UNPACKED = {"dequantize": True}


@kind
def fp8(folder: Path) -> Made:
    model = llama(folder)
    scales = {name: value.abs().max() / 448 for name, value in model.state_dict().items() if linear(name)}
    packed = {name: (model.state_dict()[name] / scale).to(torch.float8_e4m3fn) for name, scale in scales.items()}
    stored = {f"{name}_scale_inv": scale.reshape(1, 1) for name, scale in scales.items()}
    change_weights(folder, lambda old: old | packed | stored)
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    change_config(folder, quantization_config=method)
    right = {name: packed[name].float() * scale for name, scale in scales.items()}
    model.load_state_dict(model.state_dict() | right)
    return Made(model, UNPACKED)


@kind
def fp8_without_unpacking(folder: Path) -> Made:
    return Made(fp8(folder).right)


@kind
def fp8_that_config_json_conceals(folder: Path) -> Made:
    fp8(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return Made()


def packed_as(method: dict[str, Any], parts: tuple[str, ...]) -> Kind:
    """Linear layers as integers, under the names that a method gives them."""

    def make(folder: Path) -> Made:
        llama(folder)

        def pack(weights: dict[str, Tensor]) -> dict[str, Tensor]:
            kept = {name: value for name, value in weights.items() if not linear(name)}
            stems = [name.removesuffix("weight") for name in weights if linear(name)]
            return kept | {
                f"{stem}{part}": torch.zeros(8, 8, dtype=torch.int32) for stem in stems for part in parts
            }

        change_weights(folder, pack)
        change_config(folder, quantization_config=method)
        return Made()

    return make


FOUR_BITS = {"bits": 4, "group_size": 128}
INTEGERS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
GROUPS = {"config_groups": {"g": {"targets": ["Linear"], "weights": INTEGERS}}, "format": "pack-quantized"}
KINDS |= {
    "gptq": packed_as({"quant_method": "gptq", **FOUR_BITS}, ("qweight", "qzeros", "scales", "g_idx")),
    "awq": packed_as({"quant_method": "awq", "zero_point": True, **FOUR_BITS}, ("qweight", "qzeros", "scales")),
    "compressed-tensors": packed_as(
        {"quant_method": "compressed-tensors", **GROUPS}, ("weight_packed", "weight_scale")
    ),
    "a-method-unknown-to-transformers": packed_as({"quant_method": "modelopt"}, ("weight_scale",)),
}


@kind
def compressed_tensors_in_eight_bits(folder: Path) -> Made:
    if find_spec("compressed_tensors") is None:
        return packed_as({"quant_method": "compressed-tensors", **GROUPS}, ("weight_packed", "weight_scale"))(
            folder
        )
    model = llama(folder)
    rows = {name: value.abs().amax(1, True) / 448 for name, value in model.state_dict().items() if linear(name)}
    packed = {name: (model.state_dict()[name] / scale).to(torch.float8_e4m3fn) for name, scale in rows.items()}
    change_weights(folder, lambda old: old | packed | {f"{name}_scale": scale for name, scale in rows.items()})
    eight = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    groups = {"config_groups": {"g": {"targets": ["Linear"], "weights": eight}}, "format": "float-quantized"}
    method = {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "quantization_status": "compressed"}
    change_config(folder, quantization_config=method | groups)
    model.load_state_dict(
        model.state_dict() | {name: packed[name].float() * scale for name, scale in rows.items()}
    )
    return Made(model, UNPACKED)


def bitsandbytes(unpack: bool = True, **bits: Any) -> Kind:
    """Packed by bitsandbytes, through transformers."""

    def make(folder: Path) -> Made:
        llama(folder)
        config = transformers.BitsAndBytesConfig(**bits)
        packed = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
        shutil.rmtree(folder)
        packed.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return Made(packed.dequantize(torch.float32), UNPACKED if unpack else {})

    return make


KINDS |= {
    "bitsandbytes-4-bit": bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "bitsandbytes-8-bit": bitsandbytes(load_in_8bit=True),
    "bitsandbytes-without-unpacking": bitsandbytes(unpack=False, load_in_4bit=True),
}


# adapters


def adapter(
    config: PeftConfig, change: Callable[[Path], None] | None = None, wrong: bool = False, **settings: Any
) -> Kind:
    """An adapter in the folder ``adapter`` beside its base in ``base``."""

    def make(folder: Path) -> Made:
        place = folder.parent / f"{folder.name}-base"
        llama(place)
        adapted = get_peft_model(LlamaForCausalLM.from_pretrained(place), config)
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                value.data += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
        adapted.save_pretrained(folder / settings.get("subfolder", ""))
        if change is not None:
            change(folder)
        return Made(None if wrong else adapted.eval(), settings)

    return make


def change_adapter(folder: Path, **changes: Any) -> None:
    """Write other settings into adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def beside_its_base(folder: Path) -> None:
    for path in (folder.parent / f"{folder.name}-base").iterdir():
        shutil.copy(path, folder)


def pickled_adapter(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


def without_some(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "layers.1" not in name}, path)


LORA = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
HEADS = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
IA3 = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
PREFIX = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
KINDS |= {
    "lora": adapter(LORA),
    "lora-in-a-subfolder": adapter(LORA, subfolder="checkpoint-5"),
    "lora-beside-its-base": adapter(LORA, beside_its_base),
    "lora-with-a-relative-base": adapter(
        LORA, lambda folder: change_adapter(folder, base_model_name_or_path=f"../{folder.name}-base")
    ),
    "lora-with-embeddings": adapter(HEADS),
    "ia3": adapter(IA3),
    "prefix-tuning": adapter(PREFIX, wrong=True),
    "lora-whose-base-is-gone": adapter(
        LORA, lambda folder: change_adapter(folder, base_model_name_or_path="/no/such/model"), wrong=True
    ),
    "lora-without-a-base": adapter(
        LORA, lambda folder: change_adapter(folder, base_model_name_or_path=None), wrong=True
    ),
    "lora-without-weights": adapter(
        LORA, lambda folder: (folder / "adapter_model.safetensors").unlink(), wrong=True
    ),
    "lora-without-some-weights": adapter(LORA, without_some, wrong=True),
    "lora-of-another-rank": adapter(LORA, lambda folder: change_adapter(folder, r=2), wrong=True),
    "pickled-lora": adapter(LORA, pickled_adapter, wrong=True),
    "lora-of-a-classifier": adapter(LORA, lambda folder: change_adapter(folder, task_type="SEQ_CLS"), wrong=True),
}


# attention


@kind
def attention_that_does_not_exist(folder: Path) -> Made:
    llama(folder)
    return Made(settings={"attention": "flash_attention_2"})
