"""What became of the rows of a source on their way into careers: counts, never records."""

from typing import Any

import polars as pl

SHOWN = 8
"""Codes that could not be carried over which are named in the terminal; prepare.json has all."""
FEWEST = 10
"""Persons with a code before the terminal names it."""
UNMAPPED = {"scheme": pl.String, "code": pl.String, "title": pl.String, "records": pl.Int64, "persons": pl.Int64}


class Report:
    """Counts at every step, codes that could not be carried over, and remarks. Parts of a source add up."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, int]] = {}
        """Step -> persons and records that were left after it, in the order of the steps."""
        self.dropped: dict[str, dict[str, int]] = {}
        """Reason -> persons and records that were left out for it; a person may be in several."""
        self.notes: list[str] = []
        self.unknown: dict[str, dict[str, int]] = {}
        """What a value is -> persons and records in which it is taken as unknown."""
        self.codes = {"found": 0, "carried": 0}
        """Records with an occupation code of a survey, and those whose code was carried over to the taxonomy.

        The code of the last job of someone in a state, such as unemployed, does not count.
        """
        self._unmapped = [pl.DataFrame(schema=UNMAPPED)]

    def count(self, step: str, table: pl.DataFrame) -> None:
        """What is left after a step; the table has a column ``person_id``."""
        _add(self.steps, step, table)

    def drop(self, reason: str, table: pl.DataFrame) -> None:
        """Records that are left out, if there are any; the table has a column ``person_id``."""
        if not table.is_empty():
            _add(self.dropped, reason, table)

    def take_as_unknown(self, what: str, table: pl.DataFrame) -> None:
        """Records that have a value which says nothing, if there are any; the table has a column ``person_id``."""
        if not table.is_empty():
            _add(self.unknown, what, table)

    def note(self, text: str) -> None:
        """A remark for the user, such as a variable that the extract lacks and what that costs."""
        if text not in self.notes:
            self.notes.append(text)

    def carry(self, coded: pl.DataFrame, unmapped: pl.DataFrame) -> None:
        """Records with an occupation code, and those of them with one that was not carried over.

        The latter have the columns person_id, scheme, code and title.
        """
        self.codes["found"] += coded.height
        self.codes["carried"] += coded.height - unmapped.height
        counted = unmapped.group_by("scheme", "code", "title").agg(
            records=pl.len().cast(pl.Int64), persons=pl.col("person_id").n_unique().cast(pl.Int64)
        )
        self._unmapped.append(counted.select(list(UNMAPPED)))

    @property
    def unmapped(self) -> pl.DataFrame:
        """scheme, code, title (null: not in the scheme), records and persons, most records first."""
        counts = pl.concat(self._unmapped).group_by("scheme", "code", "title").sum()
        return counts.sort("records", "scheme", "code", descending=[True, False, False], nulls_last=True)

    def to_dict(self) -> dict[str, Any]:
        """For prepare.json."""
        return {
            "steps": self.steps,
            "dropped": self.dropped,
            "codes": self.codes,
            "unmapped": self.unmapped.to_dicts(),
            "notes": [
                *self.notes,
                *(
                    f"{what} is taken as unknown in {counted(sizes['records'], 'record')} of "
                    f"{counted(sizes['persons'], 'person')}"
                    for what, sizes in self.unknown.items()
                ),
            ],
        }


def _add(counts: dict[str, dict[str, int]], name: str, table: pl.DataFrame) -> None:
    """No person is in two parts of a source, so persons add up too."""
    line = counts.setdefault(name, {"persons": 0, "records": 0})
    line["persons"] += table["person_id"].n_unique()
    line["records"] += table.height


def lines(report: dict[str, Any]) -> list[str]:
    """What became of the source's records, of a report as prepare.json has it."""
    said = [
        f"{counted(sizes['persons'], 'person')}, {sizes['records']:,} {step}"
        for step, sizes in report["steps"].items()
    ]
    said += [
        f"  left out: {counted(sizes['records'], 'record')} of {counted(sizes['persons'], 'person')}: {reason}"
        for reason, sizes in report["dropped"].items()
    ]
    found, carried = report["codes"]["found"], report["codes"]["carried"]
    if found:
        said.append(f"  carried over: {carried:,} of {found:,} occupation codes ({100 * carried / found:.1f}%)")
    unmapped = report["unmapped"]
    frequent = [code for code in unmapped if code["persons"] >= FEWEST][:SHOWN]
    for code in frequent:
        title = code["title"] or "not in the scheme"
        said.append(f"    {code['scheme']} {code['code']} ({title}): {code['records']:,} records")
    if len(unmapped) > len(frequent):
        said.append(f"    {counted(len(unmapped) - len(frequent), 'rarer code')}; all are in prepare.json")
    return said + [f"note: {note}" for note in report["notes"]]


def counted(number: int, noun: str) -> str:
    """A number with what it counts: 1 state, 2,000 states."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
