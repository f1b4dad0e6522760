"""Files of text: what they must be written in."""

from labor_llm.errors import DataError

START = 1000
"""Bytes that show how a file is written."""
MARKS = (b"\xff\xfe", b"\xfe\xff")
"""How UTF-16 begins."""


def check_encoding(start: bytes, where: str) -> None:
    """DataError if a file is written in UTF-16, as by Excel's "Unicode text"; ``start``: its first bytes."""
    if start.startswith(MARKS) or b"\0" in start[:START]:
        raise DataError(
            f"{where} is written in UTF-16, or is no text: save it as UTF-8 (in Excel: CSV UTF-8, comma delimited)"
        )
