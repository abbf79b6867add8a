"""The wire: every type that crosses between operator and runner, and nothing else.

HTTP/1.1 with JSON bodies over mutual TLS, served by the runner (`api.py`), called by the operator (`runners/client.py`):

    GET    /v1/info                                      → RunnerInfo
    PUT    /v1/workloads/{id}          WorkloadPut       → WorkloadStatus | Refusal
    GET    /v1/workloads/{id}                            → WorkloadStatus | Refusal
    DELETE /v1/workloads/{id}?epoch&sequence&grace       → WorkloadStatus | Refusal   (202 while it still stops, 200 when gone)
    GET    /v1/workloads/{id}/containers/{name}/log?…    → text/plain | Refusal       (LogOptions as the query)
    GET    /v1/watch                                     → WatchEvent, one JSON object per line

**Order.** Every change carries `(epoch, sequence)`. `epoch` is the number of the operator's term as leader: one lower than
the highest ever seen is refused (`StaleEpoch`), so a deposed leader can do no harm. `sequence` grows with each change of one
workload within an epoch: an older one is refused (`StaleSequence`), so a delayed request can't undo a newer one.

**Change.** `template_hash` covers what a container can't change while it runs: another value restarts the containers.
`content_revision` covers the files of volumes: another value swaps them in place. A PUT that changes neither is a no-op.

**Watch.** First one `status` event for every workload the runner has, then `synced`, then changes, with a `heartbeat` after
`HEARTBEAT_SECONDS` of silence. A slow reader gets each workload's newest status, never a growing queue.

Unknown fields are ignored on both sides, so that an operator one release older or newer works; `API_VERSION` changes when
that is not enough. Times are UTC, RFC 3339.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, SecretStr, field_serializer
from pydantic.alias_generators import to_camel

API_VERSION = "v1"

HEARTBEAT_SECONDS = 10.0
"""Silence on the watch after which a heartbeat is sent; a reader that sees nothing for three of them reconnects."""

MAX_BODY_BYTES = 64 << 20
"""Largest PUT. Kubernetes objects reach 1.5 MB and a workload may mount several, base64 adds a third."""

MAX_MESSAGE_CHARACTERS = 1024
"""Messages are cut to this: a status of hundreds of containers must still fit an object of Kubernetes."""

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""A DNS subdomain name (RFC 1123), as Kubernetes uses it for objects: also safe as a file name."""

WorkloadId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""Who a workload is: the object's UID, and for a WasmWorkload its template behind it. A life that follows another under the
same id begins after that was deleted, with a higher sequence."""


class Wire(BaseModel):
    """What all types of the wire share: camelCase in JSON, immutable, tolerant of fields of a newer release."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True, extra="ignore"
    )

    def to_json(self) -> bytes:
        """The value as the wire carries it."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


# --- what is to run ---------------------------------------------------------------------------------------------------


class PullPolicy(StrEnum):
    """When a registry is asked, as in `imagePullPolicy` of a container."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class RestartPolicy(StrEnum):
    """What happens when a container has ended, as in `restartPolicy` of a Pod."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class ImageModule(Wire):
    """A module in a registry."""

    kind: Literal["image"] = "image"
    reference: Annotated[str, Field(min_length=1, max_length=1024)]
    """As the user wrote it; the runner applies the defaults and pins the digest once resolved."""
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT


class InlineModule(Wire):
    """A module carried in the request: from a spec or a ConfigMap."""

    kind: Literal["inline"] = "inline"
    data: Annotated[Base64Bytes, Field(repr=False)]
    """Binary WebAssembly, or its text format."""
    source: Annotated[str, Field(max_length=512)] = "spec.module.inline"
    """Where it stands, for messages, e.g. `ConfigMap "tools", key "hello.wasm"`."""


Module = Annotated[ImageModule | InlineModule, Field(discriminator="kind")]


class EnvironmentVariable(Wire):
    """One variable, resolved. SecretStr: the value may come from a Secret and must not reach a log or a traceback."""

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    value: SecretStr

    @field_serializer("value", when_used="json")
    def _reveal(self, value: SecretStr) -> str:
        """On the wire, and nowhere else, the value itself has to travel."""
        return value.get_secret_value()


class VolumeMount(Wire):
    """Where a container sees a volume."""

    volume: Name
    mount_path: Annotated[str, Field(min_length=1, max_length=4096)]
    read_only: bool = False
    sub_path: Annotated[str, Field(max_length=4096)] = ""


class Container(Wire):
    """One container, everything in it resolved."""

    name: Name
    module: Module
    command: tuple[str, ...] = ()
    """With it, argv is `command` + `args`. Without, argv[0] is the module's name or absent (design §6)."""
    args: tuple[str, ...] = ()
    argv0: Literal["auto", "none"] | None = None
    env: tuple[EnvironmentVariable, ...] = ()
    mounts: tuple[VolumeMount, ...] = ()


class VolumeFile(Wire):
    """One file of a volume."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Relative, without `..`; the runner refuses anything that would leave the volume."""
    data: Annotated[Base64Bytes, Field(repr=False)]
    """Not shown by repr: it may be a Secret's."""
    mode: Annotated[int, Field(ge=0, le=0o777)] = 0o644


class Volume(Wire):
    """A read-only folder of resolved files: from ConfigMaps, Secrets, the downward API."""

    name: Name
    files: tuple[VolumeFile, ...] = ()
    secret: bool = False
    """Kept in memory only."""


class Owner(Wire):
    """The object that a workload belongs to: for messages and logs, never for a decision."""

    kind: str
    namespace: str
    name: str
    uid: str


