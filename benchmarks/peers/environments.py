"""A virtual environment for each tool, made when it is first asked for and kept in a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.contest import ROOT
from benchmarks.peers.field import OLD, Tool
from tests.compat import old_release

VARIABLE = "CONSECUTION_PEERS"
INSTALL_TIMEOUT_S = 1800


class Missing(Exception):
    """A tool cannot take part on this machine; the text says what it lacks."""


def cache() -> Path:
    """Where environments and inputs are kept: ``CONSECUTION_PEERS``, or ``.cache/peers`` of this checkout."""
    return Path(os.environ.get(VARIABLE, ROOT / ".cache" / "peers")).absolute()


def interpreter(tool: Tool) -> tuple[Path, list[Path]]:
    """The Python that runs a tool, and what comes first on its path. Missing if it cannot be had."""
    absent = [program for program in tool.programs if shutil.which(program) is None]
    if absent:
        raise Missing(f"{tool.name} needs {', '.join(absent)}, which is not installed here")
    if tool is OLD:
        try:
            return Path(sys.executable), [old_release.provide(), ROOT]
        except old_release.Unavailable as reason:
            raise Missing(str(reason)) from reason
    if not tool.requirements:
        return Path(sys.executable), [ROOT]
    return _environment(tool), [ROOT]


def _environment(tool: Tool) -> Path:
    folder = cache() / tool.module
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = "\n".join(tool.requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"setting up {tool.name} in {folder} ...", file=sys.stderr, flush=True)
        _call([sys.executable, "-m", "venv", "--clear", str(folder)], tool)
        _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *tool.requirements], tool)
        stamp.write_text(wanted)
    return python


def _call(command: list[str], tool: Tool) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise Missing(f"{tool.name} cannot be installed: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{tool.name} was not installed within {INSTALL_TIMEOUT_S} s") from error
