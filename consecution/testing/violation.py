"""What the oracle raises when a promise is broken."""

from __future__ import annotations


class Violation(BaseException):
    """A promise of the protocol was broken in a simulated schedule; the text says which, and by what.

    Not an Exception: the code under test, which survives whatever user code raises, may not catch it.
    """