class History(Wire):
    """What the object's status says of a container's past, for a runner that lost its journal (design §3.8)."""

    container: Name
    container_id: str = ""
    restart_count: int = 0
    started_at: datetime | None = None
    terminated: Terminated | None = None
    """Set when the newest run has ended; without it that run was seen running."""


class Workload(Wire):
    """A Pod or an instance of a WasmWorkload, resolved."""

    owner: Owner
    containers: Annotated[tuple[Container, ...], Field(min_length=1)]
    volumes: tuple[Volume, ...] = ()
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    termination_grace_period_seconds: Annotated[int, Field(ge=0)] = 30


class WorkloadPut(Wire):
    """The body of a PUT."""

    epoch: Annotated[int, Field(ge=0)]
    sequence: Annotated[int, Field(ge=0)]
    template_hash: Annotated[str, Field(min_length=1, max_length=128)]
    content_revision: Annotated[str, Field(max_length=128)] = ""
    workload: Workload
    history: tuple[History, ...] = ()


# --- what is true -----------------------------------------------------------------------------------------------------


class Waiting(Wire):
    """Not started, or between two runs."""

    state: Literal["waiting"] = "waiting"
    reason: str
    message: str = ""


class Running(Wire):
    """A process runs the module."""

    state: Literal["running"] = "running"
    started_at: datetime


class Terminated(Wire):
    """A run has ended. `started_at` is None when it never began."""

    state: Literal["terminated"] = "terminated"
    exit_code: int
    reason: str
    message: str = ""
    container_id: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


ContainerState = Annotated[Waiting | Running | Terminated, Field(discriminator="state")]


class ContainerStatus(Wire):
    """One container as it is; the fields of `v1.ContainerStatus` by their meaning there."""

    name: Name
    state: ContainerState
    last_terminated: Terminated | None = None
    container_id: str = ""
    """Of the newest run, without a scheme; empty before the first."""
    restart_count: int = 0
    ready: bool = False
    image: str = ""
    module_digest: str = ""
    """`sha256:…` of the module's bytes, once known."""
    image_digest: str = ""
    """`sha256:…` of the manifest that was pulled, once known; empty for an inline module."""


class Phase(StrEnum):
    """Where a workload is in its life. Ended: no container will run again."""

    ACTIVE = "Active"
    STOPPING = "Stopping"
    ENDED = "Ended"


class WorkloadStatus(Wire):
    """A workload as it is on its runner."""

    id: WorkloadId
    owner: Owner
    phase: Phase
    epoch: int
    sequence: int
    template_hash: str
    content_revision: str = ""
    accepted_at: datetime
    containers: tuple[ContainerStatus, ...]


class RunnerInfo(Wire):
    """Who a runner is."""

    api_version: str = API_VERSION
    runner: Name
    node: str
    address: str = ""
    """An IP by which guests' ports are reached and which Pods report as hostIP; empty if there is none."""
    instance: str
    """Another value after each start of the process: its guests of before are gone."""
    wherry_version: str
    engines: tuple[str, ...]
    cpu_millicores: int
    memory_bytes: int
    max_workloads: int


# --- the watch --------------------------------------------------------------------------------------------------------


class StatusEvent(Wire):
    """A workload's newest status."""

    event: Literal["status"] = "status"
    status: WorkloadStatus


class GoneEvent(Wire):
    """A workload is no longer on the runner."""

    event: Literal["gone"] = "gone"
    id: WorkloadId


class SyncedEvent(Wire):
    """The snapshot is complete: what was not named is not there."""

    event: Literal["synced"] = "synced"
    info: RunnerInfo


class HeartbeatEvent(Wire):
    """Nothing changed, and the runner lives."""

    event: Literal["heartbeat"] = "heartbeat"


WatchEvent = Annotated[StatusEvent | GoneEvent | SyncedEvent | HeartbeatEvent, Field(discriminator="event")]


# --- logs -------------------------------------------------------------------------------------------------------------


class LogOptions(Wire):
    """The query of a log request; names and meanings of `v1.PodLogOptions`, applied as the kubelet does."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    since_seconds: Annotated[int, Field(ge=1)] | None = None
    since_time: datetime | None = None
    tail_lines: Annotated[int, Field(ge=0)] | None = None
    limit_bytes: Annotated[int, Field(ge=1)] | None = None
    stream: Literal["All", "Stdout", "Stderr"] = "All"


# --- refusals ---------------------------------------------------------------------------------------------------------


class RefusalReason(StrEnum):
    """Why a request was not carried out; `REFUSAL_STATUS` gives each its HTTP status."""

    INVALID = "Invalid"
    NOT_FOUND = "NotFound"
    STALE_EPOCH = "StaleEpoch"
    STALE_SEQUENCE = "StaleSequence"
    TOO_LARGE = "TooLarge"
    NO_LOG = "NoLog"
    STOPPING = "Stopping"
    INTERNAL = "Internal"


REFUSAL_STATUS: dict[RefusalReason, int] = {
    RefusalReason.INVALID: 400,
    RefusalReason.NO_LOG: 400,
    RefusalReason.NOT_FOUND: 404,
    RefusalReason.STALE_EPOCH: 409,
    RefusalReason.STALE_SEQUENCE: 409,
    RefusalReason.TOO_LARGE: 413,
    RefusalReason.INTERNAL: 500,
    RefusalReason.STOPPING: 503,
}


class Refusal(Wire):
    """The body of every answer that is not a success."""

    reason: RefusalReason
    message: str
    epoch: int | None = None
    """With `StaleEpoch`: the highest epoch that the runner has seen."""


History.model_rebuild()
