from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from consecution.errors import OptionError
from consecution.options import MOST_WORKERS, SETTINGS, Options


def test_every_setting_is_a_field_with_the_same_default_in_the_same_order() -> None:
    fields = [(field.name, field.default) for field in dataclasses.fields(Options)]

    assert fields == [(setting.name, setting.default) for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_default_passes_its_own_check(setting: Any) -> None:
    options = Options.of(**{setting.name: setting.default})

    assert options == Options()


def test_flags_are_the_names_with_dashes() -> None:
    assert {s.name: s.flag for s in SETTINGS}["max_pending_bytes"] == "--max-pending-bytes"


def test_an_unknown_option_suggests_the_one_that_was_meant() -> None:
    with pytest.raises(OptionError, match="unknown option 'retry'; did you mean 'retries'"):
        Options.of(retry=1)


def test_an_unknown_option_like_no_other_lists_them_all() -> None:
    with pytest.raises(OptionError, match="the options are mode, robustness"):
        Options.of(zzz=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "proces"),
        ("mode", None),
        ("robustness", 3),
        ("retries", -1),
        ("retries", 1.5),
        ("retries", True),
        ("retries", "3"),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("batch_size", 0),
        ("max_pending", 0),
        ("linger_ms", -0.1),
        ("sync", "maybe"),
        ("fresh", "yes"),
        ("fresh", 1),
        ("state_dir", 7),
        ("metrics_port", 65536),
        ("metrics_port", True),
        ("metrics_port", "9100"),
        ("metrics_host", ""),
        ("metrics_host", None),
    ],
)
def test_an_impossible_value_is_refused_with_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Options.of(**{name: value})

    assert str(caught.value).startswith(f"{name}={value!r}: expected")


def test_a_misspelt_choice_suggests_the_right_one() -> None:
    with pytest.raises(OptionError, match="did you mean 'process'"):
        Options.of(mode="proces")


@pytest.mark.parametrize("workers", ["per-task", "auto", 1, 1024])
def test_workers_are_a_word_or_a_number(workers: Any) -> None:
    assert Options.of(workers=workers).workers == workers


def test_a_number_of_workers_may_come_as_text() -> None:
    """A flag of a command line is text."""
    assert Options.of(workers="4") == Options.of(workers=4)


@pytest.mark.parametrize("workers", [0, -1, 1025, True, 2.0, "0", "two", "per task", None, [2]])
def test_any_other_workers_are_refused_with_what_may_be(workers: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Options.of(workers=workers)

    expected = f"workers={workers!r}: expected 'per-task', 'auto', or a whole number from 1 to {MOST_WORKERS}"
    assert str(caught.value) == expected


def test_values_get_the_type_of_their_field() -> None:
    options = Options.of(timeout_s=3, state_dir="state")

    assert isinstance(options.timeout_s, float)
    assert options.state_dir == Path("state")


def test_changed_options_are_checked_like_all() -> None:
    options = Options.of(retries=5)

    assert options.with_changes(mode="inline") == Options.of(retries=5, mode="inline")
    with pytest.raises(OptionError, match="retries=-1"):
        options.with_changes(retries=-1)


def test_only_robust_is_robust() -> None:
    robust = [level for level in ("none", "confirm", "track", "robust") if Options.of(robustness=level).robust]

    assert robust == ["robust"]
