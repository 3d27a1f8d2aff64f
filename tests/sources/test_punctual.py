from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import pytest

from consecution.sources.iterable import IterableSource
from consecution.sources.punctual import SLACK_NS
from tests.sources.test_contract import read_all

PR_GET_TIMERSLACK = 30


def timer_slack_ns() -> int:
    return int(ctypes.CDLL(None).prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no timer slack to set")
def test_a_generator_that_sleeps_is_woken_on_time_and_its_reader_as_ever() -> None:
    before_ns = timer_slack_ns()

    def slacks_ns() -> Iterator[int]:
        yield timer_slack_ns()

    source = IterableSource(slacks_ns)
    source.open(None)
    found = read_all(source)
    source.close()

    assert found == [SLACK_NS]
    assert timer_slack_ns() == before_ns
