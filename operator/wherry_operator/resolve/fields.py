"""What becomes of each field of a Pod's spec, and of a container's: the table of docs/pods.md, as data.

Tests hold it against that document, and against the schema that a real API server publishes: a field of a new Kubernetes version
is decided about, never overlooked. A field that is missing here all the same is ignored, as by a kubelet of before its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Treatment(StrEnum):
    """What becomes of a field."""

    HONOURED = "honoured"
    KUBERNETES = "by Kubernetes"
    """The control plane acts on it, before or beside the node."""
    IGNORED = "ignored"
    REFUSED = "refused"


_HONOURED, _KUBERNETES, _IGNORED = Treatment.HONOURED, Treatment.KUBERNETES, Treatment.IGNORED


def _table(*, refused: Mapping[str, str], **fields: Treatment) -> Mapping[str, Treatment]:
    return {**fields, **dict.fromkeys(refused, Treatment.REFUSED)}


REFUSED_OF_POD = {
    "hostNetwork": "a module has no network of its node",
    "hostPID": "a module has no processes",
    "hostIPC": "a module has no IPC",
    "resourceClaims": "devices can't be given to modules",
    "resources": "resources of a whole Pod are not supported; give them to its containers",
}
"""Why, by field of `PodSpec`. Only what is true or not empty counts: `hostPID: false` asks for nothing."""

POD = _table(
    refused=REFUSED_OF_POD,
    activeDeadlineSeconds=_HONOURED,
    affinity=_KUBERNETES,
    automountServiceAccountToken=_KUBERNETES,
    containers=_HONOURED,
    dnsConfig=_IGNORED,
    dnsPolicy=_IGNORED,
    enableServiceLinks=_IGNORED,
    ephemeralContainers=_IGNORED,
    hostAliases=_IGNORED,
    hostUsers=_IGNORED,
    hostname=_IGNORED,
    hostnameOverride=_IGNORED,
    imagePullSecrets=_HONOURED,
    initContainers=_HONOURED,
    nodeName=_KUBERNETES,
    nodeSelector=_KUBERNETES,
    os=_IGNORED,
    overhead=_KUBERNETES,
    preemptionPolicy=_KUBERNETES,
    priority=_KUBERNETES,
    priorityClassName=_KUBERNETES,
    readinessGates=_HONOURED,
    restartPolicy=_HONOURED,
    runtimeClassName=_KUBERNETES,
    schedulerName=_KUBERNETES,
    schedulingGates=_KUBERNETES,
    securityContext=_IGNORED,
    serviceAccount=_KUBERNETES,
    serviceAccountName=_KUBERNETES,
    setHostnameAsFQDN=_IGNORED,
    shareProcessNamespace=_IGNORED,
    subdomain=_IGNORED,
    terminationGracePeriodSeconds=_HONOURED,
    tolerations=_KUBERNETES,
    topologySpreadConstraints=_KUBERNETES,
    volumes=_HONOURED,
    workloadRef=_KUBERNETES,
)
"""Fields of `PodSpec`."""

REFUSED_OF_CONTAINER = {
    "volumeDevices": "block devices can't be given to modules",
    "restartPolicyRules": "restartPolicyRules is not supported",
}
"""Why, by field of `Container`."""

REFUSED_OF_PORT = {
    "hostPort": "a module has no port of its node; make a Service, which may have one (NodePort)",
    "hostIP": "a module has no address of its node",
}
"""Why, by field of a container's `ports`."""

PROBES = ("livenessProbe", "readinessProbe", "startupProbe")

REFUSED_OF_PROBE = {
    "exec": "a module has no other program to run; ask it by httpGet, tcpSocket or grpc",
    "httpGet.host": "a probe asks its own container",
    "httpGet.scheme": "a server has no TLS; HTTP is asked",
    "tcpSocket.host": "a probe asks its own container",
}
"""Why, by field of a probe."""

REFUSED_OF_LIFECYCLE = {"stopSignal": "a module gets no signals"}
"""Why, by field of `lifecycle`."""

HOOKS = ("postStart", "preStop")

REFUSED_OF_HOOK = {
    "exec": "a module has no other program to run; use httpGet or sleep",
    "tcpSocket": "no kubelet does it either; use httpGet or sleep",
    "httpGet.host": "a hook asks its own container",
    "httpGet.scheme": "a server has no TLS; HTTP is asked",
}
"""Why, by field of a hook."""

REFUSED_OF_MAIN_CONTAINER = {
    "restartPolicy": "a container's own restartPolicy is not supported; that of the Pod counts",
}
"""Why, by field of a container that is no init container."""

CONTAINER = _table(
    refused=REFUSED_OF_CONTAINER,
    args=_HONOURED,
    command=_HONOURED,
    env=_HONOURED,
    envFrom=_HONOURED,
    image=_HONOURED,
    imagePullPolicy=_HONOURED,
    lifecycle=_HONOURED,
    livenessProbe=_HONOURED,
    name=_HONOURED,
    ports=_HONOURED,
    readinessProbe=_HONOURED,
    resizePolicy=_HONOURED,
    resources=_HONOURED,
    restartPolicy=_HONOURED,
    securityContext=_IGNORED,
    startupProbe=_HONOURED,
    stdin=_HONOURED,
    stdinOnce=_HONOURED,
    terminationMessagePath=_IGNORED,
    terminationMessagePolicy=_IGNORED,
    tty=_IGNORED,
    volumeMounts=_HONOURED,
    workingDir=_HONOURED,
)
"""Fields of `Container`."""

REFUSED_CLAIM = (
    'the claim "{}" is not mounted into the runners; an administrator may do that (runner.claims of the chart)'
)
"""Why a volume `persistentVolumeClaim` is refused, by `NAMESPACE/NAME` of the claim."""
