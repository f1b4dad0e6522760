"""The split of careers by person: into train, valid and test.

Shapes: N records, P persons.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from labor_llm.careers import Careers
from labor_llm.errors import DataError

SOURCE_MARK = "::"
"""Stands in a pool's person_id between the name of the dataset and the person_id there."""

POOL = "pool of "
"""Begins the ``source`` of a pool's careers."""

SALT = "labor-llm"
"""Of the hash of a person_id, unless a split has a salt of its own."""


@dataclass(frozen=True)
class Splits:
    """Careers in three parts; no person is in two of them."""

    train: Careers
    valid: Careers
    test: Careers


class Split(ABC):
    """Divides the persons of a dataset into train, valid and test."""

    PARTS: ClassVar = ("train", "valid", "test")

    @abstractmethod
    def assign(self, careers: Careers) -> NDArray[np.intp]:
        """The part of every person, as a place in ``PARTS``, in the order of the table; shape (P,)."""

    @abstractmethod
    def wants(self, part: str) -> bool:
        """Whether a part should have persons."""

    def __call__(self, careers: Careers) -> Splits:
        """Split the persons; DataError if a part that should have some of them gets none."""
        parts_N = pl.Series(np.repeat(self.assign(careers), np.diff(careers.person_starts)))
        splits = Splits(*(replace(careers, table=careers.table.filter(parts_N == part)) for part in range(3)))
        for part in self.PARTS:
            if self.wants(part) and len(getattr(splits, part)) == 0:
                raise DataError(
                    f"{part} gets nobody of the {careers.persons} persons of dataset {careers.dataset!r}: too few "
                    "persons, or too small a share. Use more persons or other shares."
                )
        return splits

    def places(self, careers: Careers) -> NDArray[np.float64]:
        """A number in [0, 1) for every person, by which samples are taken; shape (P,)."""
        return hashed_places(_person_ids(careers), SALT)

    def sample(self, careers: Careers, persons: int) -> Careers:
        """The careers of so many persons, those with the lowest places; ValueError if there are fewer.

        Samples are nested: the first 500 persons are among the first 1,000. A person who is added to the data
        replaces one person of a sample at most.
        """
        if persons > careers.persons:
            raise ValueError(f"a sample of {persons} of {careers.persons} persons")
        taken_P = np.zeros(careers.persons, dtype=bool)
        taken_P[np.argsort(self.places(careers), kind="stable")[:persons]] = True
        taken_N = pl.Series(np.repeat(taken_P, np.diff(careers.person_starts)))
        return replace(careers, table=careers.table.filter(taken_N))


Share = Annotated[float, Field(ge=0, le=1)]


@settings(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SplitByPerson(Split):
    """Three parts by a salted hash of the person's identifier: more persons, or fewer, move nobody.

    With u = (first 8 hex digits of SHA-256 of "salt:person_id") / 2**32, a person is in train if u < train,
    in valid if u < train + valid, and else in test.
    """

    train: Share = 0.7
    valid: Share = 0.1
    test: Share = 0.2
    salt: str = SALT

    def __post_init__(self) -> None:
        total = self.train + self.valid + self.test
        if not math.isclose(total, 1):
            raise ValueError(f"the shares train, valid and test must sum to 1, and sum to {total:g}")

    def assign(self, careers: Careers) -> NDArray[np.intp]:
        return np.searchsorted([self.train, self.train + self.valid], self.places(careers), side="right")

    def places(self, careers: Careers) -> NDArray[np.float64]:
        """The hash u that decides a person's part."""
        return hashed_places(self._ids(_person_ids(careers)), self.salt)

    def wants(self, part: str) -> bool:
        return bool(getattr(self, part) > 0)

    def _ids(self, person_ids: pl.Series) -> pl.Series:
        """What is hashed of every person."""
        return person_ids


def _person_ids(careers: Careers) -> pl.Series:
    """The person_id of every person, in the order of the table."""
    return careers.table["person_id"].gather(careers.person_starts[:-1])


def without_source(person_ids: pl.Expr) -> pl.Expr:
    """The person_id that a person of a pool has in their own dataset."""
    return person_ids.str.replace(f"^.*?{SOURCE_MARK}", "")


def own_ids(careers: Careers) -> pl.Expr:
    """The person_id that every person has in their own dataset, pooled or not."""
    person_ids = pl.col("person_id")
    return without_source(person_ids) if careers.source.startswith(POOL) else person_ids


def hashed_places(person_ids: pl.Series, salt: str) -> NDArray[np.float64]:
    """A number in [0, 1) for every person: the first 32 bits of SHA-256 of "salt:person_id", over 2**32."""
    texts = map(str.encode, f"{salt}:" + person_ids)
    first_bytes = b"".join([hashlib.sha256(text).digest()[:4] for text in texts])
    return np.frombuffer(first_bytes, ">u4") / 2**32
