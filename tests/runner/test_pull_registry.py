"""Pulls from a real registry (CNCF distribution), of what real clients pushed: plain, and with TLS and passwords."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import oras.client
import pytest

from tests.cluster.images import archive
from tests.cluster.images.push import push as push_image
from tests.cluster.pki import CertificateAuthority
from tests.cluster.registry import Registry
from tests.runner.module_room import WASM, Room, image, secret, sha256
from wherry_runner.modules.errors import NeverPull, PullError
from wherry_runner.modules.library import Modules

USERS = {"ada": "correct horse battery staple", "bob": "b"}


def push(registry: Registry, folder: Path, name: str, layer_type: str, config_type: str = "") -> str:
    """Push a module as `oras push` does; its reference."""
    (folder / "module.wasm").write_bytes(WASM)
    (folder / "config.json").write_text("{}")
    client = oras.client.OrasClient(
        hostname=registry.address,
        insecure=registry.tls is None,
        tls_verify=str(registry.ca_file) if registry.ca_file else False,
        auth_backend="basic" if registry.users else "token",
    )
    if registry.users:
        client.auth.set_basic_auth("ada", USERS["ada"])
    with contextlib.redirect_stdout(io.StringIO()):
        client.push(
            target=f"{registry.address}/{name}",
            files=[f"module.wasm:{layer_type}"],
            manifest_config=f"config.json:{config_type}" if config_type else None,
            disable_path_validation=True,
        )
    return f"{registry.address}/{name}"


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "store")


@pytest.fixture(scope="module")
def private(registry: Registry) -> Iterator[Registry]:
    """A registry with TLS and passwords. (The other one has it built, visibly.)"""
    folder = Path(tempfile.mkdtemp(prefix="wherry-registry-"))
    authority = CertificateAuthority(folder / "pki", "ca")
    certificate = authority.issue("registry", ips=["127.0.0.1"], server=True)
    try:
        with Registry(folder, tls=certificate, htpasswd=USERS, ca_file=authority.cert_file) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "layer_type", "config_type", "krustlet"),
    [
        ("tools/cncf:v1", "application/wasm", "application/vnd.wasm.config.v0+json", False),
        ("krustlet:v1", "application/vnd.wasm.content.layer.v1+wasm", "application/vnd.wasm.config.v1+json", True),
        ("plain:v1", "application/wasm", "", False),
    ],
)
def test_what_was_pushed_is_pulled(
    registry: Registry,
    room: Room,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    layer_type: str,
    config_type: str,
    krustlet: bool,
) -> None:
    monkeypatch.chdir(tmp_path)  # oras names layers by their paths
    reference = push(registry, tmp_path, name, layer_type, config_type)
    module = room.get(reference)
    assert module.digest == sha256(WASM)
    assert module.packed_by_krustlet is krustlet
    assert module.image_digest.startswith("sha256:")
    assert room.get(reference, "Always") == module
    by_digest = Room(tmp_path / "other").get(f"{reference.rpartition(':')[0]}@{module.image_digest}")
    assert by_digest.digest == module.digest


def test_a_container_image_with_a_module_in_it(registry: Registry, room: Room, tmp_path: Path) -> None:
    (tmp_path / "app.wasm").write_bytes(WASM)
    archive.tar(tmp_path / "layer.tar", {"srv/app.wasm": tmp_path / "app.wasm", "etc/copy": tmp_path / "app.wasm"})
    reference = f"{registry.address}/image:v1"
    config = {"Entrypoint": ["app.wasm", "serve"], "WorkingDir": "/srv", "Cmd": ["--fast"]}
    archive.write_layout(tmp_path / "layout", reference, tmp_path / "layer.tar", config)
    push_image(tmp_path / "layout", reference, lambda address, timeout: socket.create_connection(address, timeout))
    module = room.get(reference)
    assert (module.digest, module.name) == ("sha256:" + hashlib.sha256(WASM).hexdigest(), "app.wasm")
    assert (module.entrypoint_args, module.image_args) == (("serve",), ("--fast",))


def test_what_is_not_there(registry: Registry, room: Room) -> None:
    reference = f"{registry.address}/nothing:v9"
    error = room.fail(reference)
    assert isinstance(error, PullError)
    assert error.message == (
        f'failed to resolve reference "{reference}": not found (404): the registry has no such repository or tag'
    )


def test_with_tls_and_a_password(private: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reference = push(private, tmp_path, "tools/private:v1", "application/wasm")
    assert private.ca_file is not None
    room = Room(tmp_path / "store", hosts={"ca_files": {private.address: private.ca_file}})
    ada = secret(f"https://{private.address}/v2/", "ada", USERS["ada"])
    bob = secret(f"{private.address}/tools", "bob", USERS["bob"])
    assert "no pull secret of the workload has an entry for it" in room.fail(reference).message
    wrong = [secret(private.address, "ada", "wrong"), secret(private.address, "nobody", "x")]
    assert "(2 credentials tried)" in room.fail(reference, credentials=wrong).message
    module = room.get(reference, credentials=[ada])
    assert module.digest == sha256(WASM)
    # It is here, and still not for everybody.
    assert room.get(reference, "Never", credentials=[ada]) == module
    assert isinstance(room.fail(reference, "Never", credentials=[bob]), NeverPull)
    assert "access denied (401)" in room.fail(reference).message
    assert room.get(reference, credentials=[bob]) == module
    assert room.get(reference, "Never", credentials=[bob]) == module
    assert room.get(reference, "Always", credentials=[wrong[0], ada]) == module


def test_a_registry_that_isn_t_trusted_gets_no_password(private: Registry, tmp_path: Path) -> None:
    ada = secret(private.address, "ada", USERS["ada"])
    before = private.log.read_text()
    plain = Room(tmp_path / "plain").fail(f"{private.address}/tools/private:v1", credentials=[ada])
    # Loopback is asked by plain HTTP, which this one doesn't speak.
    assert "the registry answered 400 Bad Request" in plain.message
    other = CertificateAuthority(tmp_path / "pki", "another")
    room = Room(tmp_path / "store", hosts={"ca_files": {private.address: other.cert_file}})
    message = room.fail(f"{private.address}/tools/private:v1", credentials=[ada]).message
    assert f"the certificate of {private.address} is not trusted: " in message
    assert message.endswith("; give its CA to the runner")
    assert "ada" not in private.log.read_text().removeprefix(before)


def test_a_ca_that_is_renewed_is_taken_up(private: Registry, tmp_path: Path) -> None:
    assert private.ca_file is not None
    file = tmp_path / "ca.crt"
    file.write_text("not a certificate")
    room = Room(tmp_path / "store", hosts={"ca_files": {private.address: file}})
    message = room.fail(f"{private.address}/nothing:v1").message
    assert f"the CA file for {private.address}, {file}, can't be used: " in message

    async def work(modules: Modules) -> None:
        other = CertificateAuthority(tmp_path / "pki", "another")
        for ca_file, said in ((other.cert_file, "is not trusted"), (private.ca_file, "access denied (401)")):
            assert ca_file is not None
            file.write_bytes(ca_file.read_bytes())
            with pytest.raises(PullError, match=said.replace("(", r"\(").replace(")", r"\)")):
                await modules.get(image(f"{private.address}/nothing:v1"))

    room.do(work)
