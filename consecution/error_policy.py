"""What becomes of an item that raises at a node: another try, the failure store, or the end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from consecution.errors import GraphError, add_note, text_of
from consecution.protocol.poison import PoisonError
from consecution.protocol.values import USER_ERRORS, Action, Treatment


def _is_delay(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


ACTIONS = {action.name.lower(): action for action in Action}
"""What `on_error` takes, and what a function that decides answers: "retry", "park", "stop"."""

Decide = Callable[[BaseException, Any], str]
"""Looks at the exception, which is still alive, and the item; returns "retry", "park" or "stop"."""


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """The rule of one node. What is None is as the run's options say."""

    on_error: str | Decide | None = None
    retries: int | None = None
    delay_s: float | None = None

    @classmethod
    def of(cls, whose: str, on_error: Any, retries: Any, delay_s: Any) -> ErrorPolicy:
        """A checked policy; GraphError names the node, what was expected and what was found."""
        if on_error is not None and not callable(on_error) and on_error not in ACTIONS:
            raise GraphError(
                f"{whose}.on_error({on_error!r}): expected 'retry', 'park', 'stop', or a function of (error, item) "
                "that returns one of these"
            )
        if retries is not None and (type(retries) is not int or retries < 0):
            raise GraphError(f"{whose}.on_error(retries={retries!r}): expected a whole number of 0 or more")
        if delay_s is not None and not _is_delay(delay_s):
            raise GraphError(f"{whose}.on_error(delay_s={delay_s!r}): expected a number of seconds of 0 or more")
        return cls(on_error, retries, delay_s)

    def judge(self, error: BaseException, item: Any) -> Treatment:
        """What is to become of this item. A function that raises, or answers something else, parks it.

        So does poison, of which no function is asked: it may be the one that the workers have died of.
        """
        on_error = self.on_error
        if not callable(on_error):
            action = ACTIONS[on_error or "retry"]
        else:
            action = Action.PARK if isinstance(error, PoisonError) else self._ask(on_error, error, item)
        return Treatment(action, self.retries, self.delay_s)

    @staticmethod
    def _ask(decide: Decide, error: BaseException, item: Any) -> Action:
        try:
            answer = decide(error, item)
            if answer in ACTIONS:
                return ACTIONS[answer]
            add_note(error, f"on_error answered {answer!r}; expected 'retry', 'park' or 'stop': the item is parked")
        except USER_ERRORS as problem:
            add_note(error, f"on_error itself raised {text_of(problem)}; the item is parked")
        return Action.PARK

    def with_default(self, on_error: str) -> ErrorPolicy:
        """This policy, where the node does not say what to do."""
        return self if self.on_error is not None else ErrorPolicy(on_error, self.retries, self.delay_s)
