"""Small models of the kinds that read codes, fitted in a second."""

from labor_llm.models.sequence import SequenceModel
from labor_llm.sequences.training import CodeTrainerSettings

COVARIATES = ("year", "education", "region", "gender", "ethnicity")


def trainer(**settings) -> CodeTrainerSettings:
    """Settings for forty careers."""
    defaults = {
        "learning_rate": 5e-3,
        "warmup_steps": 5,
        "max_epochs": 4,
        "batch_size": 16,
        "precision": "32-true",
        "accelerator": "cpu",
    }
    return CodeTrainerSettings(**defaults | settings)


def coded(kind: type[SequenceModel], **settings) -> SequenceModel:
    """A model of that kind, by default with two stages and all covariates."""
    defaults = {"name": "small", "covariates": COVARIATES, "two_stage": True, "trainer": trainer(), "seed": 0}
    return kind(**defaults | settings)
