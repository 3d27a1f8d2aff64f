"""File sinks whose workers are killed: at a failpoint in the sink's own worker, or with half a write on disk.

At the top of a module, so that workers can import them. ``python -m tests.sinks.dying FOLDER`` runs the pipeline
that `test_kills` puts to the test, in process mode.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

from consecution import Csv, JsonLines, Node, Parquet, Pipeline, Producer, Report, TextLines
from consecution.runtime import failpoints

COUNT = 3000
BATCH_SIZE = 50
MAX_PENDING = 4
"""Few beside the sixty batches there are, so that a sink commits, and answers, a good many times."""


class Row(NamedTuple):
    number: int
    text: str


class MakeRow(Node):
    def process(self, item: int) -> None:
        self.push(Row(item, f'row, "{item}"'))


class Armed(Node):
    """Sets the traps that the file ``NAME.traps`` in ``folder`` describes, in this worker only."""

    folder: Path

    def open(self) -> None:
        traps = self.folder / f"{self.name}.traps"
        failpoints.arm(traps.read_text() if traps.exists() else "")
        super().open()  # type: ignore[misc]

    def _append(self, part: Any) -> None:
        """Die with half of it written, once, if there is a file ``NAME.torn``."""
        torn = self.folder / f"{self.name}.torn"
        if torn.exists():
            torn.unlink()
            written = b"".join(part.waiting)
            os.write(self._open_file(part), written[: len(written) // 2])  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        super()._append(part)  # type: ignore[misc]


class ArmedText(Armed, TextLines):
    pass


class ArmedJson(Armed, JsonLines):
    pass


class ArmedCsv(Armed, Csv):
    pass


class ArmedParquet(Armed, Parquet):
    pass


SINKS = ("text", "json", "csv", "parquet")


def graph(out: Path, traps: Path) -> Any:
    sinks: list[Any] = [
        ArmedText("text", out / "out.txt", folder=traps),
        ArmedJson("json", out / "out-{number:03}.jsonl", rotate_items=700, folder=traps),
        ArmedCsv("csv", out / "out-{number:03}.csv.gz", rotate_bytes=20_000, folder=traps),
        ArmedParquet("parquet", out / "out-{number:03}.parquet", rotate_items=900, folder=traps),
    ]
    return Producer(range(COUNT)) | MakeRow("make") | sinks


def run(out: Path, traps: Path, **options: Any) -> Report:
    out.mkdir(exist_ok=True)
    return Pipeline(graph(out, traps)).run(batch_size=BATCH_SIZE, max_pending=MAX_PENDING, **options)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    report = run(folder / "out", folder, mode="process", state_dir=folder / "state", sync="process")
    sys.exit(report.exit_code)
