"""Writes docs/options.md from the settings in consecution/options.py: ``python docs/options_table.py``."""

from __future__ import annotations

from pathlib import Path

from consecution.options import SETTINGS, WORKER_WORDS, Setting

PAGE = Path(__file__).with_name("options.md")
HEAD = """# Options

<!-- Written by `make docs` from consecution/options.py. Do not edit by hand. -->

These are the settings of a run. In Python they are arguments of `pipeline.run(...)`, `pipeline.start(...)` and
`pipeline.plan(...)`. On the command line they are flags of `consecution run` and `consecution plan`. Both check them
the same way, and an error names the option, what it takes and what it got.

| option | flag | default | takes | meaning |
| --- | --- | --- | --- | --- |
"""
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "path": "a folder",
    "text": "a text",
    "port": "a port",
    "flag": "yes or no",
}


def render() -> str:
    """The whole page."""
    return HEAD + "\n".join(map(_row, SETTINGS)) + "\n"


def _row(setting: Setting) -> str:
    cells = [f"`{setting.name}`", f"`{setting.flag}`", _default(setting), _takes(setting), setting.meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(setting: Setting) -> str:
    if setting.default is None:
        return "none"
    if setting.kind == "flag":
        return "yes" if setting.default else "no"
    return f"`{setting.default}`"


def _takes(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.kind == "workers":
        return f"{', '.join(f'`{word}`' for word in WORKER_WORDS)}, or a whole number, at least {setting.least:g}"
    unit = f", {setting.unit}" if setting.unit else ""
    least = f", at least {setting.least:g}" if setting.kind in ("int", "float") else ""
    return KINDS.get(setting.kind, setting.kind) + unit + least


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
