"""The page of options says what the code says."""

from __future__ import annotations

import runpy

from tests.docs.pages import ROOT


def test_it_is_up_to_date() -> None:
    rendered = runpy.run_path(str(ROOT / "docs" / "options_table.py"))["render"]()

    assert (ROOT / "docs" / "options.md").read_text() == rendered, "write it anew with `make docs`"
