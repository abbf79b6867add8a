"""Runners whose guests are only noted: the real protocol, supervisor, journal and TLS, and an engine that starts nothing.

python -m bench.simulated_runner FOLDER CERT KEY CLIENT_CA NAME=PORT…
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.support.fake_engine import FakeEngine, FakeModules
from wherry_runner import protocol
from wherry_runner.journal.journals import Journals
from wherry_runner.lives.backoff import BackOffSettings
from wherry_runner.lives.supervisor import Supervisor
from wherry_runner.lives.surroundings import Room
from wherry_runner.logs.allowances import Allowances
from wherry_runner.logs.budget import LogBudget
from wherry_runner.logs.folders import LogFolders
from wherry_runner.metrics import Metrics
from wherry_runner.resources.admission import Admission, Amounts
from wherry_runner.resources.limits import LimitDefaults
from wherry_runner.resources.usage import Usage
from wherry_runner.serving import api
from wherry_runner.serving.condition import Condition
from wherry_runner.serving.listening import serve
from wherry_runner.serving.tls import ServerTls
from wherry_runner.volumes import Volumes

WORKLOADS = 20_000
PLENTY = Amounts(
    memory_bytes=1 << 50, millicores=10**9, workloads=WORKLOADS, processes=10**6, descriptors=10**6, logs=WORKLOADS
)


async def run(folder: Path, tls: ServerTls, name: str, port: int) -> None:
    """Serve one runner."""
    (folder / "memory").mkdir(parents=True)
    allowances = Allowances(slots=WORKLOADS + 1, default_bytes=1 << 20)
    counts = Metrics()
    supervisor = Supervisor(
        room=Room(
            engine=FakeEngine(),
            modules=FakeModules(),
            volumes=Volumes(folder / "volumes", folder / "memory"),
            logs=LogFolders(folder / "logs"),
            log_slots=LogBudget(allowances, budget_bytes=1 << 50, file_bytes=1 << 20),
            back_off=BackOffSettings(),
            defaults=LimitDefaults(),
            metrics=counts,
        ),
        journals=Journals(folder / "journal", sync=lambda _: None),
        admission=Admission(PLENTY, default_memory_request_bytes=1 << 20, volume_bytes=lambda _: 0),
        max_workloads=WORKLOADS,
    )
    info = protocol.RunnerInfo(
        runner=name,
        node=f"node-of-{name}",
        address="127.0.0.1",
        instance=f"{os.getpid()}-{datetime.now(UTC).isoformat()}",
        wherry_version="0.1.0",
        engines=("simulated",),
        cpu_millicores=10**6,
        memory_bytes=1 << 50,
        max_workloads=WORKLOADS,
    )
    usage = Usage(running=lambda: (), executor_pid=lambda: None, workloads=lambda: 0, requested=lambda: (0, 0))
    condition = Condition(memory=(), disk=(), processes=(), images=list)
    app = api.application(supervisor, info, usage=usage, condition=condition, counts=counts)
    await serve(app, "127.0.0.1", port, tls.context)


async def main() -> None:
    """Serve all runners that were named, until killed."""
    folder, cert, key, ca = map(Path, sys.argv[1:5])
    tls = ServerTls(cert_file=cert, key_file=key, client_ca_file=ca)
    for each in sys.argv[5:]:
        name, _, port = each.partition("=")
        await run(folder / name, tls, name, int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
