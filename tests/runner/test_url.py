"""Modules from https addresses, against a real server (aiohttp) with a certificate of a CA of its own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cluster.pki import CertificateAuthority
from tests.guests import wat
from tests.runner.fake_registry import FakeRegistry
from tests.runner.harness import until
from tests.runner.module_room import OTHER, WASM, Room, sha256
from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule
from wherry_runner.modules.errors import ModuleError, NeverPull, NotRunnable, PullError
from wherry_runner.modules.library import Modules, Progress, Pulling

KIB = 1 << 10


@dataclass
class Server:
    """Serves what it is given, and sends to where it is told."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.asked.append(request.path_qs)
        self.headers.append(dict(request.headers))
        if codes := self.statuses.get(path):
            return web.Response(status=codes.pop(0))
        if target := self.redirects.get(path):
            raise web.HTTPFound(target)
        if path == "/hanging":
            await self.hold.wait()
        if path not in self.files:
            raise web.HTTPNotFound
        if path.startswith(("/endless", "/streamed")):
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(self.files[path])
            while path == "/endless":
                await response.write(bytes(64 * KIB))
            return response
        return web.Response(body=self.files[path], content_type="text/html")


@asynccontextmanager
async def serving(context: ssl.SSLContext | None) -> Any:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.url = f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.hold.set()
        await runner.cleanup()


