"""PyFlink: the DataStream API on a local Flink, its Python in processes of its own (locally, threads are the default).

The last step is a function that keeps the answer and emits nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pyflink.common import Configuration, Types, WatermarkStrategy
from pyflink.datastream import DataStream, FlatMapFunction, StreamExecutionEnvironment
from pyflink.datastream.connectors.number_seq import NumberSequenceSource

from benchmarks import cpu as burning
from benchmarks.identity import identity as pass_on
from benchmarks.peers.task import Task, Total, begun
from benchmarks.wordcount import digest

WORKERS_IN_PROCESSES = {"_python_worker_execution_mode": "process"}
STATE_CACHE = "100000"


class Sum(FlatMapFunction):
    def open(self, runtime_context: Any) -> None:
        self._total = Total()

    def flat_map(self, value: int) -> Iterator[Any]:
        self._total.add(value)
        return iter(())

    def close(self) -> None:
        self._total.close()


class Counts(FlatMapFunction):
    """The latest count of each word."""

    def open(self, runtime_context: Any) -> None:
        self._counts: dict[str, int] = {}
        self._total = Total()

    def flat_map(self, value: Any) -> Iterator[Any]:
        self._counts[value[0]] = value[1]
        self._total.add(0)
        return iter(())

    def close(self) -> None:
        self._total.sum = digest(self._counts)
        self._total.close()


def _environment(task: Task) -> StreamExecutionEnvironment:
    os.environ.update(WORKERS_IN_PROCESSES)
    configuration = Configuration()
    configuration.set_string("python.state.cache-size", STATE_CACHE)
    found = StreamExecutionEnvironment.get_execution_environment(configuration)
    found.set_parallelism(task.workers)
    return found


def _numbers(environment: StreamExecutionEnvironment, task: Task) -> DataStream:
    source = NumberSequenceSource(0, task.size - 1)
    return environment.from_source(source, WatermarkStrategy.no_watermarks(), "numbers", Types.LONG())


def _same(item: int) -> int:
    begun()
    return pass_on(item)


def _burn(item: int) -> int:
    begun()
    return burning.burn(item)


def _split(line: str) -> Iterator[tuple[str, int]]:
    begun()
    return ((word, 1) for word in line.split())


def identity(task: Task) -> None:
    environment = _environment(task)
    _numbers(environment, task).map(_same, Types.LONG()).flat_map(Sum(), Types.LONG()).print()
    environment.execute()


def cpu(task: Task) -> None:
    environment = _environment(task)
    _numbers(environment, task).map(_burn, Types.LONG()).flat_map(Sum(), Types.LONG()).print()
    environment.execute()


def words(task: Task) -> None:
    environment = _environment(task)
    counted = Types.TUPLE([Types.STRING(), Types.LONG()])
    lines = environment.from_collection(task.lines(), Types.STRING())
    pairs = lines.flat_map(_split, counted)
    counts = pairs.key_by(lambda pair: pair[0], Types.STRING()).reduce(lambda one, other: (one[0], one[1] + other[1]))
    counts.flat_map(Counts(), Types.LONG()).print()
    environment.execute()
