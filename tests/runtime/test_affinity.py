"""Where a thread waits: on one core; and where it runs user code: on all that it may use."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import zmq

from consecution.kernel import cores_allowed
from consecution.runtime.affinity import Affinity, transport_threads
from tests.engines.misbehaving import wait_for

pytestmark = pytest.mark.skipif(len(cores_allowed()) < 2, reason="needs a choice of cores, which Linux gives")
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[frozenset[int]]:
    """All that this thread may use, before and after."""
    allowed = cores_allowed()
    yield allowed
    os.sched_setaffinity(0, allowed)


@pytest.fixture
def helper() -> Iterator[int]:
    """A thread that does nothing."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(WAIT_S,))
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    over.set()
    thread.join()


def test_it_is_bound_while_it_waits_and_only_then(all_cores: frozenset[int]) -> None:
    affinity = Affinity()
    last = max(all_cores)

    affinity.wait_on(last)
    placed = cores_allowed()
    affinity.bind()
    waiting = cores_allowed()
    affinity.free()

    assert (placed, waiting, cores_allowed()) == (all_cores, {last}, all_cores)
    assert affinity.core == last


def test_nothing_is_bound_before_it_is_placed_or_once_it_is_let_go(all_cores: frozenset[int]) -> None:
    affinity = Affinity()

    affinity.bind()
    before = cores_allowed()
    affinity.wait_on(min(all_cores))
    affinity.wait_on(None)
    affinity.bind()

    assert (before, cores_allowed()) == (all_cores, all_cores)


def test_a_core_that_it_may_not_use_is_none(all_cores: frozenset[int]) -> None:
    affinity = Affinity()

    affinity.wait_on(max(all_cores) + 1)
    affinity.bind()

    assert (affinity.core, cores_allowed()) == (None, all_cores)


def test_what_user_code_has_chosen_for_its_thread_stays(all_cores: frozenset[int]) -> None:
    affinity = Affinity()
    first, last = min(all_cores), max(all_cores)
    affinity.wait_on(first)
    os.sched_setaffinity(0, {last})

    affinity.bind()
    waiting = cores_allowed()
    affinity.free()
    affinity.wait_on(first)

    assert (waiting, cores_allowed(), affinity.core) == ({last}, {last}, None)


def test_what_somebody_else_has_chosen_while_it_waits_stays(all_cores: frozenset[int], helper: int) -> None:
    affinity = Affinity(lambda: [helper])
    first, last = min(all_cores), max(all_cores)
    affinity.wait_on(first)
    affinity.bind()
    os.sched_setaffinity(threading.get_native_id(), {last})

    affinity.free()

    assert (cores_allowed(), affinity.core, os.sched_getaffinity(helper)) == ({last}, None, all_cores)


class Cpuset:
    """A container whose cores are changed while it runs, as Linux sees to it since 6.2.

    What a thread has asked for is kept, and holds again as soon as there are such cores.
    """

    def __init__(self, cores: set[int]) -> None:
        self.cores = cores
        self._asked: dict[int, set[int]] = {}

    def ask(self, thread: int, cores: Iterable[int]) -> None:
        if not self.cores & set(cores):
            raise OSError(errno.EINVAL, "Invalid argument")
        self._asked[thread] = set(cores)

    def tell(self, thread: int) -> set[int]:
        return self.cores & self._asked.get(thread, self.cores) or self.cores


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Cpuset:
    made = Cpuset({0, 1})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_setaffinity", made.ask)
    monkeypatch.setattr(os, "sched_getaffinity", made.tell)
    return made


def test_a_core_that_is_taken_away_while_it_waits_is_not_somebodys_choice(container: Cpuset) -> None:
    affinity = Affinity(lambda: [7])
    affinity.wait_on(1)
    affinity.bind()
    container.cores = {0}

    affinity.free()
    affinity.bind()
    container.cores = {0, 1}

    assert (cores_allowed(), cores_allowed(7)) == ({0, 1}, {0, 1})


def test_it_may_use_the_cores_that_its_container_is_given_later(container: Cpuset) -> None:
    affinity = Affinity()
    affinity.wait_on(1)
    affinity.bind()
    affinity.free()

    container.cores = {0, 1, 2}

    assert cores_allowed() == {0, 1, 2}


def test_it_may_use_no_more_than_it_has_been_limited_to(container: Cpuset) -> None:
    os.sched_setaffinity(0, {0, 1})
    container.cores = {0, 1, 2}
    affinity = Affinity()

    affinity.wait_on(1)
    affinity.bind()
    affinity.free()

    assert cores_allowed() == {0, 1}


def test_helpers_stay_where_they_are_put_until_it_is_let_go(all_cores: frozenset[int], helper: int) -> None:
    affinity = Affinity(lambda: [helper])

    affinity.wait_on(min(all_cores))
    placed = os.sched_getaffinity(helper)
    affinity.wait_on(None)

    assert (placed, os.sched_getaffinity(helper)) == ({min(all_cores)}, all_cores)


def test_what_somebody_else_has_chosen_for_a_helper_stays(all_cores: frozenset[int], helper: int) -> None:
    affinity = Affinity(lambda: [helper])
    affinity.wait_on(min(all_cores))
    os.sched_setaffinity(helper, {max(all_cores)})

    affinity.wait_on(None)
    let_go = os.sched_getaffinity(helper)
    affinity.wait_on(min(all_cores))

    assert (let_go, os.sched_getaffinity(helper)) == ({max(all_cores)}, {max(all_cores)})


def test_helpers_are_looked_for_when_it_is_placed(all_cores: frozenset[int], helper: int) -> None:
    helpers: list[int] = []
    affinity = Affinity(lambda: helpers)
    helpers.append(helper)

    affinity.wait_on(min(all_cores))

    assert os.sched_getaffinity(helper) == {min(all_cores)}


def test_a_helper_that_is_gone_is_no_matter(all_cores: frozenset[int]) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert thread.native_id is not None
    gone = thread.native_id
    affinity = Affinity(lambda: [gone])

    affinity.wait_on(min(all_cores))

    assert affinity.core == min(all_cores)


def test_the_threads_of_one_zeromq_context_are_found() -> None:
    own, another = zmq.Context(io_threads=1), zmq.Context(io_threads=1)
    own.set(zmq.THREAD_NAME_PREFIX, 4711)
    with own.socket(zmq.PULL), another.socket(zmq.PULL):
        wait_for(lambda: len(transport_threads(4711)) == 2, WAIT_S)  # one for messages, one that cleans up
        found = transport_threads(4711), transport_threads(471)
    own.destroy(0)
    another.destroy(0)

    assert threading.get_native_id() not in found[0]
    assert not found[1]


def test_a_thread_may_have_a_name_that_is_no_text() -> None:
    context, over = zmq.Context(io_threads=1), threading.Event()
    context.set(zmq.THREAD_NAME_PREFIX, 4711)
    named = threading.Event()

    def run() -> None:
        Path("/proc/thread-self/comm").write_bytes(b"caf\xe9")
        named.set()
        over.wait(WAIT_S)

    thread = threading.Thread(target=run)
    thread.start()
    assert named.wait(WAIT_S)
    with context.socket(zmq.PULL):
        wait_for(lambda: len(transport_threads(4711)) == 2, WAIT_S)
    context.destroy(0)
    over.set()
    thread.join()


def test_other_systems_have_nothing_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    affinity = Affinity()
    affinity.wait_on(0)

    assert (cores_allowed(), affinity.core) == (frozenset(), None)
