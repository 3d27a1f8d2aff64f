"""Large bytes, arrays and tables among small items, between real processes that are killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from consecution import Map, Node, Pipeline, Producer, TextLines
from tests.engines.misbehaving import wait_for
from tests.large_items import KINDS, after_a_hop, make, scribbled, shape_of

COUNT = 2 * len(KINDS)
DEADLINE_S = 90.0
GATE = COUNT // 2


class Scribble(Node):
    """Writes to what comes by; at item `GATE` it says so with a file, and waits for another one."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.reached, self.opened = folder / "reached", folder / "opened"

    def process(self, item: Any) -> None:
        number, made = item
        if number == GATE:
            self.reached.touch()
            wait_for(self.opened.exists, DEADLINE_S)
        self.push((number, scribbled(made)))


def compare(item: Any) -> str:
    """The number, and whether the rest is what pickle would have made of it on the two hops."""
    number, found = item
    return f"{number} {shape_of(found) == shape_of(after_a_hop(scribbled(after_a_hop(make(number)))))}"


def numbered() -> Any:
    return ((number, make(number)) for number in range(COUNT))


def test_large_payloads_arrive_as_pickle_would_have_them_whoever_is_killed(tmp_path: Path) -> None:
    node, out = Scribble("scribble", tmp_path), tmp_path / "out"
    chain = Producer(numbered) | node | Map(compare, "compare") | TextLines("out", out)

    with Pipeline(chain).start(mode="process", batch_size=5, state_dir=tmp_path / "state", sync="process") as running:
        wait_for(node.reached.exists, DEADLINE_S)
        for task in ("scribble.0", "out.0"):
            os.kill(running.pids()[task], signal.SIGKILL)
        wait_for(lambda: running.status().restarts >= 2, DEADLINE_S)
        node.opened.touch()
        report = running.wait(DEADLINE_S)

    assert (report.completed, report.failed, report.pending) == (COUNT, 0, 0)
    assert out.read_text().splitlines() == [f"{number} True" for number in range(COUNT)]
