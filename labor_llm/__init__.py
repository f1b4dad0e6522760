"""Predict careers with language models, beside every rival, with honest standard errors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labor_llm.careers import Careers
    from labor_llm.datasets.table import Table
    from labor_llm.datasets.wage_panel import WagePanel
    from labor_llm.models.base import OccupationModel, choice_set
    from labor_llm.models.empirical import Empirical
    from labor_llm.models.language import LanguageModel
    from labor_llm.models.markov import Markov
    from labor_llm.predictions import Predictions
    from labor_llm.splits import SplitByPerson
    from labor_llm.taxonomy import Taxonomy

_HOMES = {
    "Careers": "careers",
    "Empirical": "models.empirical",
    "LanguageModel": "models.language",
    "Markov": "models.markov",
    "OccupationModel": "models.base",
    "Predictions": "predictions",
    "SplitByPerson": "splits",
    "Table": "datasets.table",
    "Taxonomy": "taxonomy",
    "WagePanel": "datasets.wage_panel",
    "choice_set": "models.base",
}

__all__ = [
    "Careers",
    "Empirical",
    "LanguageModel",
    "Markov",
    "OccupationModel",
    "Predictions",
    "SplitByPerson",
    "Table",
    "Taxonomy",
    "WagePanel",
    "choice_set",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line answers --help without loading torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'labor_llm' has no attribute {name!r}")
    return getattr(import_module(f"labor_llm.{_HOMES[name]}"), name)
