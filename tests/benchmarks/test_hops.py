"""Four bare messages in a row, and how late they come."""

from __future__ import annotations

from benchmarks import hops


def test_every_number_comes_and_none_before_it_is_due() -> None:
    late_s = hops.measure(items=50, rate=1000)

    assert len(late_s) == 40
    assert late_s == sorted(late_s)
    assert late_s[0] > 0
