"""Stream processing in Python, on one machine: every item is completely processed, whatever dies.

>>> from consecution import Pipeline, Node, Producer
>>> pipeline = Pipeline(Producer(range(3)) | (lambda n: n * n) | print)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consecution.batching import BatchNode as BatchNode
    from consecution.clock import Clock as Clock
    from consecution.engine import Running as Running
    from consecution.graph import Broadcast as Broadcast
    from consecution.graph import Merge as Merge
    from consecution.graph import Route as Route
    from consecution.joining import Join as Join
    from consecution.nodes import AsyncMap as AsyncMap
    from consecution.nodes import Chunk as Chunk
    from consecution.nodes import Filter as Filter
    from consecution.nodes import FlatMap as FlatMap
    from consecution.nodes import GroupByNode as GroupByNode
    from consecution.nodes import Map as Map
    from consecution.nodes import Node as Node
    from consecution.options import Options as Options
    from consecution.pacing import RateLimit as RateLimit
    from consecution.pipeline import GlobalState as GlobalState
    from consecution.pipeline import Pipeline as Pipeline
    from consecution.plan import Plan as Plan
    from consecution.producer import Producer as Producer
    from consecution.protocol.values import BatchId as BatchId
    from consecution.reduction import Count as Count
    from consecution.reduction import Reduce as Reduce
    from consecution.report import Failure as Failure
    from consecution.report import Report as Report
    from consecution.report import Status as Status
    from consecution.sink import AppendSink as AppendSink
    from consecution.sink import Sink as Sink
    from consecution.sink import TransactionSink as TransactionSink
    from consecution.sinks.csv import Csv as Csv
    from consecution.sinks.parquet import Parquet as Parquet
    from consecution.sinks.sql import SqlSink as SqlSink
    from consecution.sinks.text import JsonLines as JsonLines
    from consecution.sinks.text import TextLines as TextLines
    from consecution.source import Note as Note
    from consecution.source import Rejected as Rejected
    from consecution.source import Source as Source
    from consecution.sources.every import EverySource as EverySource
    from consecution.sources.files import FilesSource as FilesSource
    from consecution.sources.followed import FollowedFilesSource as FollowedFilesSource
    from consecution.sources.http import HttpSource as HttpSource
    from consecution.sources.iterable import IterableSource as IterableSource
    from consecution.sources.manual import ManualSource as ManualSource
    from consecution.sources.manual import Receipt as Receipt
    from consecution.sources.pipe import PipeSource as PipeSource
    from consecution.sources.schedule import ScheduleSource as ScheduleSource
    from consecution.sources.sql import SqlSource as SqlSource
    from consecution.sources.tcp import TcpSource as TcpSource
    from consecution.sources.zeromq import ZmqSource as ZmqSource
    from consecution.stateful import KeyedNode as KeyedNode
    from consecution.stateful import StatefulNode as StatefulNode

__version__ = "0.3.0"

_HOMES = {
    "AppendSink": "sink",
    "AsyncMap": "nodes",
    "BatchId": "protocol.values",
    "BatchNode": "batching",
    "Broadcast": "graph",
    "Chunk": "nodes",
    "Clock": "clock",
    "Count": "reduction",
    "Csv": "sinks.csv",
    "EverySource": "sources.every",
    "Failure": "report",
    "FilesSource": "sources.files",
    "FollowedFilesSource": "sources.followed",
    "Filter": "nodes",
    "FlatMap": "nodes",
    "GlobalState": "pipeline",
    "GroupByNode": "nodes",
    "HttpSource": "sources.http",
    "IterableSource": "sources.iterable",
    "Join": "joining",
    "JsonLines": "sinks.text",
    "KeyedNode": "stateful",
    "ManualSource": "sources.manual",
    "Map": "nodes",
    "Merge": "graph",
    "Node": "nodes",
    "Note": "source",
    "Options": "options",
    "Parquet": "sinks.parquet",
    "PipeSource": "sources.pipe",
    "Pipeline": "pipeline",
    "Plan": "plan",
    "Producer": "producer",
    "RateLimit": "pacing",
    "Receipt": "sources.manual",
    "Reduce": "reduction",
    "Rejected": "source",
    "Report": "report",
    "Route": "graph",
    "Running": "engine",
    "ScheduleSource": "sources.schedule",
    "Sink": "sink",
    "Source": "source",
    "SqlSink": "sinks.sql",
    "SqlSource": "sources.sql",
    "StatefulNode": "stateful",
    "Status": "report",
    "TcpSource": "sources.tcp",
    "TextLines": "sinks.text",
    "TransactionSink": "sink",
    "ZmqSource": "sources.zeromq",
}
"""Public name → the module it lives in. Loaded when first asked for, so that importing is quick."""

_MODULES = {"nodes", "pipeline", "utils"}
"""The modules of 0.2.0, which are there after ``import consecution``."""

__all__ = [
    "AppendSink",
    "AsyncMap",
    "BatchId",
    "BatchNode",
    "Broadcast",
    "Chunk",
    "Clock",
    "Count",
    "Csv",
    "EverySource",
    "Failure",
    "FilesSource",
    "Filter",
    "FlatMap",
    "FollowedFilesSource",
    "GlobalState",
    "GroupByNode",
    "HttpSource",
    "IterableSource",
    "Join",
    "JsonLines",
    "KeyedNode",
    "ManualSource",
    "Map",
    "Merge",
    "Node",
    "Note",
    "Options",
    "Parquet",
    "PipeSource",
    "Pipeline",
    "Plan",
    "Producer",
    "RateLimit",
    "Receipt",
    "Reduce",
    "Rejected",
    "Report",
    "Route",
    "Running",
    "ScheduleSource",
    "Sink",
    "Source",
    "SqlSink",
    "SqlSource",
    "StatefulNode",
    "Status",
    "TcpSource",
    "TextLines",
    "TransactionSink",
    "ZmqSource",
]
"""The same names once more, in a form that type checkers and editors read: ``from consecution import *``."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"consecution.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'consecution' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"consecution.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
