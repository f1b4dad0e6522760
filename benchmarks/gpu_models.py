"""What the GPU benchmark measures: models and their sizes, careers, and what they are trained with."""

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.llama import LLAMA_3_1_8B, LLAMA_3_2_1B, TOY, llama3_tokenizer, random_model
from benchmarks.panel import generated_panel
from benchmarks.training_rivals import Recipe
from labor_llm.careers import Careers
from labor_llm.language.adapters import FullFineTuning, Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.title_tokens import add_title_tokens
from labor_llm.language.tokens import CareerEncoder, EncodedCareers
from labor_llm.templates import Label, ResumeTemplate, Titles, Tokens


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model and how much of the panel it reads."""

    name: str
    config: dict[str, Any]
    careers: int
    """To train on, once."""
    careers_per_pass: int
    scored: int
    """Careers whose records are scored by the project."""
    rival_records: int
    """Records that the slow way scores: its time per record is what counts."""
    full: bool
    """Whether all weights are trained too; with their AdamW moments they take 16 bytes each."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is measured, on one device."""

    device: str
    models: tuple[Size, ...]
    careers_per_step: int
    max_records: int
    warm_up: int
    vocabulary: int
    row_tokens: int
    max_tokens: int
    """Tokens in one forward pass of scoring."""


def plan(toy: bool) -> Plan:
    """The real sizes on the GPU, or some that take seconds on the processor."""
    if toy:
        small = Size(
            name="toy-1b",
            config=TOY,
            careers=16,
            careers_per_pass=4,
            scored=2,
            rival_records=1,
            full=True,
        )
        return Plan(
            device="cpu",
            models=(small, replace(small, name="toy-8b", full=False)),
            careers_per_step=4,
            max_records=8,
            warm_up=1,
            vocabulary=600,
            row_tokens=512,
            max_tokens=4096,
        )
    one_billion = Size(
        name="llama-3.2-1b",
        config=LLAMA_3_2_1B,
        careers=1600,
        careers_per_pass=16,
        scored=24,
        rival_records=8,
        full=True,
    )
    eight_billion = Size(
        name="llama-3.1-8b",
        config=LLAMA_3_1_8B,
        careers=320,
        careers_per_pass=4,
        scored=8,
        rival_records=2,
        full=False,
    )
    return Plan(
        device="cuda",
        models=(one_billion, eight_billion),
        careers_per_step=16,
        max_records=40,
        warm_up=5,
        vocabulary=4096,
        row_tokens=1024,
        max_tokens=4096,
    )


@dataclass
class Bench:
    """What the parts share: the plan, the careers, and the weights that one part leaves to the next."""

    plan: Plan
    dtype: torch.dtype
    """Of products; bfloat16 on a GPU."""
    matmul: float
    kept: dict[str, PreTrainedModel] = field(default_factory=dict)

    @cached_property
    def careers(self) -> Careers:
        """The generated panel."""
        persons = max(size.careers for size in self.plan.models)
        return generated_panel(persons, seed=0, max_records=self.plan.max_records)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Made from the panel's texts."""
        return llama3_tokenizer(ResumeTemplate().texts(self.careers, Titles()), self.plan.vocabulary)

    def first_careers(self, persons: int) -> Careers:
        """So many of the panel's."""
        return self.careers.select_persons(self.careers.table["person_id"].unique(maintain_order=True)[:persons])

    def encoded(self, size: Size) -> EncodedCareers:
        """What a model is trained on, with titles as labels."""
        return self.encoder(Titles()).encode(self.first_careers(size.careers))

    def encoder(self, label: Label) -> CareerEncoder:
        """A label's titles under a tokenizer of its own: the token label adds titles to it."""
        tokenizer, taxonomy = copy.deepcopy(self.tokenizer), self.careers.taxonomy
        encoder = CareerEncoder(tokenizer, ResumeTemplate(), label, taxonomy)
        if isinstance(label, Tokens):
            add_title_tokens(encoder)
            return CareerEncoder(tokenizer, ResumeTemplate(), label, taxonomy)
        return encoder

    def trainable(self, size: Size, adapter: str) -> PreTrainedModel:
        """A fresh model as the project would train it: float32 weights, or adapters on a base of ``dtype``."""
        backbone = HubBackbone(name=size.name, path=size.name)
        method = Lora(dropout=0.0) if adapter == "lora" else FullFineTuning(learning_rate=2e-5)
        model = random_model(size.config, method.base_dtype(self.dtype), self.plan.device)
        return method.apply(model, backbone)

    def recipe(self, size: Size) -> Recipe:
        """One epoch for everybody, at a rate that random weights learn with."""
        return Recipe(
            learning_rate=3e-4,
            careers_per_step=self.plan.careers_per_step,
            careers_per_pass=size.careers_per_pass,
            epochs=1,
            row_tokens=self.plan.row_tokens,
            bf16=self.dtype == torch.bfloat16,
            seed=0,
            device=self.plan.device,
        )
