"""Weights of a network that was trained on other careers, matched by what its rows stand for."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from labor_llm.sequences.codes import CodeBook

START, STAY = ("start",), ("stay",)


def transfer(
    weights: dict[str, Tensor], book: CodeBook, source: Mapping[str, Tensor], source_book: CodeBook
) -> None:
    """Overwrite weights of a ``CareerTransformer`` with those of another one, row by row where rows have meanings.

    Occupations are matched by code, values of covariates by their text. What only the new careers have keeps its
    random start, a whole covariate too; what only the old ones had is dropped.
    """
    with torch.no_grad():
        for name, value in weights.items():
            if name.startswith("covariates.") and name not in source:
                continue
            mine, theirs = _meanings(name, book), _meanings(name, source_book)
            if not mine:
                value.copy_(source[name])
                continue
            places = {meaning: place for place, meaning in enumerate(theirs)}
            for place, meaning in enumerate(mine[: len(value)]):
                if places.get(meaning, len(source[name])) < len(source[name]):
                    value[place] = source[name][places[meaning]]


def _meanings(name: str, book: CodeBook) -> Sequence[Hashable]:
    """What each row of a weight stands for, the row for the unknown left out; empty if rows have no meaning."""
    if name == "occupations.weight":
        return [*book.occupations, START]
    if name == "output.weight":
        return [*book.occupations, STAY]
    kind, _, rest = name.partition(".")
    return [None, *book.values[rest.partition(".")[0]]] if kind == "covariates" else []
