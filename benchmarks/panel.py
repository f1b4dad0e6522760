"""A generated panel of careers over all occupations of occ1990dd, of any size, that may be shown to anyone.

    python -m benchmarks.panel      the panel's facts: stays, movers, and how well the process itself predicts

Nobody's career is in it. It has what decides the cost of scoring and training: all 335 titles, careers of very
different lengths, and a next occupation that is about as hard to predict as on real panels: the process that makes
the careers has a perplexity of 8.6 itself, first records included, which no model can beat (the command above).

A worker stays with probability 0.63. One who moves goes back to an earlier occupation, or takes a popular one, or
one from a list of destinations that the occupation left has of its own. The process is the same for every seed, so
panels of different seeds are samples of one population, and never share a person.

Legend: P persons, T years of the longest career, J occupations, K destinations, N records.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console

from labor_llm.careers import Careers
from labor_llm.taxonomy import Taxonomy

TAXONOMY = "occ1990dd"
STAY, BACK, POPULAR = 0.63, 0.12, 0.25
"""P(stay), P(go back | move), P(take a popular one | move); else a destination of the occupation that is left."""
DESTINATIONS = 12
PROCESS_SEED = 1990
SURVEYS = (("NLSY79", 1979, 1957, 1964), ("NLSY97", 1982, 1957, 1964), ("PSID", 1975, 1935, 1957))
"""Name, first year, and first and last year of birth."""
EDUCATION = ("less than high school", "high school", "some college", "college", "graduate degree")
REGIONS = ("northeast", "northcentral", "south", "west")
ETHNICITIES, ETHNICITY_SHARES = ("white", "black", "hispanic"), (0.6, 0.25, 0.15)

Occupations = NDArray[np.int64]
"""Places in the taxonomy's order; shape (P, T), what follows a career's end means nothing."""


@dataclass(frozen=True)
class Process:
    """How careers come about."""

    popularity_J: NDArray[np.float64]
    destinations_JJ: NDArray[np.float64]
    """P(destination | mover with a list, origin); nothing on the diagonal."""

    def draw(self, persons: int, years: int, rng: np.random.Generator) -> Occupations:
        """Careers that all last for so many years."""
        occupations_PT = np.empty((persons, years), dtype=np.int64)
        occupations_PT[:, 0] = rng.choice(len(self.popularity_J), persons, p=self.popularity_J)
        cumulative_JJ = self.destinations_JJ.cumsum(1)
        for year in range(1, years):
            now = occupations_PT[:, year - 1]
            back = self._earlier(occupations_PT[:, : year - 1], now, rng.random(persons))
            popular = self._popular(now, rng.random(persons))
            listed = _first_above(cumulative_JJ[now], rng.random(persons))
            kind = rng.random(persons)
            returning = np.where(back < 0, listed, back)
            moved = np.select([kind < BACK, kind < BACK + POPULAR], [returning, popular], listed)
            occupations_PT[:, year] = np.where(rng.random(persons) < STAY, now, moved)
        return occupations_PT

    def log_probs(self, occupations_PT: Occupations) -> NDArray[np.float64]:
        """Log-probability of every occupation given those before it, in nats, (P, T)."""
        log_probs_PT = np.empty(occupations_PT.shape)
        log_probs_PT[:, 0] = np.log(self.popularity_J[occupations_PT[:, 0]])
        for year in range(1, occupations_PT.shape[1]):
            past, now, after = occupations_PT[:, :year], occupations_PT[:, year - 1], occupations_PT[:, year]
            others = (past != now[:, None]).sum(1)
            back = np.where(others > 0, (past == after[:, None]).sum(1) / np.maximum(others, 1), 0.0)
            popular = self.popularity_J[after] / (1 - self.popularity_J[now])
            listed = self.destinations_JJ[now, after] * (1 - POPULAR - np.where(others > 0, BACK, 0.0))
            move = (1 - STAY) * (BACK * back + POPULAR * popular + listed)
            log_probs_PT[:, year] = np.log(np.where(after == now, STAY, move))
        return log_probs_PT

    @staticmethod
    def _earlier(past_PT: Occupations, now_P: Occupations, uniform_P: NDArray[np.float64]) -> Occupations:
        """The occupation of a past record drawn from those with another one than now; -1 if there are none."""
        if past_PT.shape[1] == 0:
            return np.full(len(now_P), -1)
        others_PT = (past_PT != now_P[:, None]).cumsum(1)
        drawn = _first_above(others_PT, uniform_P * others_PT[:, -1])
        return np.where(others_PT[:, -1] > 0, past_PT[np.arange(len(now_P)), drawn], -1)

    def _popular(self, now_P: Occupations, uniform_P: NDArray[np.float64]) -> Occupations:
        """An occupation drawn by popularity from those that are not the present one."""
        ends_J = self.popularity_J.cumsum()
        share_P = self.popularity_J[now_P]
        place_P = uniform_P * (1 - share_P)
        place_P = np.where(place_P >= ends_J[now_P] - share_P, place_P + share_P, place_P)
        drawn_P = np.searchsorted(ends_J, place_P, side="right").clip(max=len(ends_J) - 1)
        return np.where(drawn_P == now_P, (now_P + 1) % len(ends_J), drawn_P)  # rounding at the boundary


def _first_above(cumulative_PJ: NDArray[np.float64], places_P: NDArray[np.float64]) -> Occupations:
    """Per row, the first column whose cumulative sum exceeds the place."""
    return np.minimum((cumulative_PJ <= places_P[:, None]).sum(1), cumulative_PJ.shape[1] - 1)


@cache
def process(occupations: int) -> Process:
    """The process over so many occupations: popularity after Zipf, lists that every occupation is on as often."""
    rng = np.random.default_rng(PROCESS_SEED)
    popularity_J = rng.permutation(1 / (10 + np.arange(occupations)))
    popularity_J /= popularity_J.sum()
    weights_JJ = np.zeros((occupations, occupations))
    for rank in range(DESTINATIONS):
        weights_JJ[np.arange(occupations), rng.permutation(occupations)] += 1 / (1 + rank)
    weights_JJ *= np.sqrt(popularity_J)
    np.fill_diagonal(weights_JJ, 0)
    return Process(popularity_J, weights_JJ / weights_JJ.sum(1, keepdims=True))


def generated_panel(persons: int, seed: int, min_records: int = 5, max_records: int = 40) -> Careers:
    """Careers of so many persons, a record a year, short careers more frequent than long ones.

    Every occupation occurs once there are about 2,000 persons. Same arguments, same table.
    """
    if not 1 <= min_records <= max_records or persons < 1:
        raise ValueError(f"got persons={persons}, min_records={min_records}, max_records={max_records}")
    rng = np.random.default_rng((PROCESS_SEED, seed))
    taxonomy = Taxonomy.packaged(TAXONOMY)
    span = max_records - min_records + 1
    counts_P = min_records + (span * rng.random(persons) ** 1.5).astype(np.int64)
    occupations_PT = process(len(taxonomy.codes)).draw(persons, max_records, rng)
    columns = _constant_columns(persons, seed, rng)
    known_PT = np.arange(max_records) < counts_P[:, None]
    person_N, year_N = np.nonzero(known_PT)
    levels_PT = _rising(rng.integers(0, 4, persons), rng.random(known_PT.shape) < 0.03)
    table = pl.DataFrame(columns)[person_N].with_columns(
        pl.Series("year", columns["first_year"][person_N] + year_N),
        pl.Series("occupation", np.array(taxonomy.codes)[occupations_PT[known_PT]]),
        pl.Series("education", np.array(EDUCATION)[levels_PT[known_PT]]),
    )
    source = f"benchmarks/panel.py, seed {seed}"
    return Careers.validated(table.drop("first_year"), dataset="generated", taxonomy=taxonomy, source=source)


def _constant_columns(persons: int, seed: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """What is the same in all records of a person, and the year of the first record."""
    survey_P = rng.integers(0, len(SURVEYS), persons)
    names, first_years, born_from, born_to = (np.array(values) for values in zip(*SURVEYS, strict=True))
    return {
        "person_id": np.array([f"g{seed}-{person:07d}" for person in range(persons)]),
        "survey": names[survey_P],
        "first_year": first_years[survey_P] + rng.integers(0, 5, persons),
        "gender": rng.choice(["female", "male"], persons),
        "ethnicity": rng.choice(ETHNICITIES, persons, p=ETHNICITY_SHARES),
        "birth_year": rng.integers(born_from[survey_P], born_to[survey_P] + 1),
        "region": rng.choice(REGIONS, persons),
    }


def _rising(first_P: NDArray[np.int64], steps_PT: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Levels of education that rise with every step, up to the highest."""
    return np.minimum(first_P[:, None] + steps_PT.cumsum(1), len(EDUCATION) - 1)


