"""The files in deploy/ are consistent with the project and each other."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fanfare
from fanfare.api import events
from fanfare.applications import registry
from fanfare.sockets import drain
from tests.harness import parts
from tests.unit.docs import pages

DEPLOY = pages.ROOT / "deploy"
GUIDE = pages.ROOT / "docs/how-to/kubernetes.md"
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
UNIT = (DEPLOY / "fanfare.service").read_text(encoding="utf-8")
IMAGE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
SERVER = "-k uvicorn.workers.UvicornWorker myproject.asgi:application"


def test_unit_and_image_start_the_documented_server() -> None:
    assert SERVER in UNIT
    assert SERVER in IMAGE


def test_nginx_accepts_every_batch_within_the_default_limits() -> None:
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    assert int(megabytes) * 1024**2 >= events.batch_body_limit(registry.Limits())


def test_nginx_timeouts_are_longer_than_the_ping_interval() -> None:
    (activity,) = re.findall(r"FANFARE_ACTIVITY_TIMEOUT=(\d+)", (pages.ROOT / ".env.example").read_text("utf-8"))
    pong_s = 30  # pusher-js waits this long for a pong
    for seconds in re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", NGINX):
        assert int(seconds) > int(activity) + pong_s


def test_image_copies_existing_files_that_dockerignore_allows() -> None:
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", IMAGE, re.MULTILINE) for name in line.split()]
    sent = (pages.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for name in copied:
        assert (pages.ROOT / name).exists()
        assert f"!{name}" in sent


def test_compose_grace_period_is_longer_than_the_graceful_timeout() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["fanfare"]
    (graceful,) = re.findall(r"FANFARE_GRACEFUL_TIMEOUT=(\d+)", (pages.ROOT / ".env.example").read_text("utf-8"))
    assert int(service["stop_grace_period"].removesuffix("s")) > int(graceful) + 5
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


# -- Kubernetes, compose and systemd -----------------------------------------------------------------------------------


def settings_seconds(name: str) -> float:
    (text,) = re.findall(rf"FANFARE_{name}=([\d.]+)", (pages.ROOT / ".env.example").read_text("utf-8"))
    return float(text)


def drain_s() -> float:
    """The longest time that a worker takes to stop."""
    graceful = settings_seconds("GRACEFUL_TIMEOUT")
    return drain.BOOT_S + settings_seconds("DRAIN_SECONDS") + graceful + 5


def manifests() -> dict[str, Any]:
    """The objects of deploy/kubernetes, by kind."""
    text = (DEPLOY / "kubernetes/fanfare.yaml").read_text(encoding="utf-8")
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def test_pod_is_probed_confined_and_drained() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    for one in (container, *pod["initContainers"]):
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    sleep_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleep_s + drain_s()


def test_manifests_name_the_same_pods() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])


def test_supervisors_wait_for_the_drain() -> None:
    (stop,) = re.findall(r"TimeoutStopSec=(\d+)", UNIT)
    assert int(stop) > drain_s()
    for name in ("compose.yaml", "compose-cluster.yaml"):
        service = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["services"]["fanfare"]
        assert int(service["stop_grace_period"].removesuffix("s")) > drain_s(), name
        assert service["read_only"] is True, name


def test_haproxy_accepts_the_configuration_of_the_cluster_and_has_a_server_for_each_node(tmp_path: Path) -> None:
    cluster = yaml.safe_load((DEPLOY / "compose-cluster.yaml").read_text(encoding="utf-8"))
    text = cluster["configs"]["haproxy"]["content"]
    assert f"server-template node {cluster['services']['fanfare']['deploy']['replicas']} fanfare:8000 " in text
    config = tmp_path / "haproxy.cfg"
    config.write_text(text, encoding="utf-8")
    command = [parts.executable("haproxy"), "-c", "-f", str(config)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_chart_and_upgrade_notes_have_the_version_of_the_package() -> None:
    release = fanfare.__version__.partition(".dev")[0]
    assert yaml.safe_load((DEPLOY / "helm/fanfare/Chart.yaml").read_text(encoding="utf-8"))["version"] == release
    notes = (pages.ROOT / "docs/reference/releases.md").read_text(encoding="utf-8")
    assert f"\n| {release.rpartition('.')[0]} | " in notes


def test_changelog_begins_with_the_section_of_the_version() -> None:
    text = (pages.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (newest, *_) = re.findall(r"^## (.*)$", text, re.MULTILINE)
    if ".dev" in fanfare.__version__:
        assert newest == "[Unreleased]"
    else:
        assert re.fullmatch(rf"\[{re.escape(fanfare.__version__)}\] - \d{{4}}-\d\d-\d\d", newest)


def test_tag_of_this_commit_is_the_version() -> None:
    """A commit that is no release has none."""
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v*"]
    done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, check=True)
    is_release = ".dev" not in fanfare.__version__
    assert set(done.stdout.split()) <= ({f"v{fanfare.__version__}"} if is_release else set())


def test_chart_uses_only_values_that_it_declares() -> None:
    values = yaml.safe_load((DEPLOY / "helm/fanfare/values.yaml").read_text(encoding="utf-8"))
    for template in (DEPLOY / "helm/fanfare/templates").iterdir():
        for path in re.findall(r"\.Values\.([\w.]+)", template.read_text(encoding="utf-8")):
            found: Any = values
            for part in path.split("."):
                assert part in found, f"{template.name} uses .Values.{path}"
                found = found[part]


def rendered(*values: str, file: str = "") -> dict[str, Any]:
    """The objects that the chart makes, by kind. `file`: a file of values."""
    arguments = [part for value in values for part in ("--set", value)]
    command = [HELM, "template", "shop", DEPLOY / "helm/fanfare", "--values", "-", *arguments]
    done = subprocess.run(command, input=file, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}


HELM = Path(sys.executable).parent / "helm"


def test_chart_has_no_fault_that_helm_finds() -> None:
    done = subprocess.run(
        [HELM, "lint", "--strict", DEPLOY / "helm/fanfare"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_chart_makes_the_pods_of_the_plain_manifests() -> None:
    """The same probes, confinement, hook and times, so that the tests of the manifests hold for the chart."""
    plain, chart = (one["Deployment"]["spec"] for one in (manifests(), rendered()))
    assert chart["strategy"] == plain["strategy"]
    ours, theirs = chart["template"]["spec"], plain["template"]["spec"]
    for name in ("securityContext", "terminationGracePeriodSeconds", "automountServiceAccountToken", "volumes"):
        assert ours[name] == theirs[name], name
    for name in ("readinessProbe", "livenessProbe", "startupProbe", "securityContext", "lifecycle", "command"):
        assert ours["containers"][0][name] == theirs["containers"][0][name], name


def test_objects_of_the_chart_conform_to_the_schemas_of_kubernetes() -> None:
    assert set(rendered()) == {"Deployment", "Service", "PodDisruptionBudget"}
    found = rendered("autoscaling.enabled=true", "ingress.enabled=true", "ingress.tlsSecret=shop-tls")
    assert set(found) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Ingress"}
    for one in found.values():
        kubernetes_validate.validate(one, desired_version="1.37", strict=True)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    scaled = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    assert "replicas" not in found["Deployment"]["spec"], "the autoscaler decides"


def test_helm_command_of_the_guide_makes_pods_with_its_image_and_its_secret() -> None:
    """`helm template` with the arguments of `helm install`."""
    create, _, install = (shlex.split(line.text) for line in pages.shell_lines(GUIDE))
    done = subprocess.run([HELM, "template", *install[2:]], cwd=pages.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert found["Ingress"]["spec"]["tls"] == [{"hosts": ["realtime.example.com"], "secretName": "realtime-tls"}]
    for one in found.values():
        kubernetes_validate.validate(one, desired_version="1.37", strict=True)
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/fanfare:latest"
    assert container["envFrom"] == [{"secretRef": {"name": create[4]}}]


def test_chart_writes_unquoted_values_of_a_file_as_kubernetes_and_the_server_read_them() -> None:
    found = rendered(
        file="""
        env: {FANFARE_LOG_MAX_BYTES: 1073741824, FANFARE_OUTBOX: true}
        autoscaling: {enabled: true, connectionsPerPod: 2000000}
        image: {pullSecrets: [{name: registry}]}
        ingress: {enabled: true, annotations: {nginx.ingress.kubernetes.io/proxy-read-timeout: "600"}}
        """
    )
    for one in found.values():
        kubernetes_validate.validate(one, desired_version="1.37", strict=True)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert env["FANFARE_LOG_MAX_BYTES"] == "1073741824"
    assert env["FANFARE_OUTBOX"] == "true"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    metrics = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metrics[1]["external"]["target"]["averageValue"] == "2000000"
    assert [*found["Ingress"]["metadata"]["annotations"].values()] == ["600", "300"]


def test_a_longer_pre_stop_hook_leaves_the_drain_its_time() -> None:
    pod = rendered("drain.preStopSeconds=60")["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 60 + drain_s()


def test_the_only_pod_may_be_evicted() -> None:
    """`minAvailable: 1` with one replica would keep its node from being drained for ever."""
    for found in (manifests(), rendered("replicas=1")):
        assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in found["PodDisruptionBudget"]["spec"]


def test_yaml_is_tidy() -> None:
    relaxed = "line-length: {max: 160}, comments: {min-spaces-from-content: 1}, document-start: disable"
    rules = f"{{extends: default, rules: {{{relaxed}, truthy: disable}}}}"
    files = [*DEPLOY.glob("*.yaml"), *DEPLOY.glob("kubernetes/*.yaml"), *DEPLOY.glob("helm/fanfare/*.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", "--config-data", rules, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_manifests_conform_to_the_schemas_of_kubernetes() -> None:
    for manifest in manifests().values():
        kubernetes_validate.validate(manifest, desired_version="1.37", strict=True)


def test_dockerfile_passes_hadolint() -> None:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_bill_of_materials_has_every_package_of_the_server() -> None:
    subprocess.run(["make", "sbom"], cwd=pages.ROOT, capture_output=True, text=True, check=True)
    materials = json.loads((pages.ROOT / "var" / "sbom.json").read_text("utf-8"))
    listed = {canonicalize_name(one["name"]): one["version"] for one in materials["components"]}
    wanted = needed((pages.ROOT / "requirements.txt").read_text("utf-8").splitlines())
    assert listed == {name: importlib.metadata.version(name) for name in wanted}


def needed(lines: Iterable[str]) -> set[str]:
    """The names of these requirements and of all that they require, by the metadata of the installed packages."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in lines if line and not line.startswith("#")]
    while waiting:
        one = waiting.pop()
        asked = canonicalize_name(one.name), frozenset(one.extras)
        if asked in found:
            continue
        found.add(asked)
        for other in map(Requirement, importlib.metadata.requires(one.name) or ()):
            extras = one.extras or {""}
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(other)
    return {name for name, _ in found}


