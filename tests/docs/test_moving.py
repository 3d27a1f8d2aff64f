"""The page for users of 0.2.0 lists every deliberate difference, and no other."""

from __future__ import annotations

import re

from tests.compat.test_differences import DIFFERENCES
from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "moving-from-0.2.0.md"


def test_every_difference_is_listed_and_no_other() -> None:
    section = PAGE.read_text().partition("## What is different")[2].partition("\n## ")[0].replace("\\|", "¦")

    listed = [row.replace("¦", "|").strip() for row in re.findall(r"^\| ([^|]+) \|.*\|$", section, re.MULTILINE)]

    assert listed[2:] == [difference.name for difference in DIFFERENCES]
