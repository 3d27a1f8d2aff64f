"""Pipelines run in one mode, each test with a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consecution import Node, Pipeline, Report, Running


class EngineRun:
    """``options`` of a call go before those that all runs have."""

    def __init__(self, mode: Any, folder: Path, workers: Any = "per-task") -> None:
        self.mode = mode
        self.workers = workers
        self.folder = folder

    def options(self, given: dict[str, Any]) -> Any:
        options = {"mode": self.mode, "workers": self.workers, "sync": "process", "retries": 0, **given}
        if options.get("robustness", "robust") == "robust":
            options["state_dir"] = self.folder / "state"
        return options

    def __call__(self, chain: Node, **options: Any) -> Report:
        return Pipeline(chain).run(**self.options(options))

    def start(self, chain: Node, **options: Any) -> Running:
        return Pipeline(chain).start(**self.options(options))
