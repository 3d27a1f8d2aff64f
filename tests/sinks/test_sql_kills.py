"""Workers of file sinks killed for real: what they leave is, byte for byte, what an undisturbed run leaves."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sinks import dying

pytest.importorskip("pyarrow")
ROOT = Path(__file__).parents[2]
DEADLINE_S = 60
SEED = int(os.environ.get("CONSECUTION_SEED", random.randrange(10**6)))
POINTS = ("durable.applied", "origin.before_commit", "origin.committed", "durable.confirmed")


def contents(folder: Path) -> dict[str, bytes]:
    """File name → bytes; of compressed ones, whose bytes depend on the commits, what is in them."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: gzip.decompress(held) if name.endswith(".gz") else held for name, held in found.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    dying.run(folder, folder / "no traps", mode="inline")
    return contents(folder)


def set_traps(folder: Path, point: str, passes: int, whom: str = "") -> list[Path]:
    tokens = []
    for sink in dying.SINKS:
        token = folder / f"{sink}.token"
        token.write_text(whom)
        (folder / f"{sink}.traps").write_text(f"{point}@{passes}:{token}")
        tokens.append(token)
    return tokens


def test_the_undisturbed_run_rotates(undisturbed: dict[str, bytes]) -> None:
    numbers = {"csv.gz": 4, "jsonl": 5, "parquet": 4}
    expected = [f"out-{n + 1:03}.{kind}" for kind, count in numbers.items() for n in range(count)]

    assert sorted(undisturbed) == sorted([*expected, "out.txt"])
    assert undisturbed["out.txt"].count(b"\n") == dying.COUNT


@pytest.mark.parametrize("point", POINTS)
def test_the_sinks_worker_dies_at(point: str, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    passes = random.Random(f"{SEED} {point}").randint(1, 6)
    print(f"CONSECUTION_SEED={SEED}: dies at pass {passes}")
    tokens = set_traps(tmp_path, point, passes)

    report = dying.run(tmp_path / "out", tmp_path, mode="process", sync="process")

    assert report.restarts == len(tokens)
    assert not any(token.exists() for token in tokens)
    assert contents(tmp_path / "out") == undisturbed


def test_the_sinks_worker_dies_with_half_a_write_on_disk(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    torn = [tmp_path / f"{sink}.torn" for sink in dying.SINKS]
    for file in torn:
        file.touch()

    report = dying.run(tmp_path / "out", tmp_path, mode="process", sync="process")

    assert report.restarts == len(torn)
    assert contents(tmp_path / "out") == undisturbed


@contextlib.contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.sinks.dying", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_everything_dies_at_once_again_and_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    chosen = random.Random(SEED)
    print(f"CONSECUTION_SEED={SEED}")
    deaths = 0

    for point in POINTS:
        set_traps(tmp_path, point, chosen.randint(1, 3), whom="group")
        with running(tmp_path) as process:
            _, said = process.communicate(timeout=DEADLINE_S)
        deaths += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
    for traps in tmp_path.glob("*.traps"):
        traps.unlink()
    with running(tmp_path) as process:
        _, said = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0, said.decode()
    assert deaths
    assert contents(tmp_path / "out") == undisturbed
