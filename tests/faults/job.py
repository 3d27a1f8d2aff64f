"""One run: what every life of it needs to know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
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
    """travel, ledger or mixed"""
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

    shares: dict[str, int] = field(default_factory=dict)
    """Of mixed: its sources, and in how many shares each is read."""
    per_second: float = 0.0
    """Of mixed: the pace, ..."""
    burst: int = 0
    """... and how many items may pass at once; 0: as it comes."""
    paces_first: bool = False
    """Of mixed: whether the pace is before what is async."""
    at_once: int = 1
    """Of mixed: how many items are on their way there, ..."""
    wait_s: float = 0.0
    """... and for how long at most."""

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
