from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import keys


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_more_keys_than_fit_are_measured_and_a_later_run_goes_on(tmp_path: Path) -> None:
    many = keys.live(tmp_path / "state", 0, 3_000, 1024 * 1024)
    again = keys.live(tmp_path / "state", 3_000, 10, 1024 * 1024)

    assert many.anonymous_mib > 1
    assert again.first_s > 0
