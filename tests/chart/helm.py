"""The chart as Helm renders it: with the project's own Helm, and values as a user writes them."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

CHART = Path(__file__).resolve().parents[2] / "charts" / "wherry"

NAMESPACE = "wherry-system"

HELM_TIMEOUT_SECONDS = 120.0
"""Far more than any call takes."""

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
"""Nothing looks into it when a chart is rendered."""

ALL: Json = {
    "nodeName": "second",
    "className": "other",
    "listenAddress": "::",
    "imagePullSecrets": [{"name": "pull"}],
    "commonLabels": {"team": "boats"},
    "crds": {"install": False},
    "logApi": {"enabled": False},
    "namespaces": ["default", "kube-public"],
    "references": {"clusterRole": False, "allNamespaces": False, "namespaces": ["kube-public"]},
    "priorityClass": {"name": "system-cluster-critical"},
    "operator": {
        "image": {"repository": "registry.example.com/wherry-operator", "digest": f"sha256:{'a' * 64}"},
        "replicas": 1,
        "antiAffinity": "hard",
        "maxPods": 12_000_000,
        "serviceAccountTokens": "allow",
        "runnerLossSeconds": 0.5,
        "extraArgs": ["--api-port=8443"],
        "tolerations": [{"operator": "Exists"}],
        "podLabels": {"pod": "label"},
        "podAnnotations": {"pod": "annotation"},
    },
    "runner": {
        "nodeSelector": {"pool": "wasm", "kubernetes.io/os": "windows"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
                        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]},
                    ]
                }
            }
        },
        "maxUnavailable": "10%",
        "state": {
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}
                }
            }
        },
        "memoryVolumesSize": "",
        "defaultMemoryLimit": "64Mi",
        "compileMemory": "256Mi",
        "modulesQuota": "20Gi",
        "requireConfinement": [],
        "executor": "python",
        "registries": {
            "mirrors": {"registry.example.com": "https://mirror.example.com"},
            "insecure": ["registry:5000"],
            "certificates": {"private.example.com:5000": PEM},
        },
        "proxy": {"http": "http://proxy:3128", "none": "10.0.0.0/8"},
        "extraArgs": ["--default-descriptors=512"],
    },
    "networkPolicies": {
        "apiServer": ["10.96.0.1/32", "fd00::1/128"],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
    "metrics": {"dashboard": {"enabled": True}},
}
"""Another value for nearly everything that has one."""

VALUE_SETS: dict[str, Json] = {
    "default": {},
    "all": ALL,
    "host paths": {"runner": {"hostPaths": [{"path": "/srv/data", "readOnly": True}, {"path": "/srv/scratch"}]}},
    "claims": {
        "runner": {
            "claims": [
                {"namespace": "a", "name": "data", "claim": "of-a", "readOnly": True},
                {"namespace": "b", "name": "b"},
            ]
        }
    },
    "existing certificates": {"certificates": {"source": "existing", "servingCa": PEM}},
    "no policies": {"networkPolicies": {"enabled": False}, "priorityClass": {"create": False}},
    "cert-manager": {"certificates": {"source": "certManager"}},
    "Prometheus operator": {"metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "p"}}}},
}

OTHERS_GROUPS = ("cert-manager.io", "monitoring.coreos.com")
"""Objects that need other programs' CRDs."""


class HelmFailed(Exception):
    """Helm exited non-zero; the message is what it wrote."""


@dataclass(frozen=True)
class Helm:
    """Helm, with what it keeps in a folder of its own."""

    program: Path
    home: Path
    kubeconfig: Path | None = None

    def run(self, *arguments: str, values: Json | None = None) -> str:
        """Run it, and return what it printed. Raises HelmFailed."""
        command = [str(self.program), *arguments]
        if values is not None:
            command += ["--values", "-"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HELM_", "KUBE"))}
        environment |= {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        # A file that is not there rather than a cluster that somebody's shell names: `template` and `lint` ask none.
        environment["KUBECONFIG"] = str(self.kubeconfig or self.home / "none")
        done = subprocess.run(
            command,
            input="" if values is None else yaml.safe_dump(values),
            env=environment,
            capture_output=True,
            text=True,
            timeout=HELM_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise HelmFailed(f"{done.stdout}\n{done.stderr}")
        return done.stdout

    def template(self, values: Json | None = None) -> list[Json]:
        """The objects that the chart makes of some values, its test's Pod included; not to be changed. Raises HelmFailed."""
        return _rendered(self, json.dumps(values or {}))


@functools.cache
def _rendered(helm: Helm, values: str) -> list[Json]:
    text = helm.run("template", "wherry", str(CHART), f"--namespace={NAMESPACE}", values=json.loads(values))
    return [document for document in yaml.safe_load_all(text) if document]


def find(objects: list[Json], kind: str, name: str) -> Json:
    """The one object of that kind and name."""
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def kinds(objects: list[Json]) -> set[str]:
    """The kinds of objects."""
    return {each["kind"] for each in objects}


def container(workload: Json) -> Json:
    """The one container of a Deployment or DaemonSet."""
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def arguments(workload: Json, fields: Mapping[str, str]) -> list[str]:
    """A container's arguments with $(NAME) filled in, as the kubelet does it from fieldRefs, given by their paths."""
    of = container(workload)
    env = {
        each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in of["env"]
        if "fieldRef" in each.get("valueFrom", {})
    }
    return [re.sub(r"\$\((\w+)\)", lambda match: env[match.group(1)], text) for text in of["args"]]


def pod_of(workload: Json, name: str, namespace: str) -> Json:
    """A Pod of a Deployment's or DaemonSet's template."""
    template = workload["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name, "namespace": namespace},
        "spec": template["spec"],
    }


def without_labels(body: Json) -> Json:
    """An object without the labels that Helm gives it."""
    labels = body["metadata"].get("labels") or {}
    kept = {key: value for key, value in labels.items() if "aggregate-to" in key}
    metadata = {key: value for key, value in body["metadata"].items() if key != "labels"}
    return {**body, "metadata": {**metadata, "labels": kept} if kept else metadata}
