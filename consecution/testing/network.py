"""The simulated network: one queue per connection, in order, with any delay between connections.

That is what ZeroMQ's PUSH and PULL give. An adversarial schedule also reorders, repeats and loses
messages, which the protocol must survive (a loss, where its tree timeout is on).
"""

from __future__ import annotations

from collections import deque
from random import Random

from consecution.protocol.values import Message
from consecution.testing.schedule import Schedule

Endpoint = str

HELD = 0.06
"""How often a message is held up, and all behind it on that connection."""
LONGEST_HOLD = 80


class _Connection:
    __slots__ = ("held_until", "queue")

    def __init__(self) -> None:
        self.queue: deque[Message] = deque()
        self.held_until = 0


class Network:
    """All connections, by the endpoint they lead to, then by the one that sends."""

    def __init__(self, schedule: Schedule, rng: Random) -> None:
        self._schedule = schedule
        self._rng = rng
        self._into: dict[Endpoint, dict[Endpoint, _Connection]] = {}
        self.step = 0
        self.calm = False
        """From now on nothing is lost, repeated or reordered."""

    def bind(self, endpoint: Endpoint) -> None:
        self._into[endpoint] = {}

    def send(self, sender: Endpoint, endpoint: Endpoint, message: Message) -> None:
        """Queue a message; what is sent to a dead endpoint is lost."""
        connections = self._into.get(endpoint)
        if connections is None:
            return
        connection = connections.get(sender)
        if connection is None:
            connection = connections[sender] = _Connection()
        if self._rng.random() < HELD:
            connection.held_until = self.step + self._rng.randrange(LONGEST_HOLD)
        connection.queue.append(message)

    def has(self, endpoint: Endpoint) -> bool:
        """Whether anything would arrive there now."""
        step = self.step
        for connection in self._into[endpoint].values():  # noqa: SIM110  (asked at every step: twice as fast)
            if connection.queue and connection.held_until <= step:
                return True
        return False

    def take(self, endpoint: Endpoint) -> Message | None:
        """The next message of any connection to this endpoint; None if nothing arrives now."""
        step = self.step
        ready = [c.queue for c in self._into[endpoint].values() if c.queue and c.held_until <= step]
        if not ready:
            return None
        queue = ready[int(self._rng.random() * len(ready))]
        if self.calm or not self._schedule.reorder:
            return queue.popleft()
        return self._take_adversarially(queue)

    def _take_adversarially(self, queue: deque[Message]) -> Message | None:
        rng, odds = self._rng, self._schedule
        at = rng.randrange(len(queue)) if rng.random() < odds.reorder else 0
        message = queue[at]
        if rng.random() < odds.repeat:
            return message
        del queue[at]
        return None if rng.random() < odds.lose else message

    def release(self) -> bool:
        """Nothing else moves: let go of all that is held up. Returns whether there was anything."""
        found = False
        for connections in self._into.values():
            for connection in connections.values():
                connection.held_until = 0
                found = found or bool(connection.queue)
        return found

    def died(self, endpoint: Endpoint) -> None:
        """What waited for the dead one is lost; of what it sent, only a first part may be on its way."""
        del self._into[endpoint]
        for connections in self._into.values():
            connection = connections.get(endpoint)
            if connection is not None:
                for _ in range(self._rng.randint(0, len(connection.queue))):
                    connection.queue.pop()
