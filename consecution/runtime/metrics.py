"""What Prometheus may read of a run: names and meanings, once, and how each is read from a `Status`.

Counters are sums since the run began; those of sources, and of what was handled, since the state directory was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from consecution.errors import MissingExtraError
from consecution.report import Status

STATES = ("starting", "running", "pausing", "paused", "recovering", "stopping", "ending")


@dataclass(frozen=True, slots=True)
class Metric:
    """One name; that of a counter ends in _total. ``read`` gets a status, or a row of the table that ``of`` names."""

    name: str
    of: str
    meaning: str
    read: Callable[[Any], float]

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")

    @property
    def labels(self) -> tuple[str, ...]:
        return LABELS[self.of]


LABELS: dict[str, tuple[str, ...]] = {"state": ("state",), "run": (), "source": ("source",), "task": ("node", "task")}
METRICS = (
    Metric("consecution_state", "state", "1 for the state the run is in, 0 for the others", float),
    Metric("consecution_run_seconds", "run", "seconds since the run began", lambda run: run.seconds),
    Metric("consecution_pending_below_items", "run", "open items that durable nodes pushed", lambda r: r.pending_below),
    Metric("consecution_failed_items", "run", "items that are kept as failed, at all nodes", lambda run: run.failed),
    Metric("consecution_handled_items_total", "run", "items that went over failed edges", lambda run: run.handled),
    Metric("consecution_replayed_batches_total", "run", "batches that ran again", lambda run: run.replayed),
    Metric("consecution_worker_restarts_total", "run", "workers that were started again", lambda run: run.restarts),
    Metric("consecution_source_emitted_items_total", "source", "items that were taken", lambda row: row.emitted),
    Metric("consecution_source_completed_items_total", "source", "completely processed ones", lambda r: r.completed),
    Metric("consecution_source_pending_items", "source", "emitted, and not yet completed", lambda row: row.pending),
    Metric("consecution_source_failed_items", "source", "kept as failed by this source", lambda row: row.failed),
    Metric("consecution_task_in_items_total", "task", "items that came to the node's code", lambda row: row.items_in),
    Metric("consecution_task_out_items_total", "task", "items that it pushed", lambda row: row.items_out),
    Metric("consecution_task_raised_total", "task", "tries that raised, retries too", lambda row: row.failed),
    Metric("consecution_task_frames_total", "task", "frames taken; of a source, batches completed", lambda r: r.frames),
    Metric("consecution_task_busy_seconds_total", "task", "time in the node's code", lambda row: row.busy_s),
    Metric("consecution_task_commit_seconds_total", "task", "time in commits", lambda row: row.commit_s),
    Metric("consecution_task_waited_seconds_total", "task", "time that its frames have waited", lambda r: r.waited_s),
    Metric("consecution_task_waiting_frames", "task", "frames in a durable task's inbox", lambda row: row.waiting),
    Metric("consecution_task_store_bytes", "task", "its store: journal, inbox and state", lambda row: row.store_bytes),
)


def import_prometheus() -> Any:
    """The module that writes the formats."""
    try:
        import prometheus_client.exposition
        import prometheus_client.metrics_core
    except ImportError as error:
        raise MissingExtraError(
            f"/metrics needs prometheus-client: pip install 'consecution[metrics]' ({error})", extra="metrics"
        ) from error
    return prometheus_client


def exposition(status: Status, accepted: str) -> tuple[str, bytes]:
    """Content type and content, in the format that a client accepts: OpenMetrics, or else Prometheus' text."""
    encode, content_type = import_prometheus().exposition.choose_encoder(accepted)
    return content_type, encode(_Collected(status))


class _Collected:
    """A registry, as an encoder sees it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Any]:
        core = import_prometheus().metrics_core
        for metric in METRICS:
            kind = core.CounterMetricFamily if metric.is_counter else core.GaugeMetricFamily
            family = kind(metric.name, metric.meaning, labels=metric.labels)
            for labels, row in _rows(self._status, metric):
                family.add_metric(labels, metric.read(row))
            yield family


def _rows(status: Status, metric: Metric) -> Iterable[tuple[Sequence[str], Any]]:
    if metric.of == "run":
        return [((), status)]
    if metric.of == "state":
        return [((state,), state == status.state) for state in STATES]
    table: Sequence[Any] = status.sources if metric.of == "source" else status.tasks
    return [([getattr(row, label) for label in metric.labels], row) for row in table]


__all__ = ["METRICS", "exposition"]
