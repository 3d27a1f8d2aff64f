"""What the README lists is what there is."""

from __future__ import annotations

import re
import tomllib

from consecution.options import SETTINGS
from tests.docs.pages import ROOT

README = (ROOT / "README.md").read_text()


def first_cells(heading: str, header: str) -> list[str]:
    """The words in code in the first column of the table that begins with ``header``, below a heading."""
    table = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].partition(f"| {header} |")[2]
    rows = table.partition("\n\n")[0].splitlines()
    return [found[1] for row in rows if (found := re.match(r"\| `(\w+)`", row))]


def test_every_extra_is_listed_and_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert sorted(first_cells("Installing", "extra")) == sorted(project["optional-dependencies"])


def test_every_mode_and_every_level_is_listed() -> None:
    choices = {setting.name: list(setting.choices) for setting in SETTINGS}

    assert first_cells("Modes and robustness", "mode") == choices["mode"]
    assert first_cells("Modes and robustness", "robustness") == choices["robustness"]