def test_image_runs_as_an_unprivileged_user_from_a_second_stage() -> None:
    stages = IMAGE.split("\nFROM ")
    assert len(stages) == 3
    assert "USER 10001:0" in stages[-1]
    assert "HEALTHCHECK" in stages[-1]
    assert "pip install" not in stages[-1]


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """With paths that exist here in place of those of an installation."""
    program = parts.executable("systemd-analyze")
    unit = re.sub(r"/srv/fanfare/\.venv/bin/\w+", sys.executable, UNIT).replace("/srv/fanfare", str(tmp_path))
    (tmp_path / "fanfare.service").write_text(unit)
    (tmp_path / "fanfare.socket").write_text((DEPLOY / "fanfare.socket").read_text(encoding="utf-8"))
    for name in ("fanfare.service", "fanfare.socket"):
        done = subprocess.run(
            [program, "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        complaints = [line for line in done.stderr.splitlines() if "fanfare" in line and "Unknown" in line]
        assert complaints == []


def test_systemd_finds_the_service_confined() -> None:
    """`systemd-analyze security` says 1.7 of 10; above 2.5 a directive of the hardening is missing."""
    program = parts.executable("systemd-analyze")
    done = subprocess.run(
        [program, "security", "--offline=true", "--threshold=25", "--no-pager", DEPLOY / "fanfare.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
