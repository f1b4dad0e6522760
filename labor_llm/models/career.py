"""CAREER: a transformer over occupation codes, trained from scratch or on from one trained on other careers."""

import json
import logging
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file
from torch import nn

from labor_llm.careers import Careers
from labor_llm.errors import ConfigError
from labor_llm.models.base import FACTS_FILE, Workspace
from labor_llm.models.sequence import SequenceModel
from labor_llm.sequences.batches import CodeScoringBatches
from labor_llm.sequences.codes import CodeBook
from labor_llm.sequences.training import SCORED_RECORDS
from labor_llm.sequences.transfer import transfer
from labor_llm.sequences.transformer import CareerTransformer
from labor_llm.taxonomy import Taxonomy

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Career(SequenceModel):
    """Vafa et al., "CAREER: A Foundation Model for Labor Sequence Data" (arXiv 2202.08370).

    The network is that of the reference code (``sequences.transformer``), and so is the two-stage head but for
    this: nobody can stay before the first record, and the probabilities of a row sum to one over the choice set,
    where the reference code gives some to its special symbols (``sequences.heads``).
    """

    layers: int = Field(default=12, ge=1)
    width: int = Field(default=192, ge=2)
    feed_forward: int = Field(default=768, ge=1)
    heads: int = Field(default=3, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    init_from: str | None = None
    """Run folder of a CAREER model to go on from, trained on other careers such as resumes; None starts anew."""

    shape_file: ClassVar[str] = "career.json"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the heads, {2 * self.heads}, got {self.width}")

    @property
    def _shape(self) -> dict[str, int]:
        """What must be the same in a model to go on from."""
        return {name: getattr(self, name) for name in ("layers", "width", "feed_forward", "heads")}

    def _network(self, book: CodeBook, logits: int) -> nn.Module:
        return CareerTransformer(book, logits, **self._shape, dropout=self.dropout)

    @torch.no_grad()
    def states(self, careers: Careers, workspace: Workspace) -> NDArray[np.float32]:
        """What the network knows of a career before each record's occupation, shape (N, width)."""
        self._check_fitted("states")
        network = self._module.model.eval()
        assert isinstance(network, CareerTransformer)
        coded = self._book.encode(careers)
        states_NE = np.empty((len(careers), self.width), dtype=np.float32)
        for batch in CodeScoringBatches(coded, SCORED_RECORDS, network.fills_rows):
            states_NE[batch["rows_T"].numpy()] = network.states(batch).numpy()
        return states_NE

    def _start(self) -> nn.Module:
        network = super()._start()
        if self.init_from is not None:
            self._take_over(network, _model_folder(Path(self.init_from)))
        return network

    def _take_over(self, network: nn.Module, folder: Path) -> None:
        """Go on from the model in a folder; its persons count as seen in training too."""
        shape = json.loads((folder / self.shape_file).read_text())
        wrong = [f"model.{name}={value}" for name, value in shape.items() if value != self._shape[name]]
        if wrong:
            raise ConfigError(f"model.init_from={self.init_from} has another shape: set {' '.join(wrong)}")
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        book = CodeBook.read(folder)
        shared = self._shared_occupations(book, Taxonomy.from_json(facts["taxonomy"]))
        transfer(network.state_dict(), self._book, load_file(folder / self.file), book)
        self._training_persons |= set(facts["training_persons"])
        logger.info(
            "%s goes on from %s: %d of %d occupations are known there; covariates new here: %s",
            self.name,
            self.init_from,
            len(shared),
            len(self.choice_set),
            ", ".join(sorted(self._book.columns.keys() - book.columns.keys())) or "none",
        )

    def _shared_occupations(self, book: CodeBook, taxonomy: Taxonomy) -> set[str]:
        """The codes of both choice sets; a ConfigError if one does not mean the same in both."""
        shared = set(self.choice_set) & set(book.occupations)
        for code in sorted(shared):
            here, there = self.taxonomy.title(code), taxonomy.title(code)
            if here != there:
                raise ConfigError(
                    f"model.init_from={self.init_from}: code {code!r} is {there!r} in its taxonomy "
                    f"{taxonomy.name!r} and {here!r} in {self.taxonomy.name!r}; occupations are matched by code"
                )
        return shared

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        (folder / self.shape_file).write_text(json.dumps(self._shape))


def _model_folder(run: Path) -> Path:
    """Where a complete run of a CAREER model keeps it."""
    if not (run / "complete").is_file():
        raise ConfigError(f"model.init_from={run} must be the folder of a complete run of model=career")
    if not (run / "model" / Career.shape_file).is_file():
        raise ConfigError(f"model.init_from={run} is a run of another model; it must be one of model=career")
    return run / "model"
