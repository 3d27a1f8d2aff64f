"""`Producer`: the front door to all sources, and the node a pipeline begins with."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from consecution.errors import GraphError, UsageError
from consecution.nodes import Node
from consecution.source import Rejected, Source

READ_ITEMS = 1000


def _pipe() -> type[Source]:
    from consecution.sources.pipe import PipeSource

    return PipeSource


def _manual() -> type[Source]:
    from consecution.sources.manual import ManualSource

    return ManualSource


def _sql() -> type[Source]:
    from consecution.sources.sql import SqlSource

    return SqlSource


def _files() -> Callable[..., Source]:
    from consecution.sources.followed import make_files

    return make_files


def _http() -> type[Source]:
    from consecution.sources.http import HttpSource

    return HttpSource


def _tcp() -> type[Source]:
    from consecution.sources.tcp import TcpSource

    return TcpSource


def _zmq() -> type[Source]:
    from consecution.sources.zeromq import ZmqSource

    return ZmqSource


def _every() -> type[Source]:
    from consecution.sources.every import EverySource

    return EverySource


def _schedule() -> type[Source]:
    from consecution.sources.schedule import ScheduleSource

    return ScheduleSource


KINDS: dict[str, Callable[[], Callable[..., Source]]] = {
    "pipe": _pipe,
    "manual": _manual,
    "sql": _sql,
    "files": _files,
    "http": _http,
    "tcp": _tcp,
    "zmq": _zmq,
    "every": _every,
    "schedule": _schedule,
}
"""Kind → where to find what makes its source: its arguments are the producer's options."""


class Producer(Node):
    """Begins a pipeline: ``Producer("pipe") | parse | ...``. Several may: ``[Producer(a), Producer(b) | f] | g``.

    ``Producer(x) * n`` reads a source that can be split (a list, a range, files, "sql") in n shares at once. Unasked,
    ``workers`` splits files where nothing behind them minds the order; ``* 1`` never does.

    ``what`` is a kind, any iterable, a function without arguments that returns an iterable (a generator function: it
    is called anew in every run, and what was taken before is skipped), or a `Source`. UsageError for anything else.
    The kinds are "pipe", "files", "sql", "http", "tcp", "zmq", "every", "schedule" and "manual". A kind's arguments and
    options follow it, ``Producer("pipe", format="csv")``: they are those of its class, `PipeSource` here.
    """

    def __init__(self, what: Any, *arguments: Any, name: str | None = None, **options: Any) -> None:
        self.kind = _kind_of(what)
        if (arguments or options) and not isinstance(what, str):
            given = ", ".join([*map(repr, arguments), *(f"{option}=..." for option in options)])
            raise UsageError(
                f"Producer({what!r}): {given} can go with a kind only; leave that out (name=... is the name)"
            )
        super().__init__(name or "producer")
        self._stem = None if name else self.name
        self._what = what
        self._arguments = arguments
        self._options = options
        if isinstance(what, str):
            self._check_options(what)

    def make_source(self) -> Source:
        """A source for one run; a `Source` that was given is used in every run, one at a time."""
        if isinstance(self._what, Source):
            self._what.may_block = False
            return self._what
        if isinstance(self._what, str):
            return KINDS[self._what]()(*self._arguments, **self._options)
        from consecution.sources.iterable import IterableSource

        return IterableSource(self._what)

    def make_shares(self, shares: int) -> list[Source]:
        """The source in so many shares; UsageError where it cannot be split."""
        source = self.make_source()
        found = [source] if shares == 1 else source.split(shares)
        if found is None:
            raise UsageError(f"{self} * {shares}: {source!r} is read in one place; give replicas to the node after it")
        return found

    def is_worth_splitting(self, shares: int) -> bool:
        """Whether so many workers are to read it at once, unasked."""
        source = self.make_source()
        return source.worth_splitting and source.split(shares) is not None

    def splits_evenly(self, shares: int) -> bool:
        """Whether so many workers would have about as much to read each."""
        return self.make_source().splits_evenly(shares)

    def _check_options(self, kind: str) -> None:
        """UsageError where it stands, not only once it runs."""
        signature = inspect.signature(KINDS[kind]())
        unknown = sorted(set(self._options) - set(signature.parameters))
        if unknown:
            known = ", ".join(signature.parameters)
            raise UsageError(f"Producer({kind!r}): unknown option {unknown[0]!r}; it takes {known}")
        try:
            signature.bind(*self._arguments, **self._options)
        except TypeError as error:
            raise UsageError(f"Producer({kind!r}): {error}; it takes {kind}{signature}") from None

    def process(self, item: Any) -> None:
        self.push(item)

    def __iter__(self) -> Iterator[Any]:
        """The items, read in this thread (`Pipeline.consume`)."""
        if self.kind == "manual":
            raise UsageError(f"{self}: nobody pushes into a manual producer in consume(); use start(), or push()")
        source = self.make_source()
        return iter(source) if isinstance(source, Iterable) else _read_all(source)


def check_beginnings(tops: list[Node]) -> None:
    """A pipeline has one top node, or begins with several producers. GraphError for anything else."""
    others = [top for top in tops if not isinstance(top, Producer)]
    if others and len(tops) > 1:
        raise GraphError(
            f"You must remove one of the following input nodes {tops}: a pipeline has one top node, or begins with "
            f"producers only, not with {', '.join(map(str, others))}; connect it below them, or take it out"
        )


def _kind_of(what: Any) -> str:
    """The kind of source. Refuses what can be none, before anything starts."""
    if isinstance(what, str):
        if what not in KINDS:
            raise UsageError(
                f"Producer({what!r}): unknown kind; expected one of {', '.join(map(repr, KINDS))}, an iterable, "
                "or a function that returns one (for the characters of a text: list(text))"
            )
        return what
    if isinstance(what, Source):
        return "source"
    from consecution.sources.iterable import IterableSource

    IterableSource(what)
    return "iterable"


def _read_all(source: Source) -> Iterator[Any]:
    """What was processed when the next items are asked for is all that there is to be told of."""
    source.may_block = True
    source.open(None)
    try:
        for seq in itertools.count():
            items = source.read(READ_ITEMS)
            if items is None:
                return
            source.batch_born(seq, len(items))
            yield from map(_accept, items) if source.rejects else items
            source.batch_journalled(seq)
            source.batch_settled(seq, 0, True)
    finally:
        source.close()


def _accept(item: Any) -> Any:
    """The item; in `Pipeline.consume` an error comes as it is."""
    if type(item) is Rejected:
        raise item.error
    return item
