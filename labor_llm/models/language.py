"""The occupation model of LABOR-LLM: a causal language model that writes careers, read over the choice set."""

import json
import logging
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytorch_lightning as L
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from transformers import AutoTokenizer, PreTrainedModel

from labor_llm.careers import Careers
from labor_llm.errors import ConfigError, RunError
from labor_llm.language.adapters import Adapter
from labor_llm.language.backbones import Backbone
from labor_llm.language.batches import TrainingBatches, ValidationBatches
from labor_llm.language.context import every_record, last_record, most_recent
from labor_llm.language.finetune import FineTuning, TrainerSettings, fine_tune, score_careers
from labor_llm.language.memory import Plan, check_memory, longest
from labor_llm.language.prompts import PlainPrompt, Prompt, check_room
from labor_llm.language.scoring import RealizedScoring, Scoring
from labor_llm.language.states import prompt_states
from labor_llm.language.title_tokens import add_title_tokens, start_from_means
from labor_llm.language.token_files import encode_once
from labor_llm.language.tokens import CareerEncoder, EncodedCareers, Ids
from labor_llm.language.trials import Trial
from labor_llm.language.trie import TitleTrie
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.predictions import ChoiceProbabilities, RealizedProbabilities, choice_indices
from labor_llm.templates import Label, ResumeTemplate, Tokens

logger = logging.getLogger(__name__)

TOKENIZER_CAREERS = 20_000
"""Careers from which a tokenizer made from scratch learns."""


