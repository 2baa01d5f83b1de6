"""The manifests and the image: what a cluster would refuse, or what would fail only there, is found here."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.cli.submit import check_words
from infra.jobs import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "infra" / "kubernetes"
QUANTITY = re.compile(r"[1-9]\d*(m|[KMGT]i)?")
CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CONTAINER = {"name", "image", "env", "resources", "volumeMounts"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((PLACE / name).read_text()))


def cluster_spec(name: str) -> dict[str, Any]:
    spec = documents(name)[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def pinned(package: str) -> str:
    return dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)[package]


MANIFESTS = pytest.mark.parametrize("name", ["cluster.yaml", "collect.yaml", "train.yaml"])


@MANIFESTS
def test_the_fields_are_those_of_the_definition(name):
    document = documents(name)[-1]
    assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert document["apiVersion"] == "ray.io/v1"
    assert document["kind"] == ("RayCluster" if name == "cluster.yaml" else "RayJob")
    assert document["spec"].keys() == (CLUSTER if name == "cluster.yaml" else JOB)
    spec = cluster_spec(name)
    assert spec.keys() == CLUSTER
    assert spec["headGroupSpec"].keys() == {"rayStartParams", "template"}
    for group in spec["workerGroupSpecs"]:
        assert group.keys() == GROUP
        # Nothing changes these while no autoscaler is enabled.
        assert 0 < group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@MANIFESTS
def test_pods_have_what_they_name(name):
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container.keys() - {"ports"} == CONTAINER
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        for amounts in container["resources"].values():
            assert amounts.keys() >= {"cpu", "memory"}
            assert all(isinstance(value, str) and QUANTITY.fullmatch(value) for value in amounts.values())
        assert container["resources"]["requests"] == container["resources"]["limits"]
        (claim,) = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        assert claim == documents("cluster.yaml")[0]["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True


@MANIFESTS
def test_versions_and_token(name):
    spec = cluster_spec(name)
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    images = {
        container["image"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
        for container in group["template"]["spec"]["containers"]
    }
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert images == {f"lewm:{version[1]}"}


@pytest.mark.parametrize(("name", "verb"), [("collect.yaml", "collect"), ("train.yaml", "train")])
def test_entry_points_are_commands_of_ours(name, verb):
    words = shlex.split(documents(name)[0]["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "infra.retry"]
    assert int(words[3]) > 0
    assert words[4:6] == ["lewm", verb]
    assert words[-2:] == ["--address", "auto"]
    check_words(verb, words[6:])
    assert all(word.startswith("/lewm") for word in words if word.startswith("/"))


def test_training_has_gpus_and_collection_none():
    def gpus(name: str) -> list[str | None]:
        groups = cluster_spec(name)["workerGroupSpecs"]
        containers = [group["template"]["spec"]["containers"][0] for group in groups]
        return [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers]

    assert gpus("train.yaml") == ["1"]
    assert gpus("collect.yaml") == [None]
    assert gpus("cluster.yaml") == [None, "1"]


def test_the_image_holds_the_project_and_runs_without_root():
    text = (PLACE / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    sources = {source for group in copied for source in group}
    assert sources >= {*PACKAGES, "pyproject.toml", "constraints.txt"}
    assert all((ROOT / source).exists() for source in sources)
    allowed = {line[1:] for line in (PLACE / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert allowed == sources
    (user,) = [line.split()[1] for line in lines if line.startswith("USER")]
    spec = cluster_spec("cluster.yaml")["headGroupSpec"]["template"]["spec"]
    assert int(user) == spec["securityContext"]["runAsUser"] > 0
    installed = next(line for line in lines if "apt-get install" in line).split()
    needed = re.findall(r"echo (lib\w+)", (ROOT / "infra" / "setup.sh").read_text())
    assert needed
    assert set(needed) <= set(installed)
    assert any("pip install" in line and "-c constraints.txt" in line for line in lines)
    base = next(line.split()[1] for line in lines if line.startswith("FROM"))
    assert re.fullmatch(r"python:3\.1[12]-slim-\w+", base)