def process_log_probs(careers: Careers) -> NDArray[np.float64]:
    """What the process gives to each record of a generated panel, in nats, shape (N,): no model can do better."""
    codes = careers.taxonomy.codes
    places = {code: place for place, code in enumerate(codes)}
    occupations_N = careers.table["occupation"].replace_strict(places, return_dtype=pl.Int64).to_numpy()
    counts_P = np.diff(careers.person_starts)
    known_PT = np.arange(counts_P.max()) < counts_P[:, None]
    occupations_PT = np.zeros(known_PT.shape, dtype=np.int64)
    occupations_PT[known_PT] = occupations_N
    with np.errstate(divide="ignore"):  # after a career's end
        return process(len(codes)).log_probs(occupations_PT)[known_PT]


def stay_rate(careers: Careers) -> float:
    """The share of records, a person's first left out, with the occupation of the record before."""
    stays = (careers.table["occupation"] == careers.previous).drop_nulls()  # null at first records
    return int(stays.sum()) / len(stays)


def process_perplexity(careers: Careers) -> float:
    """exp of minus the process's mean log-probability, first records included: as a model's perplexity."""
    return _perplexity(process_log_probs(careers))


def _perplexity(log_probs_N: NDArray[np.float64]) -> float:
    return float(np.exp(-log_probs_N.mean()))


def main() -> None:
    """Print the facts of a panel of 20,000 persons."""
    careers = generated_panel(20_000, seed=0)
    log_probs_N, previous = process_log_probs(careers), careers.previous
    moves_N = (previous != careers.table["occupation"]).fill_null(False).to_numpy()
    firsts_N = previous.is_null().to_numpy()
    seen = generated_panel(2000, seed=0).table["occupation"].n_unique()
    Console().print(
        f"{careers.persons:,} persons, {len(careers):,} records; stay rate {stay_rate(careers):.3f}\n"
        f"perplexity of the process {process_perplexity(careers):.2f}, of moves "
        f"{_perplexity(log_probs_N[moves_N]):.1f}, of first records {_perplexity(log_probs_N[firsts_N]):.1f}\n"
        f"occupations that 2,000 persons have: {seen} of {len(careers.taxonomy.codes)}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