def context_of(model: PreTrainedModel) -> int:
    """Tokens that the model reads at most; without end for one whose config sets no end."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


@dataclass(kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class LanguageModel(OccupationModel):
    """P(occupation) = P(its title and terminator | header, earlier records, this record's prompt), normalised.

    After arXiv 2406.17972; here the terminator belongs to the title, so that no title begins another.
    """

    name: str
    backbone: Backbone
    adapter: Adapter
    template: ResumeTemplate
    label: Label
    scoring: Scoring
    trainer: TrainerSettings
    seed: int
    prompt: Prompt = Field(default_factory=PlainPrompt)

    file: ClassVar[str] = "language.json"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        if self.adapter.trains and not isinstance(self.prompt, PlainPrompt):
            raise ConfigError(
                f"prompt={self.prompt.name} is for models off the shelf: one that is fine-tuned learns from the "
                f"careers what a prompt would tell it. Use adapter=frozen, or prompt=plain with "
                f"adapter={self.adapter.name}."
            )
        L.seed_everything(self.seed, verbose=False)
        pieces = self._start(train)
        context = context_of(self.backbone.skeleton(self._encoder.tokenizer))
        if self._encoder.prompt:
            check_room(self.prompt, self._encoder, self._sample(train), context, self.backbone.name)
        if self.adapter.trains:
            training = self._training_careers(train, context, "training", workspace)
            validation = self._training_careers(valid, context, "validation", workspace)
            self._check_memory(longest(training.lengths, self.trainer.micro_batch_size))
            self._fine_tune(self._model(pieces), training, validation, workspace)
        else:
            self._check_memory((self.scoring.max_tokens,))
            model = self._model(pieces)
            self._module = FineTuning(model, self.trainer, total_steps=1, seed=self.seed)
            logger.info(
                "%s off the shelf, with %d tokens before every career (prompt=%s)",
                self.backbone.name,
                len(self._encoder.prompt),
                self.prompt.name,
            )

    def _check_memory(self, lengths: tuple[int, ...]) -> None:
        """A ConfigError if the run would not fit into memory; ``lengths`` are those of the longest careers."""
        plan = Plan(
            backbone=self.backbone,
            adapter=self.adapter,
            tokenizer=self._encoder.tokenizer,
            settings=self.trainer,
            scoring=self.scoring,
            lengths=lengths,
            tree=self._trie.nodes,
            shards=self.trainer.world if self.trainer.sharded else 1,
        )
        check_memory(plan)

    def _fine_tune(
        self, model: PreTrainedModel, training: EncodedCareers, validation: EncodedCareers, workspace: Workspace
    ) -> None:
        settings = self.trainer
        batches = TrainingBatches(
            training,
            settings.batch_size,
            settings.micro_batch_size,
            settings.loss_on,
            self.seed,
            settings.layout,
        )
        self._module = FineTuning(model, settings, settings.max_epochs * batches.steps, self.seed)
        self._module.trie, self._module.scoring = self._trie, self.scoring
        logger.info(
            "fine-tuning %s on %d careers: trains %.1f of %.1f million weights",
            self.name,
            len(training),
            sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6,
            sum(p.numel() for p in model.parameters()) / 1e6,
        )
        titles = {self._encoder.titles[code] for code in self.choice_set}  # others count in no perplexity
        validation = validation.with_targets(titles)
        held_out = ValidationBatches(validation, settings.micro_batch_size, settings.layout)
        self._module.check(Trial.of(training, context_of(model) - self._longest_title))
        fine_tune(self._module, batches, held_out, workspace.tracker, workspace.folder, workspace.progress)

    def _start(self, train: Careers) -> dict[int, Ids]:
        """Make the encoder, its tokenizer checked; the tokens that were added, with the pieces of their titles."""
        sample = self._sample(train)
        tokenizer = self.backbone.tokenizer(self.template.texts(sample, self.label))
        self._encoder = CareerEncoder(tokenizer, self.template, self.label, train.taxonomy)
        pieces: dict[int, Ids] = {}
        if isinstance(self.label, Tokens):
            pieces = add_title_tokens(self._encoder)
            self._encoder = CareerEncoder(tokenizer, self.template, self.label, train.taxonomy)
        self._encoder.check_boundaries(sample)
        if told := self.prompt.ids(self._encoder, train, self.choice_set):
            self._encoder = CareerEncoder(tokenizer, self.template, self.label, train.taxonomy, told)
        return pieces

    def _model(self, pieces: dict[int, Ids]) -> PreTrainedModel:
        """The model as it is before training."""
        model = self.backbone.model(self._encoder.tokenizer, self._dtype, self.adapter.quantization)
        start_from_means(model, pieces)
        return self.adapter.apply(model, self.backbone, list(pieces))

    @staticmethod
    def _sample(train: Careers) -> Careers:
        """Careers that a tokenizer learns from, or is checked on."""
        return train.select_persons(train.table["person_id"].unique(maintain_order=True)[:TOKENIZER_CAREERS])

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities | RealizedProbabilities:
        return self._scored(self._every_record(careers, workspace), careers.table["occupation"], workspace)

    def _predict_last(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities | RealizedProbabilities:
        tokens = encode_once(self._encoder, careers, workspace.tokens)
        encoded = last_record(tokens, context_of(self._module.model), self._longest_title)
        occupations_P = careers.table["occupation"].gather(careers.person_starts[1:] - 1)
        return self._scored(encoded, occupations_P, workspace)

    def _scored(
        self, encoded: EncodedCareers, occupations_N: pl.Series, workspace: Workspace
    ) -> ChoiceProbabilities | RealizedProbabilities:
        """The probabilities of all titles at the encoded records; ``occupations_N`` were realised."""
        realised_N = choice_indices(occupations_N, self.choice_set)
        scores = score_careers(self._module, encoded, realised_N, self._trie, self.scoring, workspace.progress)
        raw_NJ = scores.raw_QJ.double().numpy()
        if isinstance(self.scoring, RealizedScoring):
            return RealizedProbabilities(np.where(realised_N >= 0, raw_NJ[:, 0], np.nan))
        return ChoiceProbabilities.normalised(
            raw_NJ, scores.bound_Q.numpy() if self.scoring.allowed_error else None
        )

    def states(self, careers: Careers, workspace: Workspace) -> NDArray[np.float32]:
        """What the model knows when it is about to write each record's title: its last layer's state, (N, E)."""
        self._check_fitted("states")
        encoded, max_tokens = self._every_record(careers, workspace), self.scoring.max_tokens
        return prompt_states(self._module.model, encoded, self.trainer, max_tokens, workspace.progress)

    def _every_record(self, careers: Careers, workspace: Workspace) -> EncodedCareers:
        """Tokenize careers; those that the model's context does not hold in several views."""
        tokens = encode_once(self._encoder, careers, workspace.tokens)
        return every_record(tokens, context_of(self._module.model), self._longest_title)

    @property
    def _trie(self) -> TitleTrie:
        return TitleTrie.of([self._encoder.titles[code] for code in self.choice_set])

    @property
    def _longest_title(self) -> int:
        """In tokens; a realised title may be outside the choice set, and longer than any in it."""
        return max(map(len, self._encoder.titles.values()))

    def _training_careers(self, careers: Careers, context: int, part: str, workspace: Workspace) -> EncodedCareers:
        """Tokenize careers; of those that the model's context does not hold, the most recent records."""
        encoded = most_recent(encode_once(self._encoder, careers, workspace.tokens), context)
        if left_out := len(careers) - len(encoded.prompt_ends):
            logger.warning(
                "%d of %d %s records are further back than the %d tokens that %s reads: left out of the fit, the "
                "most recent records kept",
                left_out,
                len(careers),
                part,
                context,
                self.backbone.name,
            )
        return encoded

    @property
    def _dtype(self) -> torch.dtype:
        """The type of the backbone's weights."""
        if self.trainer.weights == "bf16":
            return torch.bfloat16
        mixed = torch.bfloat16 if self.trainer.resolved_precision == "bf16-mixed" else torch.float32
        return self.adapter.base_dtype(mixed)

    def _save(self, folder: Path) -> None:
        self.adapter.save(self._module.model, folder)
        self._encoder.tokenizer.save_pretrained(folder)
        revision = getattr(self._module.model.config, "_commit_hash", None)
        encoder = self._encoder
        facts = {
            "titles": encoder.fingerprint,
            "prefix": encoder.prefix,
            "revision": revision,
            "prompt": encoder.prompt,
        }
        (folder / self.file).write_text(json.dumps(facts))

    def _load(self, folder: Path) -> None:
        facts = json.loads((folder / self.file).read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        told = tuple(facts.get("prompt", ()))  # the first version wrote none
        self._encoder = CareerEncoder(tokenizer, self.template, self.label, self.taxonomy, told)
        prefix = tuple(facts.get("prefix", self._encoder.prefix))  # the first versions wrote none
        if (self._encoder.fingerprint, self._encoder.prefix) != (facts["titles"], prefix):
            raise RunError(
                f"the tokenizer in {folder} no longer gives the token ids that the model was trained with. "
                "It was changed, or this version of transformers reads it otherwise (see environment.txt)."
            )
        backbone = self.backbone.at(facts["revision"])
        model = self.adapter.load(folder, backbone, tokenizer, self._dtype)
        self._module = FineTuning(model, self.trainer, total_steps=1, seed=self.seed)
