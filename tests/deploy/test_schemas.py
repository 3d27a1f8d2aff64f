"""The files of ``deploy/`` are what those expect that read them: systemd, the image builder, Compose, Kubernetes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import CONTAINER, DEPLOY, KUBERNETES, UNIT, load, pod

BIN = Path(sys.executable).parent
DEADLINE_S = 60
MOST_EXPOSED = 2.5
"""Of 10, as `systemd-analyze security` counts."""

has_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def call(*words: str | Path) -> str:
    """What a checker prints; it must find nothing wrong."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def checkable_unit(folder: Path) -> Path:
    """The unit, with a program that is there: that its own is installed is not asked here."""
    path = folder / "consecution@orders.service"
    text = UNIT.read_text()
    assert "ExecStart=/opt/consecution/bin/consecution " in text
    path.write_text(text.replace("/opt/consecution/bin/consecution", "/bin/true"))
    return path


@has_systemd
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    assert call("systemd-analyze", "verify", "--man=no", checkable_unit(tmp_path)).strip() == ""


@has_systemd
def test_the_unit_is_confined(tmp_path: Path) -> None:
    told = call("systemd-analyze", "security", "--offline=true", checkable_unit(tmp_path))

    found = re.search(r"Overall exposure level for .*: ([\d.]+)", told)
    assert found is not None, told
    assert float(found.group(1)) <= MOST_EXPOSED


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    call(BIN / "hadolint", CONTAINER / "Dockerfile")


def test_the_compose_file_is_one() -> None:
    call(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", CONTAINER / "compose.yaml")


def test_kubernetes_knows_every_field_of_the_manifests() -> None:
    manifests = [KUBERNETES / name for name in load(KUBERNETES / "kustomization.yaml")["resources"]]

    call(BIN / "kubernetes-validate", "--strict", "--no-warn", *manifests)

    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {"kustomization.yaml", *(m.name for m in manifests)}


def test_a_field_that_is_misspelt_is_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((KUBERNETES / "statefulset.yaml").read_text().replace("serviceName:", "servicename:"))

    done = subprocess.run(
        [BIN / "kubernetes-validate", "--strict", wrong], capture_output=True, text=True, timeout=DEADLINE_S
    )

    assert done.returncode != 0


def test_whoever_runs_the_container_is_nobody_special_and_writes_where_it_may() -> None:
    service, spec = load(CONTAINER / "compose.yaml")["services"]["etl"], pod()
    (container,) = spec["containers"]

    assert service["read_only"]
    assert service["cap_drop"] == container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
    assert "USER 10001:10001" in (CONTAINER / "Dockerfile").read_text()


def test_the_manifests_name_each_other_rightly() -> None:
    stateful, service = load(KUBERNETES / "statefulset.yaml"), load(KUBERNETES / "service.yaml")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    (container,) = pod()["containers"]
    config = load(KUBERNETES / "settings.yaml")
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}

    assert stateful["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["metadata"]["name"] == stateful["spec"]["serviceName"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= {port["name"] for port in container["ports"]}
    assert container["envFrom"][0]["configMapRef"]["name"] == config["metadata"]["name"]
    files = [value for key, value in config["data"].items() if key.endswith("_FILE")]
    assert all(Path(file).parent == Path(mounted["secrets"]) for file in files)


def test_everything_the_image_copies_is_sent_to_the_builder() -> None:
    root = DEPLOY.parent
    ignored = (CONTAINER / "Dockerfile.dockerignore").read_text().split()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = [line.split()[1:-1] for line in (CONTAINER / "Dockerfile").read_text().splitlines() if line[:4] == "COPY"]
    own = {name for names in copied for name in names if not name.startswith(("--from", "/opt"))}

    assert own == sent
    assert all((root / name).exists() for name in own)
