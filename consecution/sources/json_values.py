"""What is a JSON value, for every source that reads JSON: what the standard says, so neither NaN nor Infinity."""

from __future__ import annotations

import json
from typing import Any


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""Raises ValueError for what is none, and RecursionError where it is nested too deeply."""
