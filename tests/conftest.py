"""What many tests share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compat import old_release
from tests.databases import cluster, postgres

__all__ = ["cluster", "postgres"]

WriteModule = Callable[[str, str], Path]


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """A shell without job control lets what it starts in the background ignore SIGINT: these tests are about it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def base_of_tmp_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make the folder of every `tmp_path` before a test points `tempfile` elsewhere: they would all lie there."""
    tmp_path_factory.getbasetemp()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteModule]:
    """Write a module into a folder that is the current one; what it leaves behind is forgotten afterwards."""
    path_before, modules_before = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    written: list[Path] = []

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        written.append(path)
        return path

    yield write
    sys.path[:] = path_before
    vars(sys.modules["__main__"]).pop("__getattr__", None)  # whatever stood in for it
    for path in written:
        if path.stem not in modules_before:
            sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session")
def old_root() -> Path:
    """The folder to import 0.2.0 from."""
    try:
        return old_release.provide()
    except old_release.Unavailable as reason:
        pytest.skip(str(reason))
