from __future__ import annotations

import json
from pathlib import Path

import pytest

from consecution.cli import main
from tests.conftest import WriteModule

TARGET = """
from consecution import Map, Pipeline, Producer
pipeline = Pipeline(Producer(range(3), name="numbers") | Map(str, name="text") * 2)
"""


@pytest.fixture
def target(write_module: WriteModule) -> str:
    return str(write_module("plan_target", TARGET))


def test_the_plan_is_printed_as_text(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", target, "--mode", "thread"]) == 0

    text = capsys.readouterr().out
    assert "2 nodes, 3 tasks, 1 edges; thread mode: 3 threads; robust" in text
    assert "text.0, text.1" in text


def test_the_plan_is_printed_as_json(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", target, "--json", "--workers", "1", "--state-dir", str(tmp_path / "state")]) == 0

    told = json.loads(capsys.readouterr().out)
    assert [(node["node"], node["kind"], node["tasks"]) for node in told["nodes"]] == [
        ("numbers", "source", ["numbers.0"]),
        ("text", "node", ["text.0", "text.1"]),
    ]
    assert [(edge["from"], edge["to"], edge["grouping"]) for edge in told["edges"]] == [("numbers", "text", "shuffle")]
    assert told["workers"] == [{"worker": "worker.0", "tasks": ["numbers.0", "text.0", "text.1"]}]
    assert told["state_dir"]["path"] == str(tmp_path / "state")
    assert len(told["state_dir"]["foreseen"]) == 1


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("delimeter=';'", "unknown option 'delimeter'; it takes paths, format"),
        ("'cvs'", "format='cvs': expected one of 'lines', 'ndjson'"),
    ],
)
def test_a_source_that_a_run_would_refuse_is_refused(
    given: str, problem: str, write_module: WriteModule, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_module(
        "bad_source",
        f"from consecution import Pipeline, Producer\npipeline = Pipeline(Producer('files', 'x', {given}) | str)",
    )

    assert main(["plan", str(path)]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(("form", "start"), [("mermaid", "flowchart LR"), ("dot", "digraph plan {")])
def test_the_plan_is_drawn(target: str, form: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", target, "--format", form]) == 0

    assert capsys.readouterr().out.startswith(start)


def test_svg_without_graphviz_says_what_to_install(
    target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consecution.cli.plan.shutil.which", lambda name: None)

    assert main(["plan", target, "--format", "svg"]) == 2

    assert "install graphviz, or use --format mermaid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [("cat", 0, "digraph plan"), ("echo bad >&2; exit 1", 2, "could not draw the plan: bad; use --format mermaid")],
)
def test_svg_is_what_dot_makes_of_it(
    target: str,
    script: str,
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dot = tmp_path / "dot"
    dot.write_text(f"#!/bin/sh\n{'cat > /dev/null; ' if code else ''}{script}\n")
    dot.chmod(0o755)
    monkeypatch.setattr("consecution.cli.plan.shutil.which", lambda name: str(dot))

    assert main(["plan", target, "--format", "svg"]) == code

    assert words in "".join(capsys.readouterr())


def test_a_bad_pipeline_exits_2_with_the_remedy(write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_module("plan_bad", "from consecution import Map, Pipeline\npipeline = Pipeline(Map(str, name='a'))")

    assert main(["plan", str(path)]) == 2

    assert "begin it with Producer(...)" in capsys.readouterr().err
