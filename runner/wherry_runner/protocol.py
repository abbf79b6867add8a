"""The wire: every type that crosses between operator and runner, and nothing else.

HTTP/1.1 with JSON bodies over mutual TLS, served by the runner (`api.py`), called by the operator (`runners/client.py`):

    GET    /v1/info                                      → RunnerInfo
    PUT    /v1/workloads/{id}          WorkloadPut       → WorkloadStatus | Refusal
    GET    /v1/workloads/{id}                            → WorkloadStatus | Refusal
    DELETE /v1/workloads/{id}?epoch&sequence&grace&keepEnded  → WorkloadStatus | Refusal  (202 while it is there, 200 when gone)
    GET    /v1/workloads/{id}/containers/{name}/log?…    → text/plain | Refusal       (LogOptions as the query)
    PUT    /v1/workloads/{id}/containers/{name}/stdin    → 204 | Refusal              (the body, as it comes, is its input)
    GET    /v1/watch                                     → WatchEvent, one JSON object per line
    GET    /v1/stats                                     → RunnerStats
    GET    /v1/condition                                 → RunnerCondition
    GET    /metrics                                      → text/plain (Prometheus)

**Order.** Every change carries `(epoch, sequence)`. `epoch` is the number of the operator's term as leader: one lower than
the highest ever seen is refused (`StaleEpoch`), so a deposed leader can do no harm. `sequence` grows with each change of one
workload within an epoch: an older one is refused (`StaleSequence`), so a delayed request can't undo a newer one.

**Change.** `template_hash` covers what a container can't change while it runs: another value restarts the containers.
`content_revision` covers the files of volumes and the credentials: another value swaps them in place; variables, module and
resources are those of the next run. A container that runs with other limits is ended for that, if its policy lets it run again;
what doesn't fit is refused (`NoRoom`), and then nothing has changed. A PUT that changes neither is a no-op. The answer to a
workload's first one waits for what comes of it (`Running`, `Pulling`, an error), for a tenth of a second at most; so does the
watch.

**Delete.** The first one stops what runs, within `grace` seconds or else the workload's own grace period; asked again once it
has ended, the runner forgets it. With `keepEnded` it keeps one that ended by itself: whoever counts ends may not have heard of it
yet. A life that was stopped leaves nothing to the next one under its id: neither its runs nor how they ended.

**Watch.** First one `status` event for every workload the runner has, then `synced`, then changes, with a `heartbeat` after
`HEARTBEAT_SECONDS` of silence. A slow reader gets each workload's newest status, never a growing queue. A runner that is about to
end says so at once, by a heartbeat with `leaving`: for a while it serves on, so that clients can be led elsewhere.

Unknown fields are ignored on both sides, so that an operator one release older or newer works; `API_VERSION` changes when
that is not enough. Times are UTC, RFC 3339.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Base64Bytes, BaseModel, ConfigDict, FailFast, Field, SecretStr, field_serializer, model_validator
from pydantic.alias_generators import to_camel

API_VERSION = "v1"

HEARTBEAT_SECONDS = 10.0
"""Silence on the watch after which a heartbeat is sent; a reader that sees nothing for three of them reconnects."""

MAX_BODY_BYTES = 64 << 20
"""Largest PUT. Kubernetes objects reach 1.5 MB and a workload may mount several, base64 adds a third."""

MAX_INSTANCE_REUSE = 1_000_000
"""What a module forgets to give back is gone with its instance, so there is an end."""

MAX_MESSAGE_CHARACTERS = 1024
"""Messages are cut to this: a status of hundreds of containers must still fit an object of Kubernetes."""

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""A DNS subdomain name (RFC 1123), as Kubernetes uses it for objects: also safe as a file name."""

_LABEL = "[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?"

HostName = Annotated[str, Field(max_length=255, pattern=rf"^(\*\.)?{_LABEL}(\.{_LABEL})*$")]
"""The name of a host, in lower case; with `*.` before it: all names below it."""

