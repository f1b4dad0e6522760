"""Simulated careers whose true probabilities are known, so that it is known how good a model could be.

Nobody's career is in them. With b and e the occupations of the last record and the one before it, x the
covariates at the record and z the worker's type, which nobody sees, occupation j follows with probability

    P(j | b, e, x, z)  proportional to  exp(types[z, j] + before[b, j] + earlier[e, j] + effects[x, j]
                                            + 1[j = b] (stay[z] + settled 1[b = e]))

and the truth for who does not see z is sum_z P(z | past) P(j | b, e, x, z), where P(z | past) follows from Bayes'
rule record by record. That is exact, since covariates come about without regard to z and to occupations. The
coefficients are random numbers and say nothing about the groups that they are named after. They are the same for
every ``seed``, so simulations of different seeds are samples of one population; no person is in two of them.

Legend: N records, P persons (those with a record at the step at hand), J occupations of the choice set, I = J + 2
pasts: an occupation, J for none, J + 1 for one that the process never makes. K types.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy.special import log_softmax, logsumexp

from labor_llm.careers import Careers
from labor_llm.datasets.report import Report
from labor_llm.datasets.survey import EDUCATION
from labor_llm.predictions import choice_indices
from labor_llm.splits import SplitByPerson
from labor_llm.taxonomy import Taxonomy

LEVELS: Mapping[str, tuple[str, ...]] = {
    "education": EDUCATION,
    "gender": ("female", "male"),
    "ethnicity": ("black", "hispanic", "white"),
    "region": ("north central", "northeast", "south", "west"),
}
SPREADS = {"education": 0.7, "gender": 0.5, "ethnicity": 0.3, "region": 0.3, "age": 0.3}
"""Standard deviation of the effects on utilities; of age per ten years."""
PROCESS_SEED = 2406
RISES = 0.05
"""How often education rises from one record to the next."""
BORN, STARTS = (1957, 1980), (18, 22)
"""First and last year of birth; youngest and oldest age at the first record."""
MIDDLE_AGE = 30


@plain_dataclass(frozen=True)
class Process:
    """How occupations come about: the coefficients of the formula at the head of the module."""

    choice_set: tuple[str, ...]
    shares_K: NDArray[np.float64]
    """How frequent each type is."""
    types_KJ: NDArray[np.float64]
    before_IJ: NDArray[np.float64]
    earlier_IJ: NDArray[np.float64]
    stay_K: NDArray[np.float64]
    settled: float
    effects: Mapping[str, NDArray[np.float64]]
    """Covariate -> utilities by level, and none for an unknown level, shape (levels + 1, J)."""
    age_J: NDArray[np.float64]
    """Utility per ten years beyond ``MIDDLE_AGE``; an unknown age has no effect."""

    def effects_NJ(self, table: pl.DataFrame) -> NDArray[np.float64]:
        """The utilities that the covariates of every record give, shape (N, J)."""
        age_N = (table["year"] - table["birth_year"] - MIDDLE_AGE).fill_null(0).to_numpy() / 10
        utilities_NJ = age_N[:, None] * self.age_J
        for name, of_level in self.effects.items():
            utilities_NJ += of_level[choice_indices(table[name], LEVELS[name])]  # -1, unknown, is the last row
        return utilities_NJ

    def log_probs(
        self, effects_PJ: NDArray[np.float64], before_P: NDArray[np.int64], earlier_P: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Log-probabilities of the next occupation for a worker of each type, shape (P, K, J)."""
        shared_PJ = effects_PJ + self.before_IJ[before_P] + self.earlier_IJ[earlier_P]
        utilities_PKJ = shared_PJ[:, None] + self.types_KJ
        (known,) = np.nonzero(before_P < len(self.choice_set))
        settled_P = self.settled * (before_P == earlier_P)[known]
        utilities_PKJ[known, :, before_P[known]] += self.stay_K + settled_P[:, None]
        return log_softmax(utilities_PKJ, axis=-1)

    def draw(self, table: pl.DataFrame, starts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """An occupation for every record of a table of covariates, as places in the choice set, shape (N,)."""
        types = rng.choice(len(self.shares_K), len(starts) - 1, p=self.shares_K)
        effects_NJ, places_N = self.effects_NJ(table), np.empty(table.height, dtype=np.int64)
        for persons, rows, before_P, earlier_P in self._steps(starts, places_N):
            log_probs_PKJ = self.log_probs(effects_NJ[rows], before_P, earlier_P)
            log_probs_PJ = log_probs_PKJ[np.arange(len(rows)), types[persons]]
            places_N[rows] = (log_probs_PJ + rng.gumbel(size=log_probs_PJ.shape)).argmax(1)
        return places_N

    def true_log_probs(self, careers: Careers) -> NDArray[np.float64]:
        """Log-probabilities given the past but not the type, in nats, shape (N, J).

        Bayes' rule is applied to the type at every record. What the process never makes, an unknown covariate or
        an occupation outside its choice set, has no effect and tells nothing of the type.
        """
        size = len(self.choice_set)
        places_N = choice_indices(careers.table["occupation"], self.choice_set)
        places_N = np.where(places_N < 0, size + 1, places_N)
        effects_NJ, log_probs_NJ = self.effects_NJ(careers.table), np.empty((len(careers), size))
        log_types = np.tile(np.log(self.shares_K), (careers.persons, 1))
        for persons, rows, before_P, earlier_P in self._steps(careers.person_starts, places_N):
            log_probs_PKJ = self.log_probs(effects_NJ[rows], before_P, earlier_P)
            log_probs_NJ[rows] = logsumexp(log_types[persons, :, None] + log_probs_PKJ, axis=1)
            (seen,) = np.nonzero(places_N[rows] < size)
            log_types[persons[seen]] += log_probs_PKJ[seen, :, places_N[rows[seen]]]
            log_types = log_softmax(log_types, axis=1)
        return log_probs_NJ

    def _steps(
        self, starts: NDArray[np.int64], places_N: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """First, second, third, ... records: persons who have one, its row, and the two occupations before it."""
        counts = np.diff(starts)
        none = len(self.choice_set)
        for step in range(int(counts.max())):
            (persons,) = np.nonzero(counts > step)
            rows = starts[persons] + step
            nothing = np.full(len(rows), none)
            before_P = places_N[rows - 1] if step >= 1 else nothing
            yield persons, rows, before_P, places_N[rows - 2] if step >= 2 else nothing


@cache
def process(taxonomy: str, occupations: int, types: int) -> Process:
    """The process over so many occupations of a packaged taxonomy and all its states; always the same."""
    rng = np.random.default_rng((PROCESS_SEED, occupations, types))
    known = Taxonomy.packaged(taxonomy)
    chosen = set(rng.permutation(_occupations(known))[:occupations]) | known.states
    codes = tuple(code for code in known.codes if code in chosen)
    size = len(codes)
    before_IJ, earlier_IJ = (_utilities(rng, size + 1, size, spread) for spread in (0.8, 0.5))
    earlier_IJ[np.arange(size), np.arange(size)] += 1.2  # many return
    return Process(
        choice_set=codes,
        shares_K=np.full(types, 1 / types),
        types_KJ=rng.normal(0, 0.8, (types, size)),
        before_IJ=before_IJ,
        earlier_IJ=earlier_IJ,
        stay_K=np.linspace(1.0, 3.2, types),
        settled=0.7,
        effects={name: _utilities(rng, len(LEVELS[name]), size, SPREADS[name]) for name in LEVELS},
        age_J=rng.normal(0, SPREADS["age"], size),
    )


def _utilities(rng: np.random.Generator, rows: int, size: int, spread: float) -> NDArray[np.float64]:
    """Random utilities, and a last row without any for what is unknown, shape (rows + 1, J)."""
    return np.vstack([rng.normal(0, spread, (rows, size)), np.zeros(size)])


def _occupations(taxonomy: Taxonomy) -> list[str]:
    return [code for code in taxonomy.codes if code not in taxonomy.states]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Simulated:
    """Settings of simulated careers; nothing needs to be downloaded."""

    name: str = "simulated"
    persons: int = Field(default=2000, ge=3)
    min_records: int = Field(default=5, ge=1)
    max_records: int = Field(default=15, ge=1, le=60)
    """A person has so many records, one a year; every number in between is as frequent."""
    taxonomy: str = "occ1990dd"
    """A packaged taxonomy."""
    occupations: int = Field(default=20, ge=2)
    """How many of the taxonomy's occupations there are; its states are all there."""
    types: int = Field(default=3, ge=1)
    """Types of workers, which differ in what they do and in how long they stay; 1: nothing is hidden."""
    seed: int = Field(default=0, ge=0)
    """Who is drawn; the process is the same for every seed."""
    split: SplitByPerson = Field(default_factory=SplitByPerson)

    def __post_init__(self) -> None:
        if self.min_records > self.max_records:
            raise ValueError(
                f"min_records must be at most max_records, got {self.min_records} and {self.max_records}"
            )
        known = len(_occupations(Taxonomy.packaged(self.taxonomy)))
        if self.occupations > known:
            raise ValueError(
                f"occupations must be at most {known}, which taxonomy {self.taxonomy!r} has beside its states; "
                f"got {self.occupations}"
            )

    @property
    def files(self) -> tuple[()]:
        """None: the careers are drawn."""
        return ()

    @property
    def process(self) -> Process:
        """What the careers are drawn from."""
        return process(self.taxonomy, self.occupations, self.types)

    @property
    def choice_set(self) -> tuple[str, ...]:
        """The occupations that the process makes."""
        return self.process.choice_set

    def true_log_probs(self, careers: Careers) -> NDArray[np.float64]:
        """The true log-probabilities of ``choice_set`` for every record, in nats, shape (N, J).

        Given the person's earlier occupations and the covariates known at the record, as a model sees them.
        """
        return self.process.true_log_probs(careers)

    def parts(self, report: Report) -> Iterator[Careers]:
        """The careers, in one part; wage and weight stay null."""
        rng = np.random.default_rng((PROCESS_SEED, self.seed))
        counts = rng.integers(self.min_records, self.max_records + 1, self.persons)
        starts = np.append(0, counts.cumsum())
        table = self._covariates(counts, rng)
        places_N = self.process.draw(table, starts, rng)
        table = table.with_columns(occupation=pl.Series(np.array(self.choice_set)[places_N]))
        report.count("simulated", table)
        taxonomy, source = Taxonomy.packaged(self.taxonomy), f"simulated, seed {self.seed}"
        yield Careers.validated(table, dataset=self.name, taxonomy=taxonomy, source=source)

    def _covariates(self, counts: NDArray[np.int64], rng: np.random.Generator) -> pl.DataFrame:
        """All columns but the occupation, a record a year."""
        person_N = np.repeat(np.arange(self.persons), counts)
        record_N = np.arange(len(person_N)) - np.repeat(counts.cumsum() - counts, counts)
        born = rng.integers(BORN[0], BORN[1] + 1, self.persons)
        first = born + rng.integers(STARTS[0], STARTS[1] + 1, self.persons)
        columns: dict[str, Any] = {
            "person_id": np.array([f"{self.seed}-{person:07d}" for person in range(self.persons)])[person_N],
            "survey": np.full(len(person_N), "Simulated"),
            "year": first[person_N] + record_N,
            "birth_year": born[person_N],
            "education": self._education(person_N, record_N, rng),
        }
        for name in ("gender", "ethnicity", "region"):
            columns[name] = rng.choice(LEVELS[name], self.persons)[person_N]
        return pl.DataFrame(columns)

    def _education(
        self, person_N: NDArray[np.int64], record_N: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.str_]:
        """A level that rises now and then, up to the highest."""
        first = rng.integers(0, 4, self.persons)
        rises_N = (rng.random(len(person_N)) < RISES) & (record_N > 0)
        total_N = rises_N.cumsum()
        before_N = total_N[record_N == 0][person_N]
        top = len(LEVELS["education"]) - 1
        return np.array(LEVELS["education"])[np.minimum(first[person_N] + total_N - before_N, top)]
