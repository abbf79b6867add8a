"""The parts of objects that the operator reads, as types: the spec of a WasmWorkload, and what Pods share with it.

`WasmWorkloadSpec` mirrors the schema in `crds/`; a test holds the two against each other. The API server has validated an
object before we see it; these models only make its fields safe to use, and ignore what they don't know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from wherry_runner.protocol import PullPolicy, RestartPolicy

Object = dict[str, Any]
"""One object of Kubernetes, as its JSON has it."""


def resource_version(body: Object) -> int:
    """resourceVersion as a number: comparable since Kubernetes 1.35 (KEP-5504), and in fact before (etcd's revision)."""
    try:
        return int(body["metadata"].get("resourceVersion") or 0)
    except ValueError:
        return 0


def lean(body: Object) -> Object:
    """The object without the record of who set which field: nobody here asks, and it is nearly half of what an object takes of
    memory, wherever one is kept or waits."""
    metadata = body.get("metadata") or {}
    if "managedFields" not in metadata:
        return body
    return {**body, "metadata": {key: value for key, value in metadata.items() if key != "managedFields"}}


Quantity = str | int | float
"""`resource.Quantity` as JSON may have it: `500m`, `64Mi`, `2`."""

IntOrPercent = int | str
"""`intstr.IntOrString`: a number, or a percentage such as `25%`."""


class Model(BaseModel):
    """camelCase in JSON, immutable; a null counts as absent, as for the API server."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True, extra="ignore")


class KeySelector(Model):
    """A key of a ConfigMap or Secret."""

    name: str = ""
    key: str
    optional: bool | None = None


class ObjectReference(Model):
    """A ConfigMap or Secret as a whole."""

    name: str = ""
    optional: bool | None = None


class FieldSelector(Model):
    """A field of the object itself (downward API)."""

    field_path: str


class ResourceSelector(Model):
    """A request or limit of a container (downward API)."""

    resource: str
    container_name: str | None = None
    divisor: Quantity | None = None


class EnvVarSource(Model):
    """Where a variable's value comes from."""

    field_ref: FieldSelector | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None
    resource_field_ref: ResourceSelector | None = None
    file_key_ref: dict[str, object] | None = None


class EnvVar(Model):
    """One variable."""

    name: str
    value: str | None = None
    value_from: EnvVarSource | None = None


class EnvFromSource(Model):
    """Variables from every key of an object."""

    prefix: str | None = None
    config_map_ref: ObjectReference | None = None
    secret_ref: ObjectReference | None = None


class KeyToPath(Model):
    """A key as a file."""

    key: str
    path: str
    mode: int | None = None


class ConfigMapVolume(Model):
    """A ConfigMap as a folder."""

    name: str = ""
    items: tuple[KeyToPath, ...] | None = None
    default_mode: int | None = None
    optional: bool | None = None


class SecretVolume(Model):
    """A Secret as a folder."""

    secret_name: str = ""
    items: tuple[KeyToPath, ...] | None = None
    default_mode: int | None = None
    optional: bool | None = None


class SecretProjection(Model):
    """A Secret as a part of a projected folder."""

    name: str = ""
    items: tuple[KeyToPath, ...] | None = None
    optional: bool | None = None


class DownwardFile(Model):
    """A field of the object as a file."""

    path: str
    field_ref: FieldSelector | None = None
    resource_field_ref: ResourceSelector | None = None
    mode: int | None = None


class DownwardProjection(Model):
    """Fields of the object as files."""

    items: tuple[DownwardFile, ...] = ()


class DownwardVolume(DownwardProjection):
    """The same as a volume of its own."""

    default_mode: int | None = None


class VolumeProjection(Model):
    """One source of a projected folder."""

    config_map: ConfigMapVolume | None = None
    secret: SecretProjection | None = None
    downward_api: Annotated[DownwardProjection | None, Field(alias="downwardAPI")] = None
    service_account_token: dict[str, object] | None = None
    cluster_trust_bundle: dict[str, object] | None = None
    pod_certificate: dict[str, object] | None = None


class ProjectedVolume(Model):
    """Several sources in one folder."""

    sources: tuple[VolumeProjection, ...] | None = None
    default_mode: int | None = None


class EmptyDir(Model):
    """An empty folder."""

    medium: str | None = None
    size_limit: Quantity | None = None


class HostPath(Model):
    """A folder of the runner's node."""

    path: str
    type: str | None = None


class PersistentVolumeClaim(Model):
    """What a claim of the Pod's namespace holds."""

    claim_name: str
    read_only: bool | None = None


class Volume(Model):
    """A volume of one of the kinds that a runner can have."""

    name: str
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None
    persistent_volume_claim: PersistentVolumeClaim | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    projected: ProjectedVolume | None = None
    downward_api: Annotated[DownwardVolume | None, Field(alias="downwardAPI")] = None


class VolumeMount(Model):
    """Where a container sees a volume."""

    name: str
    mount_path: str
    read_only: bool | None = None
    sub_path: str | None = None
    sub_path_expr: str | None = None


class ResourceRequirements(Model):
    """What a container asks for and may use."""

    requests: dict[str, Quantity] | None = None
    limits: dict[str, Quantity] | None = None


class SecretName(Model):
    """A pull secret."""

    name: str = ""


class ContainerPort(Model):
    """A port that a Pod's container says it serves on."""

    container_port: int
    name: str | None = None
    protocol: str | None = None
    """None: TCP."""


class HttpHeader(Model):
    """A header of a probe's request."""

    name: str
    value: str = ""


class HttpGet(Model):
    """What a probe asks for by HTTP."""

    port: int | str
    path: str | None = None
    http_headers: tuple[HttpHeader, ...] | None = None


class TcpSocket(Model):
    """Where a probe connects to."""

    port: int | str


class Grpc(Model):
    """What a probe asks for by gRPC."""

    port: int
    service: str | None = None


class Probe(Model):
    """What is read of a container's probe; its defaults are written by the API server."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    grpc: Grpc | None = None
    initial_delay_seconds: int | None = None
    period_seconds: int | None = None
    timeout_seconds: int | None = None
    success_threshold: int | None = None
    failure_threshold: int | None = None
    termination_grace_period_seconds: int | None = None


class Sleep(Model):
    """A pause."""

    seconds: float


class LifecycleHandler(Model):
    """What a hook does."""

    http_get: HttpGet | None = None
    sleep: Sleep | None = None


class Lifecycle(Model):
    """A container's hooks."""

    post_start: LifecycleHandler | None = None
    pre_stop: LifecycleHandler | None = None


class Container(Model):
    """What is read of a Pod's container."""

    name: str
    image: str = ""
    image_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: tuple[EnvVar, ...] | None = None
    env_from: tuple[EnvFromSource, ...] | None = None
    volume_mounts: tuple[VolumeMount, ...] | None = None
    working_dir: str | None = None
    resources: ResourceRequirements | None = None
    stdin: bool | None = None
    stdin_once: bool | None = None
    ports: tuple[ContainerPort, ...] | None = None
    startup_probe: Probe | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    restart_policy: str | None = None
    """Of an init container: `Always` makes it a sidecar."""


class Toleration(Model):
    """A taint of nodes that does not matter."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class PodSpec(Model):
    """What is read of a Pod's spec."""

    init_containers: tuple[Container, ...] | None = None
    containers: tuple[Container, ...]
    image_pull_secrets: tuple[SecretName, ...] | None = None
    active_deadline_seconds: int | None = None
    volumes: tuple[Volume, ...] | None = None
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    termination_grace_period_seconds: int | None = None
    service_account_name: str | None = None
    node_name: str | None = None
    tolerations: tuple[Toleration, ...] | None = None


class ConfigMapKey(Model):
    """The key of a ConfigMap that holds a module."""

    name: str
    key: str


class ModuleSource(Model):
    """Where a module comes from; exactly one is set."""

    image: str | None = None
    url: str | None = None
    sha256: str | None = None
    config_map_key_ref: ConfigMapKey | None = None
    inline: str | None = None


class WorkloadEmptyDir(Model):
    """An empty folder of a WasmWorkload's instance."""

    medium: Literal["", "Memory"] | None = None
    size_limit: Quantity | None = None


class WorkloadVolume(Model):
    """A volume of a WasmWorkload."""

    name: str
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    empty_dir: WorkloadEmptyDir | None = None


class WorkloadVolumeMount(Model):
    """Where the module sees a volume."""

    name: str
    mount_path: str
    read_only: bool | None = None
    sub_path: str | None = None


class Amounts(Model):
    """Requests or limits."""

    cpu: Quantity | None = None
    memory: Quantity | None = None


class WorkloadResources(Model):
    """What an instance may use, and what is kept for it."""

    requests: Amounts | None = None
    limits: Amounts | None = None
    fuel: int | None = None


class WorkloadHttpGet(Model):
    """What a WasmWorkload's probe asks for: its own port."""

    path: str | None = None
    http_headers: tuple[HttpHeader, ...] | None = None


class WorkloadTcpSocket(Model):
    """It is enough that its own port takes connections."""


class WorkloadProbe(Model):
    """What all of a WasmWorkload's probes have."""

    http_get: WorkloadHttpGet | None = None
    tcp_socket: WorkloadTcpSocket | None = None
    initial_delay_seconds: int | None = None
    period_seconds: int | None = None
    timeout_seconds: int | None = None
    failure_threshold: int | None = None


class WorkloadReadinessProbe(WorkloadProbe):
    """Whether clients are led to an instance."""

    success_threshold: int | None = None


class WorkloadLivenessProbe(WorkloadProbe):
    """Whether an instance is to be run again; a startup probe is the same, at first."""

    termination_grace_period_seconds: int | None = None


class WorkloadService(Model):
    """The Service of a WasmWorkload."""

    name: str | None = None
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    annotations: dict[str, str] | None = None


class WorkloadIdle(Model):
    """When an instance that nobody asks has no process."""

    after_seconds: int


class WorkloadHttp(Model):
    """How a WasmWorkload's instances serve."""

    port: int | None = None
    service: WorkloadService | None = None
    max_requests: int | None = None
    request_timeout_seconds: int | None = None
    instance_reuse: int | None = None
    idle: WorkloadIdle | None = None


class WorkloadNetwork(Model):
    """What a WasmWorkload may reach."""

    allowed_hosts: tuple[str, ...] | None = None
    allow_dns: Annotated[bool | None, Field(alias="allowDNS")] = None


class WorkloadEnvVarSource(Model):
    """Where a variable of a WasmWorkload comes from."""

    field_ref: FieldSelector | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None

    @property
    def resource_field_ref(self) -> None:
        """A Pod's variables have it too."""
        return None


class WorkloadEnvVar(Model):
    """One variable of a WasmWorkload."""

    name: str
    value: str | None = None
    value_from: WorkloadEnvVarSource | None = None


class WorkloadSecretName(Model):
    """A pull secret of a WasmWorkload."""

    name: str


class RollingUpdate(Model):
    """How large the steps of a rolling update are."""

    max_surge: IntOrPercent | None = None
    max_unavailable: IntOrPercent | None = None


class Strategy(Model):
    """How a changed spec reaches the instances."""

    type: Literal["RollingUpdate", "Recreate"] = "RollingUpdate"
    rolling_update: RollingUpdate | None = None


class Spread(Model):
    """What keeps instances apart."""

    topology_key: str = "kubernetes.io/hostname"


class WasmWorkloadSpec(Model):
    """The spec of a WasmWorkload (`wherry.dev/v1alpha1`)."""

    class_name: str = "wherry"
    replicas: int = 1
    suspend: bool | None = None
    strategy: Strategy | None = None
    min_ready_seconds: int | None = None
    progress_deadline_seconds: int | None = None
    revision_history_limit: int | None = None
    completions: int | None = None
    backoff_limit: int | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    spread: Spread | None = None
    module: ModuleSource
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: tuple[WorkloadSecretName, ...] | None = None
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    termination_grace_period_seconds: int = 30
    resources: WorkloadResources | None = None
    args: tuple[str, ...] | None = None
    env: tuple[WorkloadEnvVar, ...] | None = None
    env_from: tuple[EnvFromSource, ...] | None = None
    volumes: tuple[WorkloadVolume, ...] | None = None
    volume_mounts: tuple[WorkloadVolumeMount, ...] | None = None
    http: WorkloadHttp | None = None
    startup_probe: WorkloadLivenessProbe | None = None
    liveness_probe: WorkloadLivenessProbe | None = None
    readiness_probe: WorkloadReadinessProbe | None = None
    network: WorkloadNetwork | None = None