WorkloadId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""Who a workload is: the object's UID, and for a WasmWorkload its template behind it. A life that follows another under the
same id begins after that was deleted, with a higher sequence."""


T = TypeVar("T")

Many = Annotated[tuple[T, ...], FailFast()]
"""Any number of values. The first wrong one is told: noting every wrong one of a body of 12 MB took 2 GB."""


_FIELD_SETS: dict[frozenset[str], set[str]] = {}
"""One set for all values that were given the same fields."""

_MAX_FIELD_SETS = 1_000
"""Ours are some dozens; a peer that was taken over could send thousands of others."""


class Wire(BaseModel):
    """What all types of the wire share: camelCase in JSON, immutable, tolerant of fields of a newer release."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True, extra="ignore"
    )

    def model_post_init(self, _: Any, /) -> None:
        """Have no set of field names of our own, as pydantic gives each value: half of what a status takes of memory. (A copy
        gets one again.)"""
        given = self.__pydantic_fields_set__
        shared = _FIELD_SETS.get(key := frozenset(given))
        if shared is not None:
            object.__setattr__(self, "__pydantic_fields_set__", shared)
        elif len(_FIELD_SETS) < _MAX_FIELD_SETS:
            _FIELD_SETS[key] = given

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


class UrlModule(Wire):
    """A module behind an https address."""

    kind: Literal["url"] = "url"
    url: Annotated[str, Field(min_length=1, max_length=2048)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the module's bytes: it decides what is run, whoever answers at the address."""
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT


class InlineModule(Wire):
    """A module carried in the request: from a spec or a ConfigMap."""

    kind: Literal["inline"] = "inline"
    data: Annotated[Base64Bytes, Field(repr=False)]
    """Binary WebAssembly, or its text format."""
    source: Annotated[str, Field(max_length=512)] = "spec.module.inline"
    """Where it stands, for messages, e.g. `ConfigMap "tools", key "hello.wasm"`."""


Module = Annotated[ImageModule | UrlModule | InlineModule, Field(discriminator="kind")]


class RegistryCredential(Wire):
    """What one entry of a pull secret says, decoded."""

    registry: Annotated[str, Field(min_length=1, max_length=1024)]
    """The entry's key as the Secret has it: a host with an optional scheme, port and path, `*` for a part of the host name.
    Matched as the kubelet does (pkg/credentialprovider/keyring.go)."""
    username: Annotated[str, Field(max_length=4096)] = ""
    password: SecretStr = SecretStr("")
    identity_token: SecretStr = SecretStr("")
    """An OAuth2 refresh token, where the registry gave one instead of a password."""

    @field_serializer("password", "identity_token", when_used="json")
    def _reveal(self, value: SecretStr) -> str:
        return value.get_secret_value()


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


class Resources(Wire):
    """What a container may use, and what is kept for it. None: the runner's default."""

    cpu_request_millicores: Annotated[int, Field(ge=0)] | None = None
    """Kept for it, and its weight where containers compete."""
    cpu_limit_millicores: Annotated[int, Field(ge=1)] | None = None
    """A ceiling, kept by its own process. None: none."""
    memory_request_bytes: Annotated[int, Field(ge=0)] | None = None
    """Kept for it. None: its limit, if it has one of its own (as Kubernetes sets it)."""
    memory_limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """Of all its memories and tables together; over it, growing fails (`OOMKilled` if it then ends badly)."""
    fuel: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    """Units of WebAssembly work for one run, about one for each instruction. None: not counted (and so faster)."""


class HttpServer(Wire):
    """How a container serves HTTP, if its module is a server. None: the runner's default."""

    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Of the runner's address. None: one of the runner's range, which the status tells."""
    movable: bool = False
    """Where that port is taken, one of the range will do as well."""
    max_requests: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Worked on at once; one more is answered 503."""
    request_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """For a request, until the guest is done with it."""
    instance_reuse: Annotated[int, Field(ge=1, le=MAX_INSTANCE_REUSE)] | None = None
    """Requests that one instance of the module serves, one after the other. None: 1, each request has its own."""
    idle_seconds: Annotated[float, Field(ge=0.1, le=86_400)] | None = None
    """After so long without a request it has no process, until the next one. None: it always has one."""


class ListenPort(Wire):
    """A port on which a container's own sockets may listen, of the runner's address."""

    port: Annotated[int, Field(ge=1, le=65_535)]
    protocol: Literal["TCP", "UDP"] = "TCP"
    movable: bool = False
    """Where it is taken, one of the runner's range will do as well."""


class Destination(Wire):
    """Something that a container may reach: hosts by name, or addresses, on some ports."""

    name: HostName | None = None
    """With `*.` before it: any name below it, and not itself."""
    network: IPv4Network | IPv6Network | None = None
    first_port: Annotated[int, Field(ge=1, le=65_535)]
    last_port: Annotated[int, Field(ge=1, le=65_535)]

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.name is None) == (self.network is None):
            raise ValueError("a destination has either a name or a network")
        if self.last_port < self.first_port:
            raise ValueError("a destination's last port comes before its first")
        return self


