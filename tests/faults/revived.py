"""A run of the command that is started again whenever it was killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults import processes

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Revived:
    """``consecution run`` in ``folder``, whose state is in ``state`` there. End it with `remove`, whatever happens."""

    def __init__(self, folder: Path, target: str) -> None:
        self._mark = f"revived-{os.getpid()}-{time.monotonic_ns()}"
        self._folder = folder
        self._target = target
        self._start()

    def _start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "consecution",
            "run",
            self._target,
            "--state-dir",
            "state",
            "--quiet",
            "--json",
        ]
        environment = {**os.environ, processes.VARIABLE: self._mark, "PYTHONPATH": str(ROOT)}
        with open(self._folder / "report.json", "wb") as out, open(self._folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=out, stderr=log, cwd=self._folder, env=environment)

    def revive(self) -> None:
        """Start it again, if it is dead. It must not have ended in another way than by a kill."""
        code = self.process.poll()
        if code is not None:
            assert code == -signal.SIGKILL, f"it ended by itself with {code}: {self.log()}"
            self._start()

    def log(self) -> str:
        """The last that it has said."""
        return (self._folder / "log").read_text()[-4000:]

    def pids(self) -> list[int]:
        """All its processes, workers too."""
        return sorted(one.pid for one in processes.of_run(self._mark))

    def workers(self) -> list[int]:
        """Its workers alone: they are children of the server that forks them, and that of the run."""
        servers = {one.pid for one in processes.of_run(self._mark) if one.parent == self.process.pid}
        return sorted(one.pid for one in processes.of_run(self._mark) if one.parent in servers)

    def kill(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> int:
        """Stop it in order; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def report(self) -> dict[str, Any]:
        """What it has reported, once it was stopped."""
        found: dict[str, Any] = json.loads((self._folder / "report.json").read_text())
        return found

    def remove(self) -> None:
        """Kill all of it."""
        self.kill(self.pids())
        self.process.wait(DEADLINE_S)
