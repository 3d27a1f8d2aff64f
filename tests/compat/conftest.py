"""What the tests of compatibility share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat import old_release


@pytest.fixture(scope="session")
def old_root() -> Path:
    """The folder to import 0.2.0 from."""
    try:
        return old_release.provide()
    except old_release.Unavailable as reason:
        pytest.skip(str(reason))
