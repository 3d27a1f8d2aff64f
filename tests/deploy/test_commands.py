"""Every line of ``deploy/`` that calls the command is one that it understands, and they agree with each other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.deploy.files import CONTAINER, DEPLOY, UNIT, check_command, dockerfile, load, pod, settings, words_of

STATE = "/var/lib/consecution/state"
CALL = re.compile(r"(?:bin/| etl |-- )consecution (.+)$")
READMES = sorted(DEPLOY.rglob("README.md"))


def seconds_of(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_unit_starts_a_run_and_leaves_it_time_to_stop() -> None:
    unit = settings(UNIT.read_text())
    (start,) = unit["ExecStart"]

    arguments = check_command(words_of(start))

    assert (arguments.target, arguments.state_dir) == ("/etc/consecution/%i.py", "%S/consecution/%i/state")
    assert arguments.stop_timeout_s < seconds_of(unit["TimeoutStopSec"][0])


def test_the_image_runs_its_pipeline_and_asks_for_its_status() -> None:
    image = dockerfile()
    init, dashes, program, *none = json.loads(image["ENTRYPOINT"][0])
    health = json.loads(image["HEALTHCHECK"][0].partition(" CMD ")[2])

    run, status = check_command(json.loads(image["CMD"][0])), check_command(words_of(" ".join(health)))

    assert (init, dashes, program, none) == ("tini", "--", "consecution", [])
    assert (run.target, run.state_dir, str(status.state_dir)) == ("/etc/consecution/pipeline.py", STATE, STATE)
    assert any(line.endswith(run.target) for line in image["COPY"])


def test_compose_waits_longer_than_the_stop_takes() -> None:
    service = load(CONTAINER / "compose.yaml")["services"]["etl"]
    run = check_command(json.loads(dockerfile()["CMD"][0]))

    assert seconds_of(service["stop_grace_period"]) > run.stop_timeout_s
    assert str(Path(run.state_dir).parent) in [volume.partition(":")[2] for volume in service["volumes"]]


def test_the_pod_runs_what_the_image_runs_and_has_time_to_stop() -> None:
    spec = pod()
    (container,) = spec["containers"]

    run = check_command(container["args"])

    assert run.target == check_command(json.loads(dockerfile()["CMD"][0])).target
    assert run.stop_timeout_s < spec["terminationGracePeriodSeconds"]
    assert str(Path(run.state_dir).parent) in [mount["mountPath"] for mount in container["volumeMounts"]]
    probed = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert [probe["path"] for probe in probed.values()] == ["/readyz", "/readyz", "/livez"]
    assert {probe["port"] for probe in probed.values()} == {"metrics"}
    assert {"name": "metrics", "containerPort": run.metrics_port} in container["ports"]
    assert run.metrics_host == "0.0.0.0", "who probes comes from without"


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_every_command_of_a_readme_is_understood(page: Path) -> None:
    lines = [line.partition("  #")[0] for line in page.read_text().splitlines() if line.startswith(("$ ", "# "))]
    commands = [match.group(1) for line in lines if (match := CALL.search(line))]

    for command in commands:
        check_command(shlex.split(command))

    assert commands or page.parent == DEPLOY
