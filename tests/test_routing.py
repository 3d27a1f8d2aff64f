"""Keys to replicas, the same in every process and every run; and choices between ways."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import subprocess
import sys
import uuid
from collections import Counter, namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution.errors import KeyEncodingError
from consecution.routing import SLOTS, KeyedRouter, RouteChooser, encode_key, replica_of_slot, slot_of

Point = namedtuple("Point", "x y")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Other(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Shade(str, enum.Enum):  # noqa: UP042  (the older form, which many have)
    DARK = "dark"


class Name(str):
    pass


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.uuids(),
    st.sampled_from([*Color, *Other, *Level, *Shade]),
)
keys = st.recursive(plain, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)


@given(keys, keys)
def test_keys_encode_equally_exactly_if_they_are_equal(a: Any, b: Any) -> None:
    if not _holds_nan(a) and not _holds_nan(b):
        assert (encode_key(a) == encode_key(b)) == (a == b)


def _holds_nan(key: Any) -> bool:
    return any(map(_holds_nan, key)) if isinstance(key, tuple) else bool(key != key)


@pytest.mark.parametrize(
    "equal",
    [
        (1, 1.0, True, decimal.Decimal(1), decimal.Decimal("1.00"), Level.LOW),
        (0, 0.0, -0.0, False, decimal.Decimal("-0")),
        (0.5, decimal.Decimal("0.5")),
        (10**5000, decimal.Decimal(10) ** 5000),
        (float("nan"), -float("nan"), decimal.Decimal("NaN"), decimal.Decimal("sNaN")),
        (float("inf"), decimal.Decimal("Infinity")),
        ("dark", Shade.DARK, Name("dark")),
        ((1, "a"), Point(1.0, "a")),
        (
            dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC),
            dt.datetime(2026, 1, 1, 14, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        ),
    ],
    ids=["one", "zero", "half", "long", "nan", "inf", "str", "tuple", "time"],
)
def test_what_is_one_key_in_a_dict_is_one_key_here(equal: tuple[Any, ...]) -> None:
    assert len({encode_key(key) for key in equal}) == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1", 1),
        ("a", b"a"),
        (None, "None"),
        (("ab", "c"), ("a", "bc")),
        ((("a",), "b"), ("a", ("b",))),
        ((), None),
        (Color.RED, Other.RED),
        (Color.RED, 1),
        (dt.date(2026, 1, 1), dt.datetime(2026, 1, 1)),
        (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
        (0.1, decimal.Decimal("0.1")),
        ("\udc80", "\udc81"),
        (float("inf"), float("-inf")),
    ],
)
def test_different_keys_encode_differently(a: Any, b: Any) -> None:
    assert encode_key(a) != encode_key(b)


def test_times_at_the_ends_of_the_calendar_can_be_keys() -> None:
    for hours in (-14, 14):
        zone = dt.timezone(dt.timedelta(hours=hours))
        assert encode_key(dt.datetime.min.replace(tzinfo=zone)) != encode_key(dt.datetime.max.replace(tzinfo=zone))


@pytest.mark.parametrize("key", [[1], {}, object(), {1}, ("a", [1]), fractions.Fraction(1, 3), 1j])
def test_what_has_no_stable_encoding_is_refused(key: Any) -> None:
    with pytest.raises(KeyEncodingError, match=r"a key must be one of str, .*; found .*: let the key function"):
        encode_key(key)


def test_a_decimal_with_a_monstrous_exponent_is_refused_instead_of_written_out() -> None:
    with pytest.raises(KeyEncodingError, match="exponent must be within 10000"):
        encode_key(decimal.Decimal("1E+999999"))


def test_slots_do_not_change_from_version_to_version() -> None:
    keys = ["", "alice", b"alice", 0, 1, -1, 0.5, None, ("a", 1), Color.RED, uuid.UUID(int=7), dt.date(2026, 1, 2)]
    assert [slot_of(key) for key in keys] == [3343, 1690, 338, 3028, 3396, 364, 2088, 1212, 1150, 2569, 2166, 679]


@pytest.mark.parametrize("name", [int, "user {}".format, "AC-{:04d}".format], ids=["numbers", "names", "padded"])
@pytest.mark.parametrize("first", [0, 1, 10, 1000])
def test_a_few_keys_that_follow_each_other_meet_more_than_one_replica(name: Any, first: int) -> None:
    for replicas in (2, 4):
        keys = [name(number) for number in range(first, first + 8)]
        owners = Counter(replica_of_slot(slot_of(key), replicas) for key in keys)

        assert max(owners.values()) <= 2 * len(keys) // replicas - 1, owners


def test_slots_are_the_same_in_a_process_with_another_hash_seed() -> None:
    code = "from consecution.routing import slot_of; print([slot_of(k) for k in ('alice', b'x', (1, 'a'), None)])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {f"{[slot_of(k) for k in ('alice', b'x', (1, 'a'), None)]}\n"}


@given(st.integers(1, 1024))
def test_every_replica_owns_one_range_of_slots_and_all_are_about_as_wide(replicas: int) -> None:
    owners = [replica_of_slot(slot, replicas) for slot in range(SLOTS)]
    assert owners == sorted(owners)
    widths = Counter(owners)
    assert set(widths) == set(range(replicas))
    assert max(widths.values()) - min(widths.values()) <= 1


@given(st.lists(st.tuples(keys, st.integers())), st.integers(1, 9))
def test_a_partition_keeps_every_item_in_order_where_its_key_belongs(
    items: list[tuple[Any, int]], replicas: int
) -> None:
    router = KeyedRouter(lambda item: item[0], replicas)
    parts = router.partition(items)
    alone = KeyedRouter(lambda item: item[0], replicas)
    expected: list[list[Any]] = [[] for _ in range(replicas)]
    for item in items:
        expected[alone.replica_of(item)].append(item)
    assert repr(parts) == repr(expected)


def test_a_key_meets_the_same_replica_after_its_router_forgot_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consecution.routing.CACHED_KEYS", 4)
    router = KeyedRouter(lambda item: item, 7)
    first = router.partition(list(range(100)))
    assert router.partition(list(range(100))) == first
    assert len(router._known) <= 4


def test_a_key_that_cannot_be_hashed_is_refused_by_name() -> None:
    with pytest.raises(KeyEncodingError, match="found list"):
        KeyedRouter(lambda item: [item], 2).partition([1])


def test_a_route_is_chosen_by_name_or_index() -> None:
    chooser = RouteChooser("a.f", lambda item: item, ("b", "c"))
    assert [chooser.index_of(answer) for answer in ("b", "c", 0, 1, False, True)] == [0, 1, 0, 1, 0, 1]


def test_routes_take_turns_where_no_function_chooses() -> None:
    chooser = RouteChooser("a.round_robin", None, ("b", "c", "d"))
    assert [chooser.index_of("any") for _ in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("answer", ["d", None, [], 1.5, ("b",)])
def test_a_bad_route_is_refused_with_the_list_of_good_ones(answer: Any) -> None:
    chooser = RouteChooser("a.f", lambda item: answer, ("b", "c"))
    with pytest.raises(ValueError, match=r"a\.f encountered bad route path .*Valid route paths are \['b', 'c'\]\.$"):
        chooser.index_of("any")


@pytest.mark.parametrize("answer", [2, -1])
def test_a_bad_index_is_refused_with_the_good_ones(answer: int) -> None:
    chooser = RouteChooser("a.f", lambda item: answer, ("b", "c"))
    with pytest.raises(ValueError, match=r"\['b', 'c'\], or an index from 0 to 1\.$"):
        chooser.index_of("any")


def test_what_the_function_itself_raises_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="missing"):
        RouteChooser("a.f", lambda item: dict[str, str]()["missing"], ("b",)).index_of(1)
