"""Threads that are woken on time."""

from __future__ import annotations

from consecution.kernel import set_timer_slack

SLACK_NS = 1000


def wake_on_time() -> None:
    """Let the calling thread's sleeps, and those of threads that it starts, end when they are over.

    Linux is free to end them later, by 50 µs where nobody asks, so that the processor wakes up less often. A generator
    that keeps a pace by sleeping would have every item late by that. Other systems are left as they are.
    """
    set_timer_slack(SLACK_NS)
