"""`Producer`: the front door to all sources, and the node a pipeline begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from consecution.errors import UsageError
from consecution.nodes import Node
from consecution.source import Source


def _pipe(**options: Any) -> Source:
    from consecution.sources.pipe import PipeSource

    return PipeSource(**options)


def _manual(**options: Any) -> Source:
    from consecution.sources.manual import ManualSource

    return ManualSource(**options)


KINDS: dict[str, Callable[..., Source]] = {"pipe": _pipe, "manual": _manual}
"""Kind → what makes its source from the producer's options."""


class Producer(Node):
    """Begins a pipeline: ``Producer("pipe") | parse | ...``.

    ``what`` is a kind ("pipe": lines of standard input; "manual": items pushed by `Running.push`), any
    iterable, a function without arguments that returns an iterable (a generator function: it is called
    anew in every run, and what was taken before is skipped), or a `Source`.
    """

    def __init__(self, what: Any, name: str | None = None, **options: Any) -> None:
        if isinstance(what, str) and what not in KINDS:
            raise UsageError(
                f"Producer({what!r}): unknown kind; expected one of {', '.join(map(repr, KINDS))}, an iterable, "
                "or a function that returns one (for the characters of a text: list(text))"
            )
        if options and not isinstance(what, str):
            raise UsageError(f"Producer({what!r}): options {sorted(options)} go with a kind only")
        super().__init__(name or "producer")
        self.kind = what if isinstance(what, str) else "iterable"
        self._what = what
        self._options = options

    def make_source(self) -> Source:
        """A source for one run."""
        if isinstance(self._what, str):
            return KINDS[self._what](**self._options)
        if isinstance(self._what, Source):
            return self._what
        from consecution.sources.iterable import IterableSource

        return IterableSource(self._what)

    def process(self, item: Any) -> None:
        self.push(item)

    def __iter__(self) -> Iterator[Any]:
        """The items, read in this thread (`Pipeline.consume`)."""
        source = self.make_source()
        if self.kind == "manual":
            raise UsageError(f"{self}: nobody pushes into a manual producer in consume(); use start(), or push()")
        source.may_block = True
        source.open(None)
        try:
            while (items := source.read(1000)) is not None:
                yield from items
        finally:
            source.close()
