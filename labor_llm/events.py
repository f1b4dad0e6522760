"""Events that the distribution over occupations foretells: leaving work, leaving the labor force, entering work.

Each is to leave a set of codes. A record is at risk if the person's record before is in the set; the event
happens if the record itself is not. To change one's occupation is the same with a set that differs by person: the
occupation before alone. Shapes: N records, J occupations in the order of the choice set, E events, B rows.

- *Work*: every occupation, and the states that the taxonomy calls working, such as ``military``.
- *Labor force*: work and the states that the taxonomy calls unemployed. Data without a record in such a state do
  not distinguish the event from leaving work: it is then unknown.
- Every other state is outside both: ``in_school``, ``out_of_labor_force`` and ``not_working`` (which some surveys
  do not distinguish from unemployment).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labor_llm.careers import Careers
from labor_llm.taxonomy import Taxonomy

LEAVE_LABOR_FORCE = "leave_labor_force"
SET_EVENTS = ("leave_work", LEAVE_LABOR_FORCE, "enter_work")
BLOCK = 1 << 14
"""Rows that are looked at together: temporary arrays stay below 50 MB for 335 occupations."""


def sets_left(taxonomy: Taxonomy) -> dict[str, frozenset[str]]:
    """The codes whose leaving is the event, for every one of ``SET_EVENTS``."""
    without_work = taxonomy.states - taxonomy.states_of("working")
    work = frozenset(taxonomy.codes) - without_work
    return dict(zip(SET_EVENTS, (work, work | taxonomy.states_of("unemployed"), without_work), strict=True))


def event_columns(
    careers: Careers, choice_set: Sequence[str], log_probs_NJ: NDArray[np.floating] | None
) -> dict[str, pl.Series]:
    """For every event a column of its name, whether it happened, and ``<name>_logit``, its log-odds as foretold.

    Both are null where the record is not at risk, the log-odds also without a distribution, and both everywhere if
    the taxonomy has no code that the event could lead from or to, or nobody is in a state that distinguishes it
    from another event.
    """
    previous, occupation = careers.previous, careers.table["occupation"]
    sets = sets_left(careers.taxonomy)
    logits = {} if log_probs_NJ is None else _logits(log_probs_NJ, choice_set, sets)
    columns = {}
    for name, codes in sets.items():
        possible = 0 < len(codes) < len(careers.taxonomy.codes)
        if name == LEAVE_LABOR_FORCE:
            possible &= occupation.is_in(list(careers.taxonomy.states_of("unemployed"))).any()
        at_risk = previous.is_in(list(codes)).fill_null(False) & possible
        columns[name] = _where(at_risk, ~occupation.is_in(list(codes)))
        logit = pl.Series(logits[name]) if logits else pl.repeat(None, len(careers), dtype=pl.Float64, eager=True)
        columns[f"{name}_logit"] = _where(at_risk, logit)
    return columns


def _where(condition: pl.Series, values: pl.Series) -> pl.Series:
    return values.zip_with(condition, pl.repeat(None, len(values), dtype=values.dtype, eager=True))


def _logits(
    log_probs_NJ: NDArray[np.floating], choice_set: Sequence[str], sets: Mapping[str, frozenset[str]]
) -> dict[str, NDArray[np.float64]]:
    """Log of the probability outside each set over that inside: two sums, so that neither tail loses digits."""
    inside_JE = np.array([[code in codes for codes in sets.values()] for code in choice_set], dtype=np.float64)
    logits_NE = np.empty((len(log_probs_NJ), len(sets)))
    for rows in blocks(len(log_probs_NJ)):
        shares_BJ = np.exp(log_probs_NJ[rows], dtype=np.float64)
        with np.errstate(divide="ignore"):
            logits_NE[rows] = np.log(shares_BJ @ (1 - inside_JE)) - np.log(shares_BJ @ inside_JE)
    return dict(zip(sets, logits_NE.T, strict=True))


def blocks(records: int) -> Iterator[slice]:
    """Slices of ``BLOCK`` rows that cover all records."""
    for start in range(0, records, BLOCK):
        yield slice(start, start + BLOCK)