class Network(Wire):
    """What a container may reach. Everything else is refused, and so are addresses that no destination names although a name
    has them: loopback, link-local, and what the runner's settings protect (docs/network.md)."""

    destinations: Annotated[Many[Destination], Field(max_length=512)] = ()
    lookups: bool = True
    """Whether the container itself may look up the names; requests by HTTP look them up anyway."""


class ProbeHeader(Wire):
    """A header of a probe's request."""

    name: Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", max_length=256)]
    value: Annotated[str, Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$", max_length=8192)]


class Probe(Wire):
    """How a container is asked whether it is well; fields and meanings of `v1.Probe`, with the defaults applied."""

    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """The one that the container's spec names, wherever that is now; any other refuses. None: its own, whichever it is."""
    path: Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$", max_length=8192)] | None = None
    """Asked for by HTTP. Without it and the next: it is enough that connections are taken."""
    grpc_service: Annotated[str, Field(max_length=8192)] | None = None
    """Asked for by gRPC, as `grpc.health.v1.Health/Check` names services; empty: the server as a whole."""
    headers: Annotated[Many[ProbeHeader], Field(max_length=100)] = ()
    initial_delay_seconds: Annotated[int, Field(ge=0, le=2**31)] = 0
    period_seconds: Annotated[int, Field(ge=1, le=2**31)] = 10
    timeout_seconds: Annotated[int, Field(ge=1, le=2**31)] = 1
    success_threshold: Annotated[int, Field(ge=1, le=2**31)] = 1
    failure_threshold: Annotated[int, Field(ge=1, le=2**31)] = 3
    grace_seconds: Annotated[int, Field(ge=0)] | None = None
    """To end, when it failed; None: the workload's."""


class Hook(Wire):
    """What is done at a moment of a container's life; fields and meanings of `v1.LifecycleHandler`."""

    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """As in `Probe`."""
    path: Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$", max_length=8192)] | None = None
    """Asked for by HTTP."""
    headers: Annotated[Many[ProbeHeader], Field(max_length=100)] = ()
    sleep_seconds: Annotated[float, Field(ge=0, le=2**31)] | None = None
    """Instead: only so much time passes."""


class Container(Wire):
    """One container, everything in it resolved."""

    name: Name
    module: Module
    command: Many[str] = ()
    """With it, argv is `command` + `args`. Without, argv[0] is the module's name or absent (design §6)."""
    args: Many[str] = ()
    argv0: Literal["auto", "none"] | None = None
    env: Many[EnvironmentVariable] = ()
    working_dir: Annotated[str, Field(max_length=4096)] = ""
    """Absolute; empty: `/`. WASI 0.1 has none: there anything else is refused by name."""
    mounts: Many[VolumeMount] = ()
    resources: Resources = Resources()
    stdin: bool = False
    """Keep an input that requests may write to; without, the guest reads the end of a file at once."""
    stdin_once: bool = False
    """Close that input when the first request that wrote to it ends."""
    http: HttpServer | None = None
    """Without it, a module that serves is refused by name: nothing is reached that nobody named. A command makes no use of it."""
    listens: Many[ListenPort] = ()
    """For a command: a server's listening socket is the runner's (`http`)."""
    network: Network | None = None
    """Without it, it reaches nothing."""
    startup_probe: Probe | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    post_start: Hook | None = None
    """Right after each start; before it has succeeded the container does not count as running, and it is ended if it fails."""
    pre_stop: Hook | None = None
    """Before it is asked to end, within its grace period."""


class InitContainer(Container):
    """A container that runs before the others: to its end, or, a sidecar, beside them (KEP-753)."""

    restart_policy: Literal["Always"] | None = None
    """`Always` makes it a sidecar: the next one starts as soon as it runs, and it ends after the containers."""


class VolumeFile(Wire):
    """One file of a volume."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Relative, without `..`; the runner refuses anything that would leave the volume."""
    data: Annotated[Base64Bytes, Field(repr=False)]
    """Not shown by repr: it may be a Secret's."""
    mode: Annotated[int, Field(ge=0, le=0o777)] = 0o644


class FilesVolume(Wire):
    """A read-only folder of resolved files: from ConfigMaps, Secrets, the downward API."""

    kind: Literal["files"] = "files"
    name: Name
    files: Many[VolumeFile] = ()
    secret: bool = False
    """Kept in memory only."""


class EmptyDirVolume(Wire):
    """An empty folder that lives as long as the workload, shared by its containers."""

    kind: Literal["emptyDir"] = "emptyDir"
    name: Name
    medium: Literal["", "Memory"] = ""
    size_limit_bytes: Annotated[int, Field(ge=0)] | None = None
    """Over it the workload is evicted, as a kubelet does. In memory without one: the workload's share decides."""


class HostPathVolume(Wire):
    """A folder of the runner's own file system, below a prefix that the runner's settings allow."""

    kind: Literal["hostPath"] = "hostPath"
    name: Name
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    type: Literal["", "Directory", "DirectoryOrCreate"] = ""


class ClaimVolume(Wire):
    """What a PersistentVolumeClaim holds, of those that the runner's settings offer."""

    kind: Literal["claim"] = "claim"
    name: Name
    claim: Annotated[str, Field(min_length=3, max_length=512)]
    """`NAMESPACE/NAME` of the claim that the object names."""
    read_only: bool = False


Volume = Annotated[FilesVolume | EmptyDirVolume | HostPathVolume | ClaimVolume, Field(discriminator="kind")]


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
    init_containers: Many[InitContainer] = ()
    containers: Annotated[Many[Container], Field(min_length=1)]
    volumes: Many[Volume] = ()
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    termination_grace_period_seconds: Annotated[int, Field(ge=0)] = 30
    deadline: datetime | None = None
    """When it is ended as `DeadlineExceeded`, whatever it does: its object's start plus `activeDeadlineSeconds`."""
    credentials: Many[RegistryCredential] = ()
    """For pulls of its modules, in the order of its pull secrets."""


class WorkloadPut(Wire):
    """The body of a PUT."""

    epoch: Annotated[int, Field(ge=0)]
    sequence: Annotated[int, Field(ge=0)]
    template_hash: Annotated[str, Field(min_length=1, max_length=128)]
    content_revision: Annotated[str, Field(max_length=128)] = ""
    workload: Workload
    history: Many[History] = ()


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


class ProbeFailure(Wire):
    """A probe has failed, if only once: it may have changed nothing."""

    probe: Literal["Startup", "Liveness", "Readiness"]
    message: str
    """In the kubelet's words."""
    count: int
    """Of this probe's failures in the newest run."""


class HookFailure(Wire):
    """A hook of the newest run has failed."""

    hook: Literal["PostStart", "PreStop"]


class OpenPort(Wire):
    """A port that is kept for a container's own sockets."""

    named: int
    """In its spec, and by which the container knows it."""
    port: int
    """On the runner's address."""
    protocol: Literal["TCP", "UDP"] = "TCP"


class ContainerStatus(Wire):
    """One container as it is; the fields of `v1.ContainerStatus` by their meaning there."""

    name: Name
    state: ContainerState
    last_terminated: Terminated | None = None
    container_id: str = ""
    """Of the newest run, without a scheme; empty before the first."""
    restart_count: int = 0
    ready: bool = False
    started: bool | None = None
    """It runs, and its startup probe, if it has one, has succeeded. None: a runner that knows nothing of probes."""
    port: int | None = None
    """Of a server: where it is reached on the runner's address, while that port is open."""
    ports: Many[OpenPort] = ()
    """Of a command that may listen."""
    idle: bool = False
    """Of a server that runs: it has no process, for nobody asks it; the next request starts one."""
    probe_failures: Many[ProbeFailure] = ()
    """The newest of each of its probes, told when it is another, and else once in a while."""
    hook_failures: Many[HookFailure] = ()
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


class Failure(Wire):
    """Why a whole workload was ended by its runner."""

    reason: str
    """`DeadlineExceeded`, `Evicted`: the kubelet's words for `status.reason` of a Pod."""
    message: str = ""


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
    init_containers: Many[ContainerStatus] = ()
    containers: Many[ContainerStatus]
    failure: Failure | None = None
    """Set when it was ended for a reason that no single container has."""
    stopped: bool = False
    """A DELETE ended it, or is about to: however it ends is not its own doing."""


class Confinement(Wire):
    """What keeps a guest in its place on this runner's kernel, beside WebAssembly itself."""

    no_new_privileges: bool = False
    landlock_abi: int = 0
    """Version of the kernel's Landlock interface that is used; 0: none."""
    seccomp: bool = False


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
    engines: Many[str]
    features: Many[str] = ()
    """What its executor can do beyond running WASI 0.1 and 0.2 commands: `fuel`, `cpu-limit`, `http`, `wasi-0.3`, …"""
    confinement: Confinement = Confinement()
    cpu_millicores: int
    memory_bytes: int
    """Offered to guests: what the runner itself needs is taken off already."""
    max_workloads: int
    default_memory_request_bytes: int = 0
    """What a container that names neither request nor limit is counted with."""
    default_memory_limit_bytes: int = 0
    """What a container that names no limit gets."""
    leaving: bool = False
    """It is about to end: it takes nothing new, and serves on for a moment."""


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
    leaving: bool = False
    """As in `RunnerInfo`."""


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


# --- what is used -----------------------------------------------------------------------------------------------------


class ContainerStats(Wire):
    """What a running container has used."""

    workload: WorkloadId
    container: Name
    container_id: str
    started_at: datetime
    cpu_nanoseconds: int
    """Of this run, user and system."""
    working_set_bytes: int
    """Memory that only this container's process has (private pages)."""
    log_bytes: int = 0
    """Of its log files."""


class RunnerStats(Wire):
    """What the runner and its containers use, sampled on request."""

    time: datetime
    cpu_nanoseconds: int
    """Of the runner itself (supervisor and executor) and all its guests since it started."""
    memory_bytes: int
    """The same, now."""
    cpu_requested_millicores: int
    memory_requested_bytes: int
    workloads: int
    containers: Many[ContainerStats]


# --- how the runner is ------------------------------------------------------------------------------------------------


class Image(Wire):
    """A module that was pulled, and is on the runner's disk."""

    names: Many[str]
    """References by which it was pulled, those with a digest first."""
    size_bytes: int
    """That its module takes on disk."""


class RunnerCondition(Wire):
    """How the runner is now. Each pressure is a sentence that says what is short; empty: nothing is."""

    memory_pressure: str = ""
    disk_pressure: str = ""
    pid_pressure: str = ""
    images: Many[Image] = ()
    """The largest 50."""

    @property
    def short_of(self) -> frozenset[Literal["memory", "disk", "processes"]]:
        """What it has too little of."""
        said: dict[Literal["memory", "disk", "processes"], str] = {
            "memory": self.memory_pressure,
            "disk": self.disk_pressure,
            "processes": self.pid_pressure,
        }
        return frozenset(what for what, text in said.items() if text)


# --- refusals ---------------------------------------------------------------------------------------------------------


class RefusalReason(StrEnum):
    """Why a request was not carried out; `REFUSAL_STATUS` gives each its HTTP status."""

    INVALID = "Invalid"
    FORBIDDEN = "Forbidden"
    """The client's certificate has no role that may do this (`tls.Role`)."""
    NOT_FOUND = "NotFound"
    STALE_EPOCH = "StaleEpoch"
    STALE_SEQUENCE = "StaleSequence"
    TOO_LARGE = "TooLarge"
    NO_LOG = "NoLog"
    NO_INPUT = "NoInput"
    NO_ROOM = "NoRoom"
    """It fits another runner, or this one later: the message counts what is wanted and what is free."""
    STOPPING = "Stopping"
    INTERNAL = "Internal"


REFUSAL_STATUS: dict[RefusalReason, int] = {
    RefusalReason.INVALID: 400,
    RefusalReason.NO_LOG: 400,
    RefusalReason.NO_INPUT: 400,
    RefusalReason.FORBIDDEN: 403,
    RefusalReason.NOT_FOUND: 404,
    RefusalReason.STALE_EPOCH: 409,
    RefusalReason.STALE_SEQUENCE: 409,
    RefusalReason.TOO_LARGE: 413,
    RefusalReason.INTERNAL: 500,
    RefusalReason.STOPPING: 503,
    RefusalReason.NO_ROOM: 507,
}


class Refusal(Wire):
    """The body of every answer that is not a success."""

    reason: RefusalReason
    message: str
    epoch: int | None = None
    """With `StaleEpoch`: the highest epoch that the runner has seen."""


History.model_rebuild()
