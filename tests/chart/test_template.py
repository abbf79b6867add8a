"""What the chart makes of its values: the same objects that the tests install, flags that the programs know, sentences for
nonsense."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import (
    ALL,
    CHART,
    NAMESPACE,
    PEM,
    VALUE_SETS,
    Helm,
    HelmFailed,
    Json,
    arguments,
    container,
    find,
    kinds,
    without_labels,
)
from tests.support.installation import CERTIFICATES_RBAC, CRD, LOG_API, RBAC
from wherry_operator import settings as operator_settings
from wherry_operator.reconcile import issuing
from wherry_operator.runners import discovery
from wherry_runner import settings as runner_settings
from wherry_runner.serving.tls import Role

VALUES: Json = yaml.safe_load((CHART / "values.yaml").read_text())

FIELDS = {
    "metadata.name": "wherry-operator-0",
    "spec.nodeName": "node-1",
    "status.podIP": "10.0.0.7",
    "status.hostIP": "10.0.0.1",
}
"""What the kubelet fills in."""

GIB = 1 << 30


@pytest.fixture(scope="module")
def default(helm: Helm) -> list[Json]:
    return helm.template()


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_helm_has_nothing_against_it(helm: Helm, values: Json) -> None:
    helm.run("lint", "--strict", str(CHART), values=values)


def test_nothing_is_there_twice(helm: Helm) -> None:
    for values in VALUE_SETS.values():
        names = [
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
            for each in helm.template(values)
        ]
        assert len(set(names)) == len(names)


# --- one source -------------------------------------------------------------------------------------------------------


def test_the_copy_of_the_crd_is_equal() -> None:
    assert (CHART / "files" / CRD.name).read_text() == CRD.read_text()


def test_the_crd_is_rendered_whole_and_outlives_the_release(default: list[Json]) -> None:
    rendered = without_labels(find(default, "CustomResourceDefinition", "wasmworkloads.wherry.dev"))
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered == yaml.safe_load(CRD.read_text())


def test_the_operators_rights_are_those_that_the_tests_give_it(default: list[Json]) -> None:
    text = f"{RBAC.read_text()}\n---\n{CERTIFICATES_RBAC.read_text()}"
    text = text.replace("${NODE_NAME}", "wherry").replace("${NAMESPACE}", NAMESPACE)
    wanted = [each for each in yaml.safe_load_all(text) if each]
    rendered = [without_labels(each) for each in default]
    assert len(wanted) > 5
    for each in wanted:
        assert each in rendered


def test_nobody_else_has_rights_but_who_reads_logs(default: list[Json]) -> None:
    roles = {each["metadata"]["name"] for each in default if each["kind"] in ("ClusterRole", "Role")}
    own = {"wherry-objects-wherry", "wherry-certificates-wherry", "wherry-log-api-wherry"}
    assert roles == {"wherry-operator-wherry", "wherry-references", "wherry-logs", "wherry-port-forward"} | own
    subjects = {
        subject["name"]
        for each in default
        if each["kind"] in ("ClusterRoleBinding", "RoleBinding")
        for subject in each["subjects"]
    }
    assert subjects == {"wherry-operator"}


def test_where_namespaces_are_named_rights_on_objects_are_bound_there_only(helm: Helm) -> None:
    rendered = helm.template({"namespaces": ["a", "b"]})
    bindings = {
        (each["kind"], each["metadata"].get("namespace"), each["roleRef"]["name"])
        for each in rendered
        if each["kind"] in ("ClusterRoleBinding", "RoleBinding")
    }
    everywhere = {role for kind, _, role in bindings if kind == "ClusterRoleBinding"}
    assert everywhere == {"wherry-operator-wherry", "wherry-log-api-wherry"}
    for role in ("wherry-objects-wherry", "wherry-references"):
        assert {namespace for _, namespace, found in bindings if found == role} == {"a", "b"}
    cluster_wide = find(rendered, "ClusterRole", "wherry-operator-wherry")["rules"]
    served = {"pods", "wasmworkloads", "services", "endpointslices", "controllerrevisions", "configmaps", "secrets"}
    assert not served & {resource for rule in cluster_wide for resource in rule["resources"]}
    # The runners are found in the release's own namespace.
    assert ("RoleBinding", NAMESPACE, "wherry-discovery-wherry") in bindings
    args = find(rendered, "Deployment", "wherry-operator")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [each for each in args if "watch-namespace" in each] == ["--watch-namespace=a", "--watch-namespace=b"]


def test_the_log_api_is_the_one_that_the_tests_register(helm: Helm) -> None:
    default = helm.template(VALUE_SETS["existing certificates"])
    ca = base64.b64encode(PEM.encode()).decode()
    text = LOG_API.read_text()
    for name, value in {"${NAMESPACE}": NAMESPACE, "${PORT}": "443", "${CA_BUNDLE}": ca}.items():
        text = text.replace(name, value)
    for each in yaml.safe_load_all(text):
        assert without_labels(find(default, each["kind"], each["metadata"]["name"])) == each
    (port,) = find(default, "Service", "wherry-operator")["spec"]["ports"]
    assert port["port"] == 443


# --- flags ------------------------------------------------------------------------------------------------------------


def operator_of(objects: list[Json]) -> operator_settings.Settings:
    return operator_settings.parse(arguments(find(objects, "Deployment", "wherry-operator"), FIELDS))


def runner_of(objects: list[Json], machine: Path) -> runner_settings.Settings:
    return runner_settings.parse(arguments(find(objects, "DaemonSet", "wherry-runner"), FIELDS), root=machine)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container with the chart's limit: 2 GiB."""
    for variable in ("WHERRY_RUNNERS", "WHERRY_RUNNER_CPU_MILLICORES"):
        monkeypatch.delenv(variable, raising=False)
    group = tmp_path / "machine" / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "cgroup.controllers").write_text("cpu memory pids\n")
    (group / "memory.max").write_text(f"{2 * GIB}\n")
    proc = tmp_path / "machine" / "proc"
    for folder in ("self", "sys/kernel"):
        (proc / folder).mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/\n")
    (proc / "sys" / "kernel" / "pid_max").write_text("4194304\n")
    (proc / "sys" / "kernel" / "threads-max").write_text("100000\n")
    (proc / "meminfo").write_text(f"MemTotal: {8 * GIB // 1024} kB\n")
    return tmp_path / "machine"


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_the_programs_know_every_flag(helm: Helm, values: Json, machine: Path) -> None:
    objects = helm.template(values)
    operator_of(objects)
    runner_of(objects, machine)


