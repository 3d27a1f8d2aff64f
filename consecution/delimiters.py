"""What may stand between the values of a row of CSV, in what is read and in what is written."""

from __future__ import annotations

from consecution.errors import UsageError


def check_delimiter(given: str, where: str = "") -> str:
    """The delimiter; UsageError for one that could not be told from the rest of a file. ``where`` begins its text."""
    if not isinstance(given, str) or len(given) != 1 or given in '\n\r"':
        raise UsageError(f"{where}delimiter={given!r}: expected one character, but no quote and no newline")
    return given
