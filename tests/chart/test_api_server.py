"""The chart on a real API server: it admits every object, `restricted` admits the Pods, and releases come and go whole."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator

import pytest

from tests.chart.helm import ALL, CHART, NAMESPACE, OTHERS_GROUPS, PEM, VALUE_SETS, Helm, HelmFailed, Json, find, pod_of
from tests.cluster.local import LocalCluster
from tests.support.installation import API_SERVICE

CRD = "wasmworkloads.wherry.dev"


@pytest.fixture
def space(chart_cluster: LocalCluster) -> Iterator[str]:
    """A namespace that admits nothing but what passes `restricted`."""
    name = f"wherry-{secrets.token_hex(4)}"
    chart_cluster.kubectl("create", "namespace", name)
    chart_cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    chart_cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_every_object_is_valid(helm: Helm, chart_cluster: LocalCluster, space: str, values: Json) -> None:
    objects = [
        json.loads(json.dumps(each).replace(NAMESPACE, space))
        for each in helm.template(values)
        if each["apiVersion"].split("/")[0] not in OTHERS_GROUPS
    ]
    # The test's Pod names none, but a Pod's account must be there when it is admitted.
    chart_cluster.apply([each for each in objects if each["kind"] == "ServiceAccount"])
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    chart_cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=text)


@pytest.mark.parametrize("values", [{}, ALL], ids=["default", "all"])
def test_restricted_admits_every_pod(helm: Helm, chart_cluster: LocalCluster, space: str, values: Json) -> None:
    objects = helm.template(values)
    _accounts(chart_cluster, objects, space)
    pods = [
        pod_of(find(objects, "Deployment", "wherry-operator"), "operator", space),
        pod_of(find(objects, "DaemonSet", "wherry-runner"), "runner", space),
        {**find(objects, "Pod", "wherry-test"), "metadata": {"name": "test", "namespace": space}},
    ]
    for pod in pods:
        _admit(chart_cluster, _without_priority(pod))


def test_restricted_refuses_host_paths_and_that_is_said(
    cluster_helm: Helm, chart_cluster: LocalCluster, space: str
) -> None:
    objects = cluster_helm.template(VALUE_SETS["host paths"])
    _accounts(chart_cluster, objects, space)
    pod = _without_priority(pod_of(find(objects, "DaemonSet", "wherry-runner"), "runner", space))
    refused = chart_cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod), check=False)
    assert "restricted volume types" in refused.stderr
    notes = cluster_helm.run("install", "wherry", str(CHART), "--dry-run=server", values=VALUE_SETS["host paths"])
    assert "runners do not pass Pod Security `restricted`" in notes


def test_a_release_is_upgraded_and_leaves_only_the_crd(
    cluster_helm: Helm, chart_cluster: LocalCluster, space: str
) -> None:
    into = (str(CHART), f"--namespace={space}")
    cluster_helm.run("install", "wherry", *into)
    # What the operator fills in is left there.
    bundle = base64.b64encode(PEM.encode()).decode()
    chart_cluster.kubectl("patch", "apiservice", API_SERVICE, "-p", json.dumps({"spec": {"caBundle": bundle}}))
    cluster_helm.run("upgrade", "wherry", *into, values={"operator": {"logLevel": "DEBUG"}})
    api = chart_cluster.get("apiservice", API_SERVICE)
    assert api is not None
    assert api["spec"]["caBundle"] == bundle
    policy = chart_cluster.get("networkpolicy", "wherry-runner", space)
    assert policy is not None
    (clusters_own,) = (chart_cluster.get("service", "kubernetes", "default") or {})["spec"]["clusterIPs"]
    assert f"{clusters_own}/32" in policy["spec"]["egress"][1]["to"][0]["ipBlock"]["except"]

    # A second one beside it: another node, another class, and nothing of what a cluster has one of.
    other = f"{space}-second"
    chart_cluster.kubectl("create", "namespace", other)
    second: Json = {
        "nodeName": "second",
        "className": "second",
        "crds": {"install": False},
        "logApi": {"enabled": False},
        "references": {"clusterRole": False},
    }
    cluster_helm.run("install", "second", str(CHART), f"--namespace={other}", values=second)
    cluster_helm.run("uninstall", "second", f"--namespace={other}")

    cluster_helm.run("uninstall", "wherry", f"--namespace={space}")
    assert chart_cluster.get("crd", CRD) is not None
    assert _left(chart_cluster, space) == _left(chart_cluster, other) == []
    # And what is kept is taken over by the next, under another name if it is told to.
    cluster_helm.run("install", "wherry", *into)
    cluster_helm.run("uninstall", "wherry", f"--namespace={space}")
    with pytest.raises(HelmFailed, match="cannot be imported into the current release"):
        cluster_helm.run("install", "again", *into)
    cluster_helm.run("install", "again", *into, "--take-ownership")
    cluster_helm.run("uninstall", "again", f"--namespace={space}")
    chart_cluster.kubectl("delete", "crd", CRD)
    chart_cluster.kubectl("delete", "namespace", other, "--wait=false")


def _accounts(cluster: LocalCluster, objects: list[Json], space: str) -> None:
    """The ServiceAccounts that Pods of a rendered chart name."""
    for each in objects:
        if each["kind"] == "ServiceAccount":
            cluster.apply({**each, "metadata": {"name": each["metadata"]["name"], "namespace": space}})


def _admit(cluster: LocalCluster, pod: Json) -> None:
    cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(pod))


def _without_priority(pod: Json) -> Json:
    """Its PriorityClass is not there: only rendered."""
    return {**pod, "spec": {key: value for key, value in pod["spec"].items() if key != "priorityClassName"}}


def _left(cluster: LocalCluster, namespace: str) -> list[str]:
    """What of a release is still in the cluster, but for the CRD."""
    kinds = (
        "deploy,ds,svc,cm,secret,sa,netpol,pdb,role,rolebinding,clusterrole,clusterrolebinding,priorityclass,apiservice"
    )
    selector = "app.kubernetes.io/part-of=wherry"
    in_namespace = cluster.kubectl("get", kinds, "-n", namespace, "-l", selector, "-o", "name").stdout
    in_system = cluster.kubectl("get", "rolebinding", "-n", "kube-system", "-l", selector, "-o", "name").stdout
    return (in_namespace + in_system).split()
