"""How much is computed of the distribution over the choice set, and what comes of it.

A title's probability is the product over its tokens, the terminator's included (design: no title is then the
beginning of another, so the titles' probabilities cannot sum to more than one).

Legend: T tokens of all careers of a batch, Q records, J titles.
"""

from dataclasses import dataclass as plain_dataclass

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from labor_llm.events import BLOCK

LOGITS_PER_PASS = 2**28
"""Logits that one forward pass may give: a gigabyte in float32."""
SETTINGS = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Scoring:
    """How much is computed of the distribution over the choice set."""

    name: str
    max_tokens: int = Field(default=4096, ge=1)
    """Tokens in one forward pass over careers or over nodes of their trees; bounds the memory."""

    @property
    def allowed_error(self) -> float:
        """How far the probability of any set of titles may be from the exact one."""
        return 0.0

    @property
    def all_titles(self) -> bool:
        """Whether the titles of the choice set are scored, or only those that stand in the careers."""
        return True


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ExactScoring(Scoring):
    """Every title of the choice set, exactly."""

    name: str = "exact"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PrunedScoring(Scoring):
    """Titles that begin improbably share the probability of their beginning.

    Before normalisation, realised titles stay exact; what they are normalised by is too large by at most the
    share ``tolerance``.
    """

    name: str = "pruned"
    tolerance: float = Field(default=1e-3, ge=0, lt=1)
    """How far the probability of any set of titles may be from the exact one."""

    @property
    def allowed_error(self) -> float:
        return self.tolerance


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RealizedScoring(Scoring):
    """Only the occupation that was realised, before normalisation: one forward pass per career."""

    name: str = "realized"

    @property
    def all_titles(self) -> bool:
        return False


def tokens_per_pass(scoring: Scoring, vocabulary: int) -> int:
    """The budget of one forward pass, smaller where the vocabulary is large."""
    return min(scoring.max_tokens, max(1, LOGITS_PER_PASS // vocabulary))


@plain_dataclass(frozen=True)
class PackedCareers:
    """Careers laid end to end in one row, and the records to score in them, career after career."""

    ids_T: Tensor
    career_starts: list[int]
    """First token of every career, and the end of the last."""
    careers_Q: Tensor
    """The career of every record, ascending."""
    prompt_ends_Q: Tensor
    """Where in the row its title begins."""
    title_ends_Q: Tensor
    """The token after its title's last, the terminator."""
    realised_Q: Tensor
    """The place of its title in the choice set, NONE if it is outside."""

    def to(self, device: torch.device) -> "PackedCareers":
        """The same on another device; Lightning calls this too."""
        return PackedCareers(
            self.ids_T.to(device),
            self.career_starts,
            self.careers_Q.to(device),
            self.prompt_ends_Q.to(device),
            self.title_ends_Q.to(device),
            self.realised_Q.to(device),
        )

    @property
    def positions_T(self) -> Tensor:
        """Every token's place in its own career."""
        starts = torch.tensor(self.career_starts)
        places = torch.arange(len(self.ids_T)) - starts[:-1].repeat_interleave(starts.diff())
        return places.to(self.ids_T.device)


@plain_dataclass(frozen=True)
class Scores:
    """What the titles' trees gave."""

    raw_QJ: Tensor
    """Log-probabilities before normalisation, float32; titles below an unexpanded node share its probability.
    Of realised titles only: one column."""
    unexpanded_Q: Tensor
    """Probability of all unexpanded nodes together, float64."""

    @property
    def sums_Q(self) -> Tensor:
        """What each row sums to before normalisation, float64."""
        return torch.cat([rows_BJ.double().exp().sum(1) for rows_BJ in self.raw_QJ.split(BLOCK)])

    @property
    def bound_Q(self) -> Tensor:
        """After normalisation, no event's probability (no set of titles') is further from the exact one."""
        return self.unexpanded_Q / self.sums_Q