class Scene:
    """A server with TLS, one without, and a library that trusts the first one's CA."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        authority = CertificateAuthority(folder / "pki", "ca")
        certificate = authority.issue("server", ips=["127.0.0.1"], server=True)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificate.cert, certificate.key)
        self.ca_file = authority.cert_file
        self.folder = folder / "modules"
        self.settings = settings
        self.trusts = True
        self.lists_as_insecure = False
        self.waits: list[float] = []

    def play(self, work: Any) -> Any:
        """`work(get, server, plain)`, where `get` fetches a module."""

        async def whole() -> Any:
            async with serving(self.context) as server, serving(None) as plain:
                hosts = {
                    "ca_files": {server.host: self.ca_file} if self.trusts else {},
                    "insecure_registries": frozenset({plain.host} if self.lists_as_insecure else ()),
                }
                room = Room(self.folder, hosts=hosts, **self.settings)

                async def sleep(seconds: float) -> None:
                    self.waits.append(seconds)

                modules = Modules(self.folder, engine=room.engine, pull=room.pull, metrics=room.counted, sleep=sleep)

                async def get(
                    url: str, data: bytes = WASM, policy: str = "IfNotPresent", **more: Any
                ) -> CompiledModule:
                    module = protocol.UrlModule(
                        url=url,
                        sha256=sha256(data).removeprefix("sha256:"),
                        pull_policy=protocol.PullPolicy(policy),
                    )
                    return await modules.get(module, **more)

                try:
                    return await work(get, server, plain)
                finally:
                    await modules.close()

        return asyncio.run(whole())

    def fail(
        self,
        url: str,
        *,
        files: dict[str, bytes] | None = None,
        data: bytes = WASM,
        redirects: dict[str, str] | None = None,
    ) -> ModuleError:
        """Why a module is not given. `SERVER` and `PLAIN` in addresses are the two servers."""

        async def work(get: Any, server: Server, plain: Server) -> ModuleError:
            def filled(text: str) -> str:
                return text.replace("SERVER", server.host).replace("PLAIN", plain.host)

            server.files = files or {}
            plain.files = {"/x.wasm": WASM}
            server.redirects = {path: filled(target) for path, target in (redirects or {}).items()}
            with pytest.raises(ModuleError) as error:
                await get(filled(url), data)
            assert plain.asked == [] or self.lists_as_insecure
            assert list((self.folder / "tmp").iterdir()) == []
            return error.value

        error: ModuleError = self.play(work)
        return error


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    yield Scene(tmp_path)


def test_a_module_is_fetched_and_kept(scene: Scene) -> None:
    async def work(get: Any, server: Server, plain: Server) -> None:
        server.files = {"/tools/hello.wasm": WASM, "/streamed": OTHER}
        url = f"{server.url}/tools/hello.wasm?signature=hidden#part"
        with pytest.raises(NeverPull) as error:
            await get(url, policy="Never")
        assert error.value.reason == "ErrImageNeverPull"
        assert error.value.message == f'Module "{server.url}/tools/hello.wasm" is not present with pull policy of Never'
        seen: list[Progress] = []
        module = await get(url, on_progress=seen.append)
        assert (module.digest, module.name, module.image_digest) == (sha256(WASM), "hello.wasm", "")
        assert seen[0] == Pulling(done_bytes=0, total_bytes=len(WASM))
        assert seen[-2] == Pulling(done_bytes=len(WASM), total_bytes=len(WASM))
        assert server.asked == ["/tools/hello.wasm?signature=hidden"]
        for policy in ("IfNotPresent", "Always", "Never"):
            assert (await get(url, policy=policy)).path == module.path
        assert (await get("https://elsewhere.example/renamed")).name == "renamed", "its digest says what it is"
        assert len(server.asked) == 1
        seen.clear()
        await get(f"{server.url}/streamed", OTHER, on_progress=seen.append)
        assert seen[0] == Pulling(done_bytes=0, total_bytes=0), "its length is not known"
        assert seen[-2] == Pulling(done_bytes=len(OTHER), total_bytes=len(OTHER))
        assert not any("authorization" in map(str.lower, headers) for headers in server.headers)

    scene.play(work)


def test_text_is_taken_as_inline(scene: Scene) -> None:
    async def work(get: Any, server: Server, plain: Server) -> None:
        text = wat.component().encode()
        server.files = {"/x.wat": text}
        assert (await get(f"{server.url}/x.wat", text)).digest == sha256(text)

    scene.play(work)


def test_many_waiters_fetch_once(scene: Scene) -> None:
    async def work(get: Any, server: Server, plain: Server) -> None:
        server.files = {"/hanging": WASM}
        waiting = [asyncio.create_task(get(f"{server.url}/hanging")) for _ in range(5)]
        await until(lambda: len(server.asked) == 1)
        waiting[0].cancel()
        server.hold.set()
        first, *others = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert [module.digest for module in others if isinstance(module, CompiledModule)] == [sha256(WASM)] * 4
        assert len(server.asked) == 1

    scene.play(work)


def test_what_may_mend_is_tried_again(scene: Scene) -> None:
    async def work(get: Any, server: Server, plain: Server) -> None:
        server.files = {"/x.wasm": WASM}
        server.statuses = {"/x.wasm": [503, 429]}
        await get(f"{server.url}/x.wasm")
        assert scene.waits == [0.5, 1.0]
        server.files["/y.wasm"] = OTHER
        server.statuses = {"/y.wasm": [500] * 3}
        with pytest.raises(PullError) as error:
            await get(f"{server.url}/y.wasm", OTHER)
        assert error.value.message == (
            f'failed to fetch "{server.url}/y.wasm": the server answered 500 Internal Server Error (3 attempts)'
        )

    scene.play(work)


def test_a_module_that_is_damaged_on_disk_is_fetched_anew(scene: Scene) -> None:
    async def work(get: Any, server: Server, plain: Server) -> None:
        server.files = {"/x.wasm": WASM}
        module = await get(f"{server.url}/x.wasm")
        (scene.folder / "blobs" / "sha256" / module.digest.removeprefix("sha256:")).unlink()
        assert (await get(f"{server.url}/x.wasm")).digest == module.digest
        assert len(server.asked) == 2

    scene.play(work)


def test_what_a_registry_gave_is_not_given_to_who_names_an_address(scene: Scene) -> None:
    with FakeRegistry() as registry:
        Room(scene.folder).get(registry.push("private:v1", WASM))
    assert "not found (404)" in scene.fail("https://SERVER/guessed.wasm").message


# --- redirects --------------------------------------------------------------------------------------------------------


def test_redirects_are_followed(scene: Scene) -> None:
    async def work(get: Any, server: Server, plain: Server) -> None:
        server.files = {"/x.wasm": WASM}
        server.redirects = {
            "/1": "/2",
            "/2": f"{server.url}/3?a=b",
            "/3": "//" + server.host + "/4",
            "/4": "5",
            "/5": "/x.wasm",
        }
        assert (await get(f"{server.url}/1")).name == "1"

    scene.play(work)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://PLAIN/x.wasm", "it redirects to http://127.0.0.1:"),
        ("ftp://PLAIN/x.wasm", "which is not followed: not https"),
        ("file:///etc/passwd", "it redirects to file:///etc/passwd, which is not followed: not https"),
        ("/from", "it redirects more than 5 times"),
    ],
)
@pytest.mark.parametrize("insecure", [False, True])
def test_redirects_that_are_not_followed(scene: Scene, target: str, message: str, insecure: bool) -> None:
    scene.lists_as_insecure = insecure  # from https to http never, whatever is listed
    error = scene.fail("https://SERVER/from", redirects={"/from": target})
    assert isinstance(error, PullError)
    assert message in error.message
    assert error.message.startswith('failed to fetch "https://127.0.0.1:')


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://PLAIN/x.wasm", "the module's url begins with http://; it must be https:// with a host"),
        ("ftp://SERVER/x", "the module's url begins with ftp://; it must be https://"),
        ("https:///x", "the module's url begins with https://; it must be https:// with a host"),
        ("SERVER/x.wasm", "the module's url"),
        ("https://ada:pw@SERVER/x", "the module's url has a user or a password in it, which would be shown to all who"),
        ("https://SERVER:x/", "the module's url can't be read: Invalid port"),
        ("https://\x00/", "the module's url can't be read: "),
    ],
)
def test_addresses_that_are_none(scene: Scene, url: str, message: str) -> None:
    error = scene.fail(url)
    assert (error.reason, error.retry) == ("CreateContainerConfigError", False)
    assert error.message.startswith(message), error.message
    assert "pw" not in error.message


def test_plain_http_is_for_the_listed(scene: Scene) -> None:
    scene.lists_as_insecure = True

    async def work(get: Any, server: Server, plain: Server) -> None:
        plain.files = {"/x.wasm": WASM}
        assert (await get(f"{plain.url}/x.wasm")).digest == sha256(WASM)

    scene.play(work)


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("x.wasm", OTHER, f"digest mismatch: {sha256(OTHER)} came as the module, which has {sha256(WASM)}"),
        ("missing", b"", "not found (404)"),
        ("x.html", b"<!doctype html>", "is not WebAssembly: it begins with '<!doctype html>', HTML or XML"),
        ("x.so", b"\x7fELF" + bytes(100), "native code (ELF): precompiled modules are never taken"),
        ("x", b"", "is not WebAssembly: it is empty"),
        (
            "big",
            WASM + bytes(200 * KIB),
            f"has {len(WASM) + 200 * KIB} bytes; this runner takes modules of at most {100 * KIB}",
        ),
        (
            "streamed-big",
            WASM + bytes(200 * KIB),
            f"has more than {100 * KIB} bytes, which is as much as this runner takes",
        ),
        ("endless", WASM, f"has more than {100 * KIB} bytes, which is as much as this runner takes"),
    ],
)
def test_what_is_not_the_module(tmp_path: Path, path: str, data: bytes, message: str) -> None:
    scene = Scene(tmp_path, max_module_bytes=100 * KIB)
    error = scene.fail(f"https://SERVER/{path}?signature=hidden", files={f"/{path}": data} if path != "missing" else {})
    assert error.reason == "ErrImagePull"
    assert isinstance(error, (PullError, NotRunnable))
    assert message in error.message
    assert "hidden" not in error.message
    assert list((scene.folder / "blobs" / "sha256").iterdir()) == []


def test_who_can_t_be_trusted_is_not_asked(scene: Scene) -> None:
    scene.trusts = False
    message = scene.fail("https://SERVER/x.wasm").message
    assert "the certificate of 127.0.0.1:" in message
    assert "is not trusted: " in message


def test_a_fetch_has_an_end(tmp_path: Path) -> None:
    scene = Scene(tmp_path, total_seconds=0.2)
    assert "it took more than 0 s" in scene.fail("https://SERVER/hanging", files={"/hanging": WASM}).message


def test_nobody_is_there(scene: Scene) -> None:
    assert "can't reach 127.0.0.1:1: " in scene.fail("https://127.0.0.1:1/x").message
