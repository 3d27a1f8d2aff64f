"""Every setting of a run, once: name, unit, default, meaning. Flags and documentation derive from here."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consecution.errors import OptionError


@dataclass(frozen=True, slots=True)
class Setting:
    """One option. ``kind`` is one of those that `Options` checks; ``least`` the smallest number allowed."""

    name: str
    kind: str
    default: Any
    meaning: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    least: float = 0

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


WORKER_WORDS = ("per-task", "auto")
MOST_PORT = 65535
MOST_WORKERS = 1024

SETTINGS = (
    Setting(
        "mode",
        "choice",
        "process",
        "how tasks run: in this thread, in threads, or a process each",
        choices=("inline", "thread", "process"),
    ),
    Setting(
        "robustness",
        "choice",
        "robust",
        "none: nothing is kept; confirm: says whether all items were completely processed; track: also which "
        "failed; robust: journal, retries and replay, whatever dies",
        choices=("none", "confirm", "track", "robust"),
    ),
    Setting("state_dir", "path", None, "folder of the journal (robust); without one a temporary folder is used"),
    Setting(
        "workers",
        "workers",
        "per-task",
        "worker processes (process mode): per-task, one for each replica of each node; a number, so many, each with a "
        "replica of every node that keeps nothing, a share of the keys, and calls instead of sockets between "
        "neighbours; auto, as many as there are cores. `node * n` still gives exactly n replicas",
        least=1,
    ),
    Setting(
        "on_error",
        "choice",
        "retry",
        "an item that raised: try it again (robust), give it up at once, or give it up and stop the run; a node may "
        "say otherwise",
        choices=("retry", "park", "stop"),
    ),
    Setting("retries", "int", 3, "how often an item that raised is tried again (robust)"),
    Setting("retry_delay_s", "float", 0.05, "wait before the first retry; doubles each time", "s"),
    Setting("timeout_s", "float", 30.0, "a worker without progress for so long is killed", "s", least=0.01),
    Setting("keep_failed", "int", 1000, "how many failed items a report lists (the last ones)"),
    Setting("max_pending", "int", 64, "batches that may be open at a time", "batches", least=1),
    Setting("max_pending_bytes", "int", 64 * 1024 * 1024, "bytes that may be open at a time", "bytes", least=1),
    Setting("batch_size", "int", 16_000, "most items in a batch; batches are smaller while little comes", least=1),
    Setting("linger_ms", "float", 0.0, "how long a batch that is not full waits for more", "ms"),
    Setting(
        "sync",
        "choice",
        "power",
        "what a commit survives: a power cut (fsync), or the death of processes only",
        choices=("power", "process"),
    ),
    Setting("fresh", "flag", False, "forget what the state folder holds, and start from the beginning"),
    Setting(
        "drop_state",
        "flag",
        False,
        "let a changed graph drop the state and the failed items that it has no place for",
    ),
    Setting(
        "cache_bytes",
        "int",
        256 * 1024 * 1024,
        "memory for the states of one durable task; what is more lies on disk only",
        "bytes",
        least=1,
    ),
    Setting(
        "memory_limit_bytes",
        "int",
        0,
        "memory one worker may take for data of its own; an item that wants more gets a MemoryError and fails; 0: no "
        "limit. Kept by worker processes on Linux alone: in thread and inline mode an item that takes all memory, or "
        "crashes, takes the whole program with it",
        "bytes",
    ),
    Setting(
        "affinity",
        "choice",
        "auto",
        "auto: with fewer than two cores for each worker, a worker waits for messages, and for the disk, on one core, "
        "unless others are at work there; nodes run on any (process mode, Linux). off: the system moves workers as "
        "it likes",
        choices=("auto", "off"),
    ),
    Setting("max_restarts", "int", 5, "deaths in a row, without progress between, that end the run"),
    Setting("stop_timeout_s", "float", 30.0, "how long a stop waits for open batches", "s"),
    Setting(
        "log_format",
        "choice",
        "text",
        "how the lines of the log look on standard error (process mode): text, or json, an object a line",
        choices=("text", "json"),
    ),
    Setting(
        "progress",
        "flag",
        False,
        "show on standard error how far the run is: on a terminal a bar (with the extra `progress`), elsewhere a line "
        "every five seconds; only `run` heeds it, and `consecution run` does so unless --quiet",
    ),
    Setting(
        "metrics_port",
        "port",
        None,
        "port of /metrics (for Prometheus), /livez and /readyz (process mode); 0: any that is free, "
        "`consecution status` tells which",
    ),
    Setting("metrics_host", "text", "127.0.0.1", "address of that port; 0.0.0.0 lets everybody read who reaches it"),
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one run, checked. Made by `Options.of`; the fields are those of `consecution.options.SETTINGS`."""

    mode: str = "process"
    robustness: str = "robust"
    state_dir: Path | None = None
    workers: str | int = "per-task"
    on_error: str = "retry"
    retries: int = 3
    retry_delay_s: float = 0.05
    timeout_s: float = 30.0
    keep_failed: int = 1000
    max_pending: int = 64
    max_pending_bytes: int = 64 * 1024 * 1024
    batch_size: int = 16_000
    linger_ms: float = 0.0
    sync: str = "power"
    fresh: bool = False
    drop_state: bool = False
    cache_bytes: int = 256 * 1024 * 1024
    memory_limit_bytes: int = 0
    affinity: str = "auto"
    max_restarts: int = 5
    stop_timeout_s: float = 30.0
    log_format: str = "text"
    progress: bool = False
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"

    @property
    def robust(self) -> bool:
        return self.robustness == "robust"

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Check every value; OptionError names the option, what it takes and what it got."""
        known = {setting.name: setting for setting in SETTINGS}
        for name in given:
            if name not in known:
                raise OptionError(f"unknown option {name!r}{_suggest(name, list(known))}")
        checked = {name: _CHECKS[known[name].kind](known[name], value) for name, value in given.items()}
        return cls(**checked)

    def check_that_none_is_in_vain(self) -> None:
        """OptionError for what was given and this run would ignore: whoever gave it meant another run."""
        for name, needed in (("metrics_port", "mode"), ("workers", "mode"), ("state_dir", "robustness")):
            value, found, wanted = getattr(self, name), getattr(self, needed), _DEFAULTS[needed]
            if value != _DEFAULTS[name] and found != wanted:
                shown = repr(str(value)) if isinstance(value, Path) else repr(value)
                raise OptionError(
                    f"{name}={shown} goes with {needed}={wanted!r}; this run has {needed}={found!r}: leave one of them "
                    "out"
                )

    def with_changes(self, **given: Any) -> Options:
        """These options with some of them replaced, checked like all."""
        return Options.of(**{**dataclasses.asdict(self), **given})


_DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; the options are {', '.join(known)}"


def _check_choice(setting: Setting, value: Any) -> str:
    if value not in setting.choices:
        hint = _suggest(value, list(setting.choices)) if isinstance(value, str) else ""
        raise OptionError(f"{setting.name}={value!r}: expected one of {', '.join(map(repr, setting.choices))}{hint}")
    return str(value)


def _check_number(setting: Setting, value: Any, kinds: tuple[type, ...]) -> Any:
    number: Any = value
    if isinstance(value, bool) or not isinstance(value, kinds) or not number >= setting.least:
        unit = f" {setting.unit}" if setting.unit else ""
        what = "a whole number" if kinds == (int,) else "a number"
        raise OptionError(f"{setting.name}={value!r}: expected {what} of {setting.least} or more{unit}")
    return value


def _check_path(setting: Setting, value: Any) -> Path | None:
    if value is None or isinstance(value, (str, os.PathLike)):
        return None if value is None else Path(value)
    raise OptionError(f"{setting.name}={value!r}: expected the path of a folder, or None")


def _check_text(setting: Setting, value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise OptionError(f"{setting.name}={value!r}: expected a text like {setting.default!r}")


def _check_port(setting: Setting, value: Any) -> int | None:
    if value is None or (type(value) is int and 0 <= value <= MOST_PORT):
        return value
    raise OptionError(f"{setting.name}={value!r}: expected a port from 0 to {MOST_PORT}, or None")


def _check_flag(setting: Setting, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise OptionError(f"{setting.name}={value!r}: expected True or False")


def _check_workers(setting: Setting, value: Any) -> str | int:
    number: Any = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number in WORKER_WORDS or (type(number) is int and setting.least <= number <= MOST_WORKERS):
        return number  # type: ignore[no-any-return]
    raise OptionError(
        f"workers={value!r}: expected 'per-task', 'auto', or a whole number from {setting.least:g} to {MOST_WORKERS}"
    )


_CHECKS: dict[str, Callable[[Setting, Any], Any]] = {
    "choice": _check_choice,
    "int": lambda setting, value: _check_number(setting, value, (int,)),
    "float": lambda setting, value: float(_check_number(setting, value, (int, float))),
    "path": _check_path,
    "text": _check_text,
    "port": _check_port,
    "flag": _check_flag,
    "workers": _check_workers,
}
