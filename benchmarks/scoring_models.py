"""The models that the scoring benchmark scores with, trained once and kept, and careers as their tokens."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.machine import ROOT
from labor_llm.careers import Careers
from labor_llm.evaluate import evaluate
from labor_llm.language.adapters import FullFineTuning
from labor_llm.language.backbones import ScratchBackbone
from labor_llm.language.batches import ScoringBatches
from labor_llm.language.finetune import TrainerSettings
from labor_llm.language.scoring import ExactScoring, PackedCareers, PrunedScoring
from labor_llm.language.trie import NONE
from labor_llm.models.base import Workspace
from labor_llm.models.language import LanguageModel
from labor_llm.predictions import Predictions
from labor_llm.splits import Splits
from labor_llm.templates import Label, ResumeTemplate

TOY = ScratchBackbone(
    name="toy", layers=2, width=32, heads=2, feed_forward=64, vocabulary=1000, context=1024, learning_rate=3e-3
)
PERSONS_TO_VALIDATE = 30
COMPLETE = "complete.json"
"""Written last into a model's folder: what was trained, and how well it predicts."""


def micro_backbone() -> ScratchBackbone:
    """The backbone of conf/backbone/micro.yaml."""
    settings = yaml.safe_load((ROOT / "conf" / "backbone" / "micro.yaml").read_text())
    settings["learning_rate"] = float(settings["learning_rate"])  # YAML 1.1 reads 6e-4 as text
    return ScratchBackbone(**{name: value for name, value in settings.items() if name != "_target_"})


@dataclass(frozen=True)
class Fitted:
    """A trained model and what scoring with it needs."""

    language: LanguageModel
    folder: Path
    perplexity: float
    """On validation persons, normalised over the choice set, first records included."""

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, in float32."""
        return self.language._module.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.language._encoder.tokenizer

    @property
    def titles(self) -> list[tuple[int, ...]]:
        """Token ids of the titles of the choice set, terminators included."""
        return [self.language._encoder.titles[code] for code in self.language.choice_set]

    def encode(self, career: Careers) -> PackedCareers:
        """The tokens of one person's career, as scoring reads them."""
        encoded, choices = self.language._encoder.encode(career), self.language.choice_set
        places = {code: place for place, code in enumerate(choices)}
        realised_N = np.array([places.get(code, NONE) for code in career.table["occupation"]])
        return ScoringBatches(encoded, realised_N, max_tokens=1)[0]["careers"]


def fitted(
    label: Label,
    backbone: ScratchBackbone,
    splits: Splits,
    choices: Sequence[str],
    epochs: int,
    folder: Path,
    device: str,
) -> Fitted:
    """The trained model, from ``folder`` if the same was trained before; an interrupted training resumes."""
    trainer = TrainerSettings(
        learning_rate=backbone.learning_rate, max_epochs=epochs, accelerator="cpu" if device == "cpu" else "gpu"
    )
    language = LanguageModel(
        name=f"{backbone.name}-{label.name}",
        backbone=backbone,
        adapter=FullFineTuning(learning_rate=backbone.learning_rate),
        template=ResumeTemplate(),
        label=label,
        scoring=ExactScoring(),
        trainer=trainer,
        seed=0,
    )
    key = hashlib.sha256(
        repr((backbone, replace(trainer, accelerator="auto"), choices, splits.train.fingerprint)).encode()
    ).hexdigest()[:8]
    folder = folder / f"{language.name}-{splits.train.dataset}-{key}"
    if not (folder / COMPLETE).is_file():
        workspace = Workspace(folder=folder / "checkpoints", progress=True)
        language.fit(splits.train, splits.valid, choices, workspace).save(folder)
        perplexity = _perplexity(_ready(language, folder, device), splits.valid)
        (folder / COMPLETE).write_text(json.dumps({"perplexity": perplexity}))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    facts = json.loads((folder / COMPLETE).read_text())
    return replace(_ready(language, folder, device), perplexity=facts["perplexity"])


def _ready(language: LanguageModel, folder: Path, device: str) -> Fitted:
    """The saved model in float32 on its device; also after training, so that all runs score with the same."""
    language.load(folder)
    language._module.model.to(device).float().eval()
    return Fitted(language, folder, float("nan"))


def _perplexity(model: Fitted, valid: Careers) -> float:
    """exp of minus the mean normalised log-probability of what was realised, for some persons.

    Of the pruned scoring: its realised titles are exact, and what they are normalised by is off by 1e-3 at most.
    """
    language, exact = model.language, model.language.scoring
    language.scoring = PrunedScoring()
    persons = valid.table["person_id"].unique(maintain_order=True)[:PERSONS_TO_VALIDATE]
    some = valid.select_persons(persons)
    predictions = Predictions.of(some, language.choice_set, language.predict(some), False)
    language.scoring = exact
    perplexity = evaluate(predictions).estimate("perplexity").value
    assert perplexity is not None
    return perplexity