def test_the_defaults_arrive(default: list[Json], machine: Path) -> None:
    operator = operator_of(default)
    assert (operator.node_name, operator.class_name, operator.namespace) == ("wherry", "wherry", NAMESPACE)
    assert (operator.identity, operator.kubelet.address) == ("wherry-operator-0", "10.0.0.7")
    assert (operator.runner_service, operator.runners) == ("wherry-runner", ())
    assert (operator.max_pods, operator.runner_loss_seconds) == (1000, 60)
    runner = runner_of(default, machine)
    assert (runner.name, runner.node, runner.address) == ("node-1", "node-1", "10.0.0.7")
    assert (runner.modules.quota_bytes, runner.log_budget_bytes) == (5 * GIB, 2 * GIB)
    # Of 2 GiB: 192 MiB for the runner, a quarter for a compiler.
    assert runner.memory_bytes == 2 * GIB - runner_settings.OVERHEAD_BYTES - GIB // 2
    assert runner.require_confinement == {"no-new-privileges", "seccomp"}


def test_other_values_arrive(helm: Helm, machine: Path) -> None:
    objects = helm.template(ALL)
    operator = operator_of(objects)
    assert (operator.node_name, operator.class_name, operator.api_listen) == ("second", "other", "::")
    assert (operator.max_pods, operator.runner_loss_seconds) == (12_000_000, 0.5)
    runner = runner_of(objects, machine)
    assert runner.modules.quota_bytes == 20 * GIB
    assert runner.defaults.memory_limit_bytes == 64 << 20
    assert runner.defaults.descriptors == 512
    assert runner.volumes_memory_directory is None
    assert runner.executor_directory is None
    registries = runner.pull.registries
    assert registries.mirrors == {"registry.example.com": "https://mirror.example.com"}
    assert registries.insecure_registries == {"registry:5000"}
    (host, file), *others = registries.ca_files.items()
    assert (host, others) == ("private.example.com:5000", [])
    assert find(objects, "ConfigMap", "wherry-registries")["data"] == {file.name: PEM}
    of = container(find(objects, "DaemonSet", "wherry-runner"))
    assert str(file.parent) in {mount["mountPath"] for mount in of["volumeMounts"]}
    proxies = {each["name"]: each["value"] for each in of["env"] if "value" in each}
    assert proxies == {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8"}


@pytest.mark.parametrize("given", [{}, {"leaveSeconds": 3, "terminationGraceSeconds": 4}])
def test_a_runners_pod_has_time_for_its_clients_and_then_its_guests(helm: Helm, machine: Path, given: Json) -> None:
    objects = helm.template({"runner": given})
    settings = runner_of(objects, machine)
    pod = find(objects, "DaemonSet", "wherry-runner")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > settings.leave_seconds + settings.termination_grace_seconds


def test_host_paths_are_mounted_where_workloads_name_them(helm: Helm, machine: Path) -> None:
    objects = helm.template(VALUE_SETS["host paths"])
    mounts = container(find(objects, "DaemonSet", "wherry-runner"))["volumeMounts"]
    assert {(each["mountPath"], each["readOnly"]) for each in mounts if each["name"].startswith("host-")} == {
        ("/srv/data", True),
        ("/srv/scratch", False),
    }
    assert len(runner_of(objects, machine).host_paths) == 2


def test_claims_are_mounted_and_operator_and_runner_know_them(helm: Helm, machine: Path) -> None:
    objects = helm.template(VALUE_SETS["claims"])
    runner = find(objects, "DaemonSet", "wherry-runner")
    volumes = {
        each["name"]: each.get("persistentVolumeClaim") for each in runner["spec"]["template"]["spec"]["volumes"]
    }
    mounts = {each["mountPath"]: each for each in container(runner)["volumeMounts"]}
    found = {
        claim.name: (
            mounts[claim.folder.prefix]["readOnly"],
            claim.folder.read_only,
            volumes[mounts[claim.folder.prefix]["name"]],
        )
        for claim in runner_of(objects, machine).claims
    }
    assert found == {
        "a/data": (True, True, {"claimName": "of-a", "readOnly": True}),
        "b/b": (False, False, {"claimName": "b", "readOnly": False}),
    }
    assert operator_of(objects).claims == set(found)


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_every_file_that_a_flag_names_is_mounted(helm: Helm, values: Json) -> None:
    objects = helm.template(values)
    for kind, name in (("Deployment", "wherry-operator"), ("DaemonSet", "wherry-runner")):
        of = container(find(objects, kind, name))
        mounted = [Path(each["mountPath"]) for each in of["volumeMounts"]]
        volumes = {each["name"] for each in find(objects, kind, name)["spec"]["template"]["spec"]["volumes"]}
        assert {each["name"] for each in of["volumeMounts"]} == volumes
        for argument in of["args"]:
            for text in re.findall(r"=(/[\w./-]+)", argument):
                path = Path(text)
                assert any(path == each or each in path.parents for each in mounted), argument


# --- Pods -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_a_runner_has_no_way_into_kubernetes(helm: Helm, values: Json) -> None:
    pod = find(helm.template(values), "DaemonSet", "wherry-runner")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert not any("projected" in volume for volume in pod["volumes"])


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_no_services_variable_is_taken_for_a_setting(helm: Helm, values: Json) -> None:
    """A Service called wherry-runner would be WHERRY_RUNNER_PORT."""
    for each in helm.template(values):
        if each["kind"] in ("Deployment", "DaemonSet"):
            assert each["spec"]["template"]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("values", [{}, ALL], ids=["default", "all"])
def test_no_runner_is_for_a_virtual_node(helm: Helm, values: Json) -> None:
    pod = find(helm.template(values), "DaemonSet", "wherry-runner")["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["kubernetes.io/os"] == "linux"
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
    assert len(terms) == (2 if values else 1)
    for term in terms:
        assert {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]} in term


def test_a_new_chart_alone_restarts_no_runner(default: list[Json]) -> None:
    """Its version is on every object, but in no Pod's template."""
    runner = find(default, "DaemonSet", "wherry-runner")
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert runner["metadata"]["labels"]["helm.sh/chart"] == f"wherry-{chart['version']}"
    assert "helm.sh/chart" not in json.dumps(runner["spec"])


def test_services_select_the_pods_that_they_are_for(default: list[Json]) -> None:
    for name, kind, port in (
        ("wherry-operator", "Deployment", "api"),
        ("wherry-operator-health", "Deployment", "health"),
        ("wherry-runner", "DaemonSet", "api"),
    ):
        service = find(default, "Service", name)["spec"]
        workload = find(default, kind, "wherry-runner" if kind == "DaemonSet" else "wherry-operator")
        assert service["selector"].items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        assert service["selector"] == workload["spec"]["selector"]["matchLabels"]
        (of,) = service["ports"]
        assert of["targetPort"] == port
        assert port in {each["name"] for each in container(workload)["ports"]}


def test_runners_are_found_as_the_operator_looks_for_them(default: list[Json]) -> None:
    service = find(default, "Service", "wherry-runner")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert [port["name"] for port in service["ports"]] == [discovery.PORT_NAME]


def test_an_operator_alone_has_no_disruption_budget(helm: Helm, default: list[Json]) -> None:
    assert "PodDisruptionBudget" in kinds(default)
    assert "PodDisruptionBudget" not in kinds(helm.template({"operator": {"replicas": 1}}))


def test_runners_have_no_way_to_the_api_server(helm: Helm) -> None:
    policy = find(helm.template(ALL), "NetworkPolicy", "wherry-runner")["spec"]
    operators, everybody = policy["ingress"]
    assert "from" in operators
    assert "from" not in everybody
    own = (19080, 19443)  # the runner's health and its API
    assert not any(each["port"] <= port <= each["endPort"] for each in everybody["ports"] for port in own)
    blocks = {peer["ipBlock"]["cidr"]: peer["ipBlock"]["except"] for peer in policy["egress"][1]["to"]}
    assert blocks == {
        "0.0.0.0/0": ["10.96.0.1/32", "169.254.0.0/16"],
        "::/0": ["fd00::1/128", "fd00:ec2::254/128", "fe80::/10"],
    }


# --- certificates -----------------------------------------------------------------------------------------------------


def test_by_default_the_operator_makes_the_secret_that_runners_mount(default: list[Json]) -> None:
    assert "Secret" not in kinds(default)
    operator = operator_of(default)
    assert operator.certificates == "own"
    assert operator.api_certificate is not None
    mounted = {
        volume["secret"]["secretName"]
        for kind, name in (("Deployment", "wherry-operator"), ("DaemonSet", "wherry-runner"))
        for volume in find(default, kind, name)["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted <= set(issuing.DELIVERED)
    (rule,) = find(default, "Role", "wherry-certificates-wherry")["rules"]
    assert set(rule["resourceNames"]) == {issuing.AUTHORITY_SECRET, *issuing.DELIVERED}
    # What Helm does not render it does not take away in an upgrade.
    assert "caBundle" not in find(default, "APIService", "v1alpha1.subresources.wherry.dev")["spec"]


@pytest.mark.parametrize("values", [VALUE_SETS["cert-manager"], VALUE_SETS["existing certificates"]])
def test_where_others_make_them_the_operator_has_no_right_to(helm: Helm, values: Json) -> None:
    objects = helm.template(values)
    assert operator_of(objects).certificates == "files"
    assert "secrets" not in json.dumps([each["rules"] for each in objects if each["kind"] == "Role"])
    assert "apiservices" not in json.dumps([each["rules"] for each in objects if each["kind"] == "ClusterRole"])


def test_the_kubelet_endpoints_certificate_can_be_the_clusters(helm: Helm) -> None:
    objects = helm.template({"certificates": {"kubelet": "csr"}})
    assert operator_of(objects).kubelet.certificate == "csr"


def test_cert_manager_makes_every_secret_that_is_mounted(helm: Helm) -> None:
    objects = helm.template(VALUE_SETS["cert-manager"])
    assert "Secret" not in kinds(objects)
    made = {each["spec"]["secretName"]: each["spec"] for each in objects if each["kind"] == "Certificate"}
    for kind, name in (("Deployment", "wherry-operator"), ("DaemonSet", "wherry-runner")):
        for volume in find(objects, kind, name)["spec"]["template"]["spec"]["volumes"]:
            assert volume.get("secret", {}).get("secretName", "wherry-ca") in made
    assert made["wherry-operator-tls"]["commonName"] == Role.OPERATOR
    assert made["wherry-metrics-tls"]["commonName"] == Role.METRICS
    assert made["wherry-runner-tls"]["usages"] == ["digital signature", "server auth"]
    api = find(objects, "APIService", "v1alpha1.subresources.wherry.dev")
    assert api["metadata"]["annotations"] == {"cert-manager.io/inject-ca-from": f"{NAMESPACE}/wherry-serving"}


def test_existing_certificates_are_left_to_who_made_them(helm: Helm) -> None:
    objects = helm.template(VALUE_SETS["existing certificates"])
    assert not {"Secret", "Certificate"} & kinds(objects)
    bundle = find(objects, "APIService", "v1alpha1.subresources.wherry.dev")["spec"]["caBundle"]
    assert base64.b64decode(bundle).decode() == PEM
    with pytest.raises(HelmFailed, match="servingCa must be the PEM"):
        helm.template({"certificates": {"source": "existing"}})


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_the_dashboard_shows_metrics_that_are_documented() -> None:
    text = (CHART / "files" / "dashboard.json").read_text()
    shown = set(re.findall(r"wherry_(?:operator|runner)_[a-z_]+", text))
    operations = (CHART.parents[1] / "docs" / "operations.md").read_text()
    told = {f"wherry_operator_{name}" for name in re.findall(r"`([a-z_]+)(?:\{[a-z,]+\})?`", operations)}
    told |= set(re.findall(r"wherry_runner_[a-z_]+", (CHART.parents[1] / "docs" / "runner.md").read_text()))
    assert {name.removesuffix("_bucket") for name in shown} <= told
    assert len({panel["id"] for panel in json.loads(text)["panels"]}) == len(json.loads(text)["panels"])


def test_scrapers_find_operators_and_runners(helm: Helm) -> None:
    objects = helm.template(VALUE_SETS["Prometheus operator"])
    services = [each for each in objects if each["kind"] == "Service"]
    for monitor in (each for each in objects if each["kind"] == "ServiceMonitor"):
        assert monitor["metadata"]["labels"]["release"] == "p"
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = (each for each in services if wanted <= each["metadata"]["labels"].items())
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"operator": {"replica": 3}}, "at '/operator': additional properties 'replica' not allowed"),
        ({"operator": {"replicas": 0}}, "at '/operator/replicas': minimum: got 0, want 1"),
        ({"nodeName": "Wherry"}, "at '/nodeName': 'Wherry' does not match pattern"),
        ({"runner": {"modulesQuota": "lots"}}, "at '/runner/modulesQuota': 'lots' does not match pattern"),
        ({"runner": {"state": {"emptyDir": {}, "hostPath": {"path": "/x"}}}}, "at '/runner/state': maxProperties"),
        ({"runner": {"hostPaths": [{"path": "data"}]}}, "at '/runner/hostPaths/0/path': 'data' does not match"),
        ({"runner": {"hostPaths": [{"path": "/claims/0"}]}}, "at '/runner/hostPaths/0/path': 'not' failed"),
        ({"runner": {"claims": [{"name": "data"}]}}, "at '/runner/claims/0': missing property 'namespace'"),
        ({"runner": {"requireConfinement": ["selinux"]}}, "at '/runner/requireConfinement/0': value must be one of"),
        ({"runner": {"registries": {"mirrors": {"a": "b"}}}}, "at '/runner/registries/mirrors/a': 'b' does not match"),
        ({"certificates": {"source": "magic"}}, "value must be one of 'operator', 'certManager', 'existing'"),
        ({"networkPolicies": {"apiServer": ["10.0.0.1"]}}, "'10.0.0.1' does not match pattern"),
        ({"logApi": {"enabled": "no"}}, "at '/logApi/enabled': got string, want boolean"),
        ({"typo": 1}, "additional properties 'typo' not allowed"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(helm: Helm, values: Json, sentence: str) -> None:
    with pytest.raises(HelmFailed) as refused:
        helm.template(values)
    assert sentence in str(refused.value)


def leaves(values: Json, path: str = "") -> dict[str, object]:
    """Each value that is no table of values, by its path."""
    found: dict[str, object] = {}
    for name, value in values.items():
        whole = f"{path}.{name}" if path else name
        open_ended = name in ("resources", "labels")
        found |= leaves(value, whole) if isinstance(value, dict) and value and not open_ended else {whole: value}
    return found


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def named(node: Json, path: str = "") -> set[str]:
        node = {**schema["$defs"][node["$ref"].rsplit("/", 1)[1]], **node} if "$ref" in node else node
        leaf = "properties" not in node or path.endswith((".resources", ".state"))
        if leaf:
            return {path}
        return {name for key, each in node["properties"].items() for name in named(each, f"{path}.{key}".lstrip("."))}

    assert named(schema) - {"global"} == set(leaves(VALUES))


def test_every_value_has_a_comment_and_a_row_in_the_documentation() -> None:
    text = (CHART.parents[1] / "docs" / "install.md").read_text()
    comments = _comments((CHART / "values.yaml").read_text())
    rows = []
    for name, value in leaves(VALUES).items():
        assert comments[name], name
        default = value if isinstance(value, str) else json.dumps(value) if value not in ({}, []) else ""
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {comments[name]} |")
    assert text.partition("## Values")[2].splitlines()[6:] == rows


def _comments(text: str) -> dict[str, str]:
    """The comment above each key of a YAML file that is indented by two spaces, by the key's path."""
    found, path, comment = {}, list[str](), list[str]()
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip(" #"))
            continue
        if match := re.match(r"( *)([A-Za-z]\w*):", line):
            path = [*path[: len(match.group(1)) // 2], match.group(2)]
            found[".".join(path)] = " ".join(comment)
        comment = []
    return found
