"""What can be decoded of a list of which not everything can."""

from __future__ import annotations

import pickle
from typing import Any

import dill
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.errors import MissingCodeError
from consecution.protocol.poison import LostItem, PartlyDecodedError, PoisonError
from consecution.transport.codec import LiveCodec, PickleCodec
from consecution.transport.salvage import salvage


class TwoPartsError(Exception):
    """The usual case: pickle knows of one argument, the constructor wants two."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__(first)


class Fussy:
    """Refuses its state when that is 3."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["value"] == 3:
            raise ValueError("no three")
        self.__dict__ |= state

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Fussy) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)


class Trusting:
    """Makes a text of whatever it is given: it must not be given what is lost."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self.text = repr(part)

    def __reduce__(self) -> Any:
        return make_trusting, (self._part,)


def make_trusting(part: Any) -> Trusting:
    made = Trusting(None)
    made.text = repr(part)
    return made


class GoneAtTheOtherEnd:
    """Its class is not to be found where it is decoded."""

    def __reduce__(self) -> Any:
        return type(self), ()


class Array(list[Any]):
    """A list of one's own, filled while it is decoded."""

    def extend(self, items: Any) -> None:
        if 13 in items:
            raise ValueError("no thirteen")
        super().extend(items)


def bad() -> Any:
    return TwoPartsError(1, 2)


def found(items: list[Any]) -> tuple[list[Any], list[str]]:
    """What is decoded of items, and the errors of the rest."""
    try:
        return PickleCodec().decode(pickle.dumps(items, 5)), []
    except PartlyDecodedError as partly:
        lost = [item for item in partly.items if isinstance(item, LostItem)]
        return [item for item in partly.items if not isinstance(item, LostItem)], [type(i.error).__name__ for i in lost]


@pytest.mark.parametrize(
    "item",
    [
        bad(),
        Fussy(3),
        [bad()],
        {"deep": [({"deeper": Fussy(3)},)]},
        {Fussy(3)},
        frozenset([Fussy(3)]),
        {Fussy(3): 1},
        Trusting(bad()),
        Trusting([Fussy(3)]),
        Array([1, 13]),
        (lambda x=bad(): x,),
        (lambda: 1, bad()),
    ],
    ids=lambda item: type(item).__name__,
)
def test_the_item_at_fault_is_lost_and_no_other(item: Any) -> None:
    items = [1, "two", Fussy(2), item, [3], Trusting(4), {5: 6}]
    payload = PickleCodec().encode(items)

    with pytest.raises(PartlyDecodedError) as caught:
        PickleCodec().decode(payload)

    places = [place for place, made in enumerate(caught.value.items) if isinstance(made, LostItem)]
    assert places == [3]
    assert caught.value.items[2] == Fussy(2)
    assert (caught.value.items[4], caught.value.items[5].text) == ([3], "4")


def test_an_item_that_two_share_is_lost_to_both() -> None:
    shared = Fussy(3)

    good, lost = found([[shared], 1, {"again": shared}, 2])

    assert (good, lost) == ([1, 2], ["ValueError", "ValueError"])


def test_a_list_longer_than_pickle_writes_at_a_time_keeps_its_order() -> None:
    items = [*range(2500), bad(), *range(2500, 3100)]

    good, lost = found(items)

    assert (good, lost) == (list(range(3100)), ["TypeError"])


def test_a_class_that_is_gone_is_no_items_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = PickleCodec().encode([1, bad(), GoneAtTheOtherEnd(), 2])
    monkeypatch.delattr("tests.transport.test_salvage.GoneAtTheOtherEnd")

    with pytest.raises(
        MissingCodeError, match=r"an item needs tests\.transport\.test_salvage\.GoneAtTheOtherEnd, which"
    ):
        PickleCodec().decode(payload)


def test_what_is_lost_shows_what_it_was_and_cannot_be_encoded_again() -> None:
    with pytest.raises(PartlyDecodedError) as caught:
        salvage(pickle.dumps([bad()], 5))

    (lost,) = caught.value.items
    assert repr(lost) == "<TwoPartsError that cannot be decoded, of (1,)>"
    with pytest.raises(TypeError, match="second"):
        pickle.dumps(lost)


@pytest.mark.parametrize("payload", [b"", b"rubbish", pickle.dumps([1, 2, 3], 5)[:-2], b"\x80\x05N."])
def test_bytes_that_are_no_list_of_items_raise_what_pickle_raises(payload: bytes) -> None:
    if payload == b"\x80\x05N.":
        assert PickleCodec().decode(payload) is None
        return

    with pytest.raises((pickle.UnpicklingError, EOFError)):
        PickleCodec().decode(payload)


def test_stored_bytes_are_salvaged_where_tasks_share_their_items_too() -> None:
    with pytest.raises(PartlyDecodedError):
        LiveCodec(stores_bytes=True).decode(pickle.dumps([bad(), 1], 5))


def test_what_dill_has_written_is_salvaged_too() -> None:
    payload = dill.dumps([lambda: 1, bad(), 2], protocol=5, byref=False, recurse=True)

    with pytest.raises(PartlyDecodedError) as caught:
        PickleCodec().decode(payload)

    assert [isinstance(item, LostItem) for item in caught.value.items] == [False, True, False]


VALUES = st.recursive(
    st.one_of(st.integers(0, 5), st.text(max_size=3), st.builds(Fussy, st.integers(0, 5)), st.builds(bad)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(), inner)),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(VALUES, max_size=6))
def test_just_those_items_are_lost_that_cannot_be_decoded_alone(items: list[Any]) -> None:
    alone = []
    for item in items:
        try:
            alone.append(pickle.loads(pickle.dumps(item, 5)))
        except (TypeError, ValueError):
            continue

    good, lost = found(items)

    assert good == alone
    assert len(lost) == len(items) - len(alone)


# -- with care -----------------------------------------------------------------------------------


def test_each_call_into_the_code_of_others_is_met_first_and_the_same_every_time() -> None:
    payload = pickle.dumps([1, Fussy(1), Trusting(2), bad()], 5)
    meetings: list[list[bytes]] = [[], []]

    for names in meetings:
        with pytest.raises(PartlyDecodedError):
            salvage(payload, names.append)

    assert meetings[0] == meetings[1]
    assert len(set(meetings[0])) == len(meetings[0]) >= 4


def test_a_call_that_may_not_be_made_loses_its_item_and_no_other() -> None:
    payload = pickle.dumps([1, Trusting(2), 3], 5)
    calls: list[bytes] = []
    salvage(payload, calls.append)

    def refuse_the_last(name: bytes) -> None:
        if name == calls[-1]:
            raise PoisonError("killed by SIGSEGV", "")

    with pytest.raises(PartlyDecodedError) as caught:
        salvage(payload, refuse_the_last)

    assert [isinstance(item, LostItem) for item in caught.value.items] == [False, True, False]
    assert isinstance(caught.value.items[1].error, PoisonError)


def test_a_payload_that_has_stayed_in_its_worker_is_had_without_any_call() -> None:
    met: list[Any] = []
    payload = [1, (n for n in [2])]

    found = salvage(payload, met.append)

    assert found == payload
    assert found is not payload
    assert met == []
