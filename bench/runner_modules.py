"""The first start of a large module from a registry: fetch, compile, run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import urllib.request
from pathlib import Path

from bench import wasmtime_cli
from bench.scene import Scene, first_record_ns, log_of
from bench.table import Report, p50
from bench.wasmtime_cli import Run
from tests.cluster.registry import Registry
from tests.support import images

ROUNDS = 3


async def measure(scene: Scene, report: Report) -> None:
    """Ours, and the peer's three steps one after the other, alternating."""
    wasm = _large(scene.folder)
    data = wasm.read_bytes()
    report.figure("size of the large module", len(data) / 1e6, "MB")
    registry = Registry(scene.folder / "registry")
    registry.start()
    try:
        reference = images.push(registry.address, "large", [wasm])
        blob = f"http://{registry.address}/v2/large/blobs/sha256:{hashlib.sha256(data).hexdigest()}"
        ours, peer = [], []
        for number in range(ROUNDS):
            async with scene.runner("--insecure-registry", registry.address) as (process, api):
                began = time.time_ns()
                await api.put_image("large", reference)
                # A second of compiling: looking must not cost its CPU.
                written = await first_record_ns(log_of(process, "large"), look_every=0.002)
                ours.append((written - began) / 1e9)
            peer.append(_by_hand(scene.folder, blob, number))
    finally:
        registry.close()
    report.ratio("first start of the large module from a registry, p50", p50(ours), p50(peer), "s", at_most=1.2)


def _by_hand(folder: Path, blob: str, number: int) -> float:
    """Fetch, `wasmtime compile`, `wasmtime run` to the first byte; the seconds of it all."""
    fetched, compiled = folder / f"fetched-{number}.wasm", folder / f"fetched-{number}.cwasm"
    began = time.perf_counter()
    with urllib.request.urlopen(blob) as answer:
        fetched.write_bytes(answer.read())
    wasmtime_cli.compile_module(fetched, compiled)
    run = Run(compiled)
    run.first_byte()
    took = time.perf_counter() - began
    run.kill()
    return took


def _large(folder: Path) -> Path:
    output = folder / "large-source.wasm"
    environment = {**os.environ, "GOOS": "wasip1", "GOARCH": "wasm"}
    subprocess.run(["go", "build", "-o", output, "."], cwd=Path(__file__).parent / "large", env=environment, check=True)
    return output
