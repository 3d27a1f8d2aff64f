"""Lives of a run, each in a process of its own, that are killed where the code passes a failpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import multiprocess

from consecution.runtime import failpoints

PASSES = 3
"""A life is killed when it passes its point for this time."""

Require = Callable[[bool, str], None]
"""Raises what the contract's check raises, with that problem, unless the first is true."""


def live(
    job: Callable[..., None], *arguments: Any, point: str | None, place: Path, within_s: float, require: Require
) -> bool:
    """Run ``job(*arguments)`` in a process of its own, to be killed at ``point``; whether it was. None: nowhere.

    ``job`` is a function of a module. ``require`` is told where it does not end in time, or fails.
    """
    traps = ""
    if point is not None:
        token = place / f"token-{point}"
        token.touch()
        traps = f"{point}@{PASSES}:{token}"
    life = multiprocess.get_context("spawn").Process(target=_armed, args=(traps, job, arguments))
    life.start()
    life.join(within_s)
    if life.is_alive():
        life.kill()
        life.join()
        require(False, f"a run had not ended after {within_s:g} s")
    code = cast(int, life.exitcode)
    require(code in (0, -signal.SIGKILL), f"a run failed; its traceback went to standard error (exit code {code})")
    life.close()
    return code == -signal.SIGKILL


def _armed(traps: str, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    failpoints.arm(traps)
    job(*arguments)
