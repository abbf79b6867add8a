"""What the lives of workloads and containers need around them: of the runner, and of each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule, Engine, HttpBounds, Preopen, Variant
from wherry_runner.journal.journals import Journal
from wherry_runner.lives.backoff import BackOffSettings
from wherry_runner.lives.listeners import Listeners
from wherry_runner.lives.network import NetworkAround
from wherry_runner.logs.folders import LogFolders
from wherry_runner.metrics import Metrics
from wherry_runner.modules.library import OnProgress
from wherry_runner.resources.limits import LimitDefaults


class ModuleSource(Protocol):
    """Where modules come from (`modules/library.py`)."""

    def at_hand(
        self,
        module: protocol.Module,
        /,
        *,
        variant: Variant = Variant.PLAIN,
        credentials: Sequence[protocol.RegistryCredential] = (),
    ) -> CompiledModule | None:
        """A module that can run now, without any work; None: `get` knows more."""

    async def get(
        self,
        module: protocol.Module,
        /,
        *,
        variant: Variant = Variant.PLAIN,
        credentials: Sequence[protocol.RegistryCredential] = (),
        on_progress: OnProgress | None = None,
    ) -> CompiledModule:
        """A module, compiled. Raises ModuleError."""


class VolumeSource(Protocol):
    """Where volumes are (`volumes/`)."""

    def write(
        self, workload_id: str, volumes: Iterable[protocol.Volume], *, limit_in_memory_bytes: int | None = None
    ) -> None:
        """Bring a workload's volumes to this content. Raises VolumeError."""

    def preopens(
        self, workload_id: str, container: protocol.Container, volumes: Iterable[protocol.Volume]
    ) -> tuple[Preopen, ...]:
        """The folders for a container's next run. Raises VolumeError."""

    def largest_file(
        self, workload_id: str, container: protocol.Container, volumes: Iterable[protocol.Volume]
    ) -> int | None:
        """The largest file that fits into what a container may write to, in bytes; None: no limit says."""

    def drop(self, workload_id: str) -> None:
        """Remove a workload's volumes."""


class LogSlots(Protocol):
    """Who says how large logs may be (`logs/budget.py`)."""

    def take(self, log_folder: Path) -> int:
        """A slot for a container. Raises TooManyLogs."""

    def give_back(self, slot: int) -> None:
        """The container's logs are gone."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What all workloads of a runner share."""

    engine: Engine
    modules: ModuleSource
    volumes: VolumeSource
    logs: LogFolders
    log_slots: LogSlots
    back_off: BackOffSettings
    defaults: LimitDefaults
    listeners: Listeners
    """Also: where their ports are asked (`lives/probing.py`)."""
    http: HttpBounds
    """Of servers whose spec says nothing else."""
    network: NetworkAround = field(default_factory=NetworkAround)
    metrics: Metrics


class Surroundings(Protocol):
    """What a container's life needs of its workload (`workload.py`)."""

    @property
    def id(self) -> str:
        """The workload's id."""

    @property
    def room(self) -> Room:
        """What it shares with all other workloads."""

    @property
    def journal(self) -> Journal:
        """Where runs are noted."""

    @property
    def owner(self) -> protocol.Owner:
        """For messages."""

    @property
    def grace_seconds(self) -> float:
        """For what it has to end by itself."""

    @property
    def volumes(self) -> tuple[protocol.Volume, ...]:
        """Its volumes."""

    @property
    def credentials(self) -> tuple[protocol.RegistryCredential, ...]:
        """For pulls."""

    def on_change(self) -> None:
        """A container's state has changed."""

    def on_error(self) -> None:
        """A container's life ended by an error of ours."""
