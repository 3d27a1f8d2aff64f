"""One run: what every life of it needs to know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

SOURCES = ("list", "generator", "file", "list", "pipe")
"""A list is read by a worker, a generator by the supervisor, and so is standard input: a file or a pipe."""
RETRIES = 2
ATTEMPTS = RETRIES + 1


@dataclass(frozen=True, slots=True)
class Job:
    """What every life of one run needs to know."""

    seed: int
    work: str
    """travel or ledger"""
    items: int
    source: str
    sync: str
    timeout_s: float
    folder: str
    fork: str = ""
    """Of travel: broadcast or route."""
    right: str = ""
    """Of travel, what the right sink is: recorder or text."""
    stores: str = ""
    """Of ledger: bundled sinks, or plain ones of a user's own."""
    server: str = ""
    """Of ledger: the url of a PostgreSQL database; empty: there is none."""
    workers: str | int = "per-task"
    """As the option of that name."""

    @property
    def reads_lines(self) -> bool:
        return self.source in ("file", "pipe")

    @property
    def source_name(self) -> str:
        return "producer" if self.reads_lines else "source"

    def path(self, name: str) -> Path:
        return Path(self.folder, name)

    def save(self) -> Path:
        self.path("job.json").write_text(json.dumps(asdict(self)))
        return self.path("job.json")

    @classmethod
    def load(cls, path: str) -> Job:
        return cls(**json.loads(Path(path).read_text()))
