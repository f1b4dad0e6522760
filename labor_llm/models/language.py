"""The occupation model of LABOR-LLM: a causal language model that writes careers, read over the choice set."""

import json
import logging
from pathlib import Path
from typing import ClassVar

import pytorch_lightning as L
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy.special import logsumexp
from transformers import AutoTokenizer, PreTrainedModel

from labor_llm.careers import Careers
from labor_llm.errors import DataError, RunError
from labor_llm.language.adapters import Adapter
from labor_llm.language.backbones import Backbone
from labor_llm.language.batches import TrainingBatches, ValidationBatches
from labor_llm.language.finetune import FineTuning, TrainerSettings, fine_tune, score_careers
from labor_llm.language.scoring import ExactScoring
from labor_llm.language.tokens import CareerEncoder, EncodedCareers
from labor_llm.language.trie import TitleTrie
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.predictions import ChoiceProbabilities
from labor_llm.templates import Label, ResumeTemplate

logger = logging.getLogger(__name__)

TOKENIZER_CAREERS = 20_000
"""Careers from which a tokenizer made from scratch learns."""


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
    scoring: ExactScoring
    trainer: TrainerSettings
    seed: int

    file: ClassVar[str] = "language.json"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        L.seed_everything(self.seed, verbose=False)
        sample = train.select_persons(train.table["person_id"].unique(maintain_order=True)[:TOKENIZER_CAREERS])
        tokenizer = self.backbone.tokenizer(self.template.texts(sample, self.label))
        self._encoder = CareerEncoder(tokenizer, self.template, self.label, train.taxonomy)
        self._encoder.check_boundaries(sample)
        model = self.adapter.apply(self.backbone.model(tokenizer, self._dtype), self.backbone)
        settings = self.trainer
        batches = TrainingBatches(
            self._encode(train, model),
            settings.batch_size,
            settings.micro_batch_size,
            settings.loss_on,
            self.seed,
        )
        self._module = FineTuning(model, settings, settings.max_epochs * batches.steps, self.seed)
        logger.info(
            "fine-tuning %s on %d careers: trains %.1f of %.1f million weights, precision %s",
            self.name,
            train.persons,
            sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6,
            sum(p.numel() for p in model.parameters()) / 1e6,
            settings.resolved_precision,
        )
        validation = ValidationBatches(self._encode(valid, model), settings.micro_batch_size)
        fine_tune(self._module, batches, validation, workspace.tracker, workspace.folder, workspace.progress)

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        trie = TitleTrie.of([self._encoder.titles[code] for code in self.choice_set])
        encoded = self._encode(careers, self._module.model)
        raw_NJ = score_careers(self._module, encoded, trie, self.scoring, workspace.progress).double().numpy()
        log_mass_N = logsumexp(raw_NJ, axis=1)
        return ChoiceProbabilities(raw_NJ - log_mass_N[:, None], log_mass_N)

    def _encode(self, careers: Careers, model: PreTrainedModel) -> EncodedCareers:
        """Tokenize careers that the model's context can hold."""
        encoded, context = self._encoder.encode(careers), int(model.config.max_position_embeddings)
        longest_title = max(map(len, self._encoder.titles.values()))
        needed_P = encoded.lengths + longest_title  # any title may be tried at the last record
        if (longest := int(needed_P.max())) > context:
            person = careers.table["person_id"][int(encoded.record_starts[needed_P.argmax()])]
            raise DataError(
                f"the career of person {person!r} takes {longest} tokens; {self.backbone.name} reads at most "
                f"{context}. Use a backbone with a longer context (for one from scratch, set backbone.context)."
            )
        return encoded

    @property
    def _dtype(self) -> torch.dtype:
        """The type of the weights that are not trained."""
        mixed = torch.bfloat16 if self.trainer.resolved_precision == "bf16-mixed" else torch.float32
        return self.adapter.base_dtype(mixed)

    def _save(self, folder: Path) -> None:
        self.adapter.save(self._module.model, folder)
        self._encoder.tokenizer.save_pretrained(folder)
        revision = getattr(self._module.model.config, "_commit_hash", None)
        facts = {"titles": self._encoder.fingerprint, "revision": revision}
        (folder / self.file).write_text(json.dumps(facts))

    def _load(self, folder: Path) -> None:
        facts = json.loads((folder / self.file).read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._encoder = CareerEncoder(tokenizer, self.template, self.label, self.taxonomy)
        if self._encoder.fingerprint != facts["titles"]:
            raise RunError(
                f"the tokenizer in {folder} no longer gives the token ids that the model was trained with. "
                "It was changed, or this version of transformers reads it otherwise (see environment.txt)."
            )
        backbone = self.backbone.at(facts["revision"])
        model = self.adapter.load(folder, backbone, tokenizer, self._dtype)
        self._module = FineTuning(model, self.trainer, total_steps=1, seed=self.seed)
