"""Streams a blob into a file, its size, form and digest checked on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import httpx

from wherry_runner.modules import sniff
from wherry_runner.modules.errors import PullError
from wherry_runner.modules.manifest import NotAModule
from wherry_runner.modules.progress import OnBytes
from wherry_runner.modules.store import Unfinished
from wherry_runner.modules.threads import in_thread
from wherry_runner.modules.transport import Transient

_BATCH_BYTES = 1 << 20
"""Hashed and written at once, in a thread: a disk may keep a write waiting for seconds."""

CheckHead = Callable[[bytes], None]
"""Looks at the first bytes, at least 8 if there are so many. Raises NotAModule."""


async def stream(
    response: httpx.Response,
    file: Unfinished,
    *,
    digest: str,
    what: str,
    size: int | None = None,
    most: int,
    check_head: CheckHead | None = None,
    on_bytes: OnBytes = lambda done, total: None,
) -> int:
    """Write the body to a file; its size. Raises Transient, PullError, NotAModule, OSError.

    `digest`: what it must hash to. `what`: it is, for messages. `size`: what it must have, if that is known. `most`: bytes that
    are taken if not.
    """
    announced = response.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit():
        if size is not None and int(announced[:20]) > size:
            raise PullError(f"{what} is longer than the {size} bytes its manifest gives it")
        if size is None and int(announced[:20]) > most:
            raise NotAModule(f"has {int(announced[:20])} bytes; this runner takes modules of at most {most}")
    total = size if size is not None else int(announced[:20]) if announced.isdigit() else 0
    hasher = hashlib.sha256()
    batch = bytearray()
    head = b""
    done = 0

    def write() -> None:
        hasher.update(batch)
        file.stream.write(batch)

    on_bytes(0, total)
    try:
        # Raw: a digest is that of the bytes on the wire, and no Content-Encoding was asked for.
        async for chunk in response.aiter_raw():
            done += len(chunk)
            if size is not None and done > size:
                raise PullError(f"{what} is longer than the {size} bytes its manifest gives it")
            if size is None and done > most:
                raise NotAModule(f"has more than {most} bytes, which is as much as this runner takes")
            batch += chunk
            if len(head) < sniff.HEAD_BYTES:
                head = (head + chunk)[: sniff.HEAD_BYTES]
                if check_head is not None and len(head) >= 8:
                    check_head(head)
            if len(batch) >= _BATCH_BYTES:
                await in_thread(write)
                batch = bytearray()
            if done != total:
                on_bytes(done, total)
    except httpx.RemoteProtocolError as error:  # the connection was closed before the announced length
        raise Transient(f"{what} ended after {done} of {total or 'unknown'} bytes") from error
    await in_thread(write)
    if size is not None and done != size:
        raise Transient(f"{what} ended after {done} of {size} bytes")
    if check_head is not None:
        check_head(head)
    found = "sha256:" + hasher.hexdigest()
    if found != digest:
        raise digest_mismatch(what, got=found, expected=digest)
    on_bytes(done, total or done)
    return done


def check_module(head: bytes, *, text_too: bool = False) -> None:
    """Raises NotAModule as soon as the first bytes show that something isn't a module."""
    match sniff.sniff(head):
        case sniff.Form.TEXT if not text_too:
            raise NotAModule("is WebAssembly in its text format; a registry's layer must be binary")
        case sniff.Form.NONE:
            raise NotAModule(f"is not WebAssembly: {sniff.beginning(head)}; a module begins with \\0asm")
        case sniff.Form.UNKNOWN_VERSION:
            raise NotAModule(f"is WebAssembly of a version that this runner doesn't know ({head[4:8].hex()})")
        case _:
            return


def digest_mismatch(what: str, *, got: str, expected: str) -> PullError:
    """Something is not what it was said to be."""
    return PullError(f"digest mismatch: {got} came as {what}, which has {expected}")
