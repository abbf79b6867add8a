"""Who gets what from a registry, by which credential, and who never sees one."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.pki import CertificateAuthority
from tests.runner import fake_registry as fake
from tests.runner.fake_registry import FakeRegistry
from tests.runner.module_room import OTHER, WASM, Room, image, secret, sha256
from wherry_runner import protocol
from wherry_runner.modules import authorization, transport
from wherry_runner.modules.errors import ModuleError, NeverPull, PullError
from wherry_runner.modules.hosts import RegistrySettings
from wherry_runner.modules.library import Modules

PASSWORD = "correct horse battery staple"
TOKEN = "identity-token-of-ada"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as started:
        yield started


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "modules")


@pytest.fixture(autouse=True)
def nothing_is_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[None]:
    """No credential and no token is in any log or on the disk, whatever a test does."""
    # What `app.py` does: these two log headers and whole URLs.
    for name in ("httpx", "httpcore"):
        caplog.set_level(logging.WARNING, logger=name)
    caplog.set_level(logging.DEBUG)
    yield
    secrets = (PASSWORD, TOKEN, base64.b64encode(f"ada:{PASSWORD}".encode()).decode(), "token-0")
    assert not any(word in caplog.text for word in secrets)
    for path in tmp_path.rglob("modules/**/*"):
        if path.is_file():
            assert not any(word.encode() in path.read_bytes() for word in secrets), path


def ada(
    registry: FakeRegistry, password: str = PASSWORD, *, token: str = "", path: str = ""
) -> protocol.RegistryCredential:
    """Ada's entry for a registry."""
    return secret(registry.address + path, "ada", password, token)


def fail(
    room: Room, reference: str, *credentials: protocol.RegistryCredential, policy: str = "IfNotPresent"
) -> ModuleError:
    error = room.fail(reference, policy, credentials=credentials)
    assert not any(word in f"{error.message} {error!r}" for word in (PASSWORD, TOKEN, "token-"))
    return error


# --- being let in -----------------------------------------------------------------------------------------------------


def test_with_a_password(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("tools/hello:v1", WASM)
    registry.lock("tools/hello", ada=PASSWORD)
    assert room.get(reference, credentials=[ada(registry)]).digest == sha256(WASM)
    challenged = [request for request in registry.asked if request.authorization is None]
    assert len(challenged) == 1, "asked once for the password, it is shown from then on"


@pytest.mark.parametrize("identity", [False, True])
def test_with_a_token_for_a_password_or_an_identity_token(room: Room, registry: FakeRegistry, identity: bool) -> None:
    registry.scheme = "bearer"
    registry.refresh_tokens[TOKEN] = "ada"
    reference = registry.push("tools/hello:v1", WASM)
    registry.lock("tools/hello", ada=PASSWORD)
    entry = ada(registry, "", token=TOKEN) if identity else ada(registry)
    assert room.get(reference, credentials=[entry]).digest == sha256(WASM)
    (asked,) = (request for request in registry.asked if request.path.startswith("/token"))
    if identity:
        assert asked.method == "POST"
        assert asked.authorization is None
        assert f"refresh_token={TOKEN}" in asked.body.decode()
        assert "grant_type=refresh_token" in asked.body.decode()
        assert "scope=repository%3Atools%2Fhello%3Apull" in asked.body.decode()
    else:
        assert asked.path == "/token?scope=repository%3Atools%2Fhello%3Apull&service=fake"


def test_public_registries_give_anybody_a_token(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("tools/hello:v1", WASM)
    registry.token = "for-anybody"
    room.get(reference)
    assert "GET /token?scope=repository%3Atools%2Fhello%3Apull&service=fake" in registry.requests
    assert registry.count("/token") == 1, "one token for the whole pull"


@pytest.mark.parametrize(
    "challenge",
    [
        'Basic realm="x", Bearer realm="{realm}",service="a b,c=\\"d\\""',
        "Bearer realm={realm}".replace("{realm}", '"{realm}"'),
        'Negotiate, BEARER Realm = "{realm}" , Service = x',
    ],
)
def test_challenges_of_all_kinds(room: Room, registry: FakeRegistry, challenge: str) -> None:
    registry.scheme = "bearer"
    registry.challenge = challenge.replace("{realm}", f"{registry.url}/token")
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)
    assert room.get(reference, credentials=[ada(registry)]).digest == sha256(WASM)


def test_several_entries_are_tried_in_their_order(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("team/tool:v1", WASM)
    registry.lock("team/tool", bob="b", ada=PASSWORD)
    entries = [
        ada(registry, path="/team"),
        secret(registry.address, "bob", "b"),
        secret(registry.address + "/team/tool", "x", "y"),
    ]
    room.get(reference, credentials=entries)
    tried = [
        base64.b64decode(value.split()[1]).decode().partition(":")[0] for value in registry.authorizations if value
    ]
    assert tried == ["x", "ada", "ada"], "the longest path first; who was let in goes on"
    message = fail(
        Room(room.folder.with_name("other")), reference, ada(registry, "no"), secret(registry.address, "bob", "no")
    ).message
    assert message.endswith("does not accept what the workload's pull secret says (2 credentials tried)")


def test_some_registries_say_of_what_is_private_that_it_is_not_there(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer("manifests/", fake.status(404))
    assert room.get(reference, credentials=[ada(registry, "old"), ada(registry)]).digest == sha256(WASM)


def test_only_entries_for_the_registry_are_shown(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)
    others = [
        secret("other.example", "ada", PASSWORD),
        secret("127.0.0.1", "ada", PASSWORD),
        secret(registry.address + "/tools", "ada", PASSWORD),
        secret("https://index.docker.io/v1/", "ada", PASSWORD),
    ]
    message = fail(room, reference, *others).message
    assert (
        "access denied (401): the repository does not exist, or it is private and no pull secret of the workload"
        in message
    )
    assert registry.authorizations == [None]


def test_a_public_module_needs_no_credential_though_there_is_one(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    room.get(reference, credentials=[ada(registry)])
    assert set(registry.authorizations) == {None}


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_a_wrong_password_is_not_tried_again(room: Room, registry: FakeRegistry, scheme: str) -> None:
    registry.scheme = scheme
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)
    error = fail(room, reference, ada(registry, "wrong"))
    assert isinstance(error, PullError)
    assert error.message == (
        f'failed to resolve reference "{reference}": access denied (401): the repository does not exist, or the registry '
        "does not accept what the workload's pull secret says"
    )
    assert room.waits == []
    assert len([value for value in registry.authorizations if value]) == 1


@pytest.mark.parametrize(
    ("challenge", "credential"),
    [
        ("Negotiate", PASSWORD),
        ('Digest realm="x", nonce="y"', PASSWORD),
        ("Bearer", PASSWORD),
        ("", PASSWORD),
        ('Basic realm="x"', ""),  # only an identity token
    ],
)
def test_ways_in_that_are_not_ours(room: Room, registry: FakeRegistry, challenge: str, credential: str) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)
    registry.challenge = challenge or " "
    assert "access denied (401)" in fail(room, reference, ada(registry, credential, token=TOKEN)).message
    assert set(registry.authorizations) == {None}


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_for_its_repository_and_its_credential(room: Room, registry: FakeRegistry) -> None:
    registry.scheme = "bearer"
    one, other = registry.push("one:v1", WASM), registry.push("other:v1", OTHER)
    for repository in ("one", "other"):
        registry.lock(repository, ada=PASSWORD, bob="b")
    bob = secret(registry.address, "bob", "b")

    async def work(modules: Modules) -> list[int]:
        counts = []
        for reference, entry in ((one, ada(registry)), (one, ada(registry)), (other, ada(registry)), (one, bob)):
            await modules.get(image(reference, "Always"), credentials=[entry])
            counts.append(registry.count("/token"))
        with pytest.raises(PullError):
            await modules.get(image(one, "Always"))
        registry.revoke_tokens()
        await modules.get(image(one, "Always"), credentials=[bob])
        counts.append(registry.count("/token"))
        return counts

    # Who has none asks for a token for anybody, which opens nothing.
    assert room.do(work) == [1, 1, 2, 3, 5]


def test_a_token_is_given_up_before_its_end() -> None:
    now = [0.0]

    async def work() -> None:
        settings = RegistrySettings()
        keeper = authorization.Authorizer(transport.Transport(settings), settings, clock=lambda: now[0])
        access = authorization.Access(host="a", base_url="https://a", repository="x")
        for number, (seconds, good) in enumerate([(300, 290), (1, 50), (0, 50), (10**9, 3590), ("x", 50), (True, 50)]):
            token, good_for = authorization._read_token(json.dumps({"token": "t", "expires_in": seconds}).encode(), "")
            assert (token, good_for) == ("t", good)
            keeper._kept[access] = (f"Bearer {number}", now[0] + good_for)
            now[0] += good - 1
            assert keeper.known(access) == f"Bearer {number}"
            now[0] += 1
            assert keeper.known(access) is None

    asyncio.run(work())


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"token": ""},
        {"token": 1},
        {"token": "a\nb"},
        {"token": "a b"},
        {"token": "\u00e9"},
        {"token": "x" * 70_000},
        {"access_token": None},
    ],
)
def test_a_token_service_that_gives_nonsense(room: Room, registry: FakeRegistry, answer: dict[str, Any]) -> None:
    registry.scheme = "bearer"
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)
    registry.token_answer = answer
    message = fail(room, reference, ada(registry)).message
    assert message.endswith(f"{registry.url}/token answered with something that is not a token")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (fake.status(404), "its token service, http://127.0.0.1:"),
        (fake.status(403), "access denied (403): the repository does not exist, or the registry does not accept"),
        (fake.status(418), "its token service answered 418"),
        (fake.html, "answered with something that is not a token"),
        (fake.body(b"[" * 10_000), "answered with something that is not a token"),
        (fake.body(b"x" * 300_000), "the token is larger than 262144 bytes"),
        (fake.bomb, "the token came compressed (gzip)"),
    ],
)
def test_a_token_service_that_doesn_t_work(room: Room, registry: FakeRegistry, fault: fake.Fault, message: str) -> None:
    registry.scheme = "bearer"
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)
    registry.answer("/token", fault)
    assert message in fail(room, reference, ada(registry)).message
    assert room.waits == []
    registry.answer("/token", fake.status(503), fake.truncated(3))
    assert room.get(reference, credentials=[ada(registry)]).digest == sha256(WASM)
    assert room.waits == [0.5, 1.0]


def test_an_identity_token_that_is_good_no_more(room: Room, registry: FakeRegistry) -> None:
    registry.scheme = "bearer"
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)
    assert "access denied (400)" in fail(room, reference, ada(registry, "", token=TOKEN)).message


# --- who never sees a credential --------------------------------------------------------------------------------------


def test_redirects_are_followed_without_credential_or_token(room: Room, registry: FakeRegistry) -> None:
    for number, scheme in enumerate(("basic", "bearer")):
        with FakeRegistry() as storage:
            registry.scheme = scheme
            name = f"hello{number}"
            reference = registry.push(f"{name}:v1", WASM)
            registry.lock(name, ada=PASSWORD)
            storage._content["bucket/1?signature=x"] = fake.Reply(body=WASM)
            storage.cookies = {"session": "1"}
            registry.answer("blobs/", fake.redirect(f"{storage.url}/v2/bucket/1?signature=x"))
            assert room.get(reference, credentials=[ada(registry)]).digest == sha256(WASM)
            assert storage.authorizations == [None]


def test_a_way_over_another_host_shows_it_nothing(room: Room, registry: FakeRegistry) -> None:
    with FakeRegistry() as other:
        reference = registry.push("hello:v1", WASM)
        registry.lock("hello", ada=PASSWORD)
        path = f"/v2/hello/blobs/{sha256(WASM)}"
        registry.answer("blobs/", fake.redirect(other.url + path))
        other.answer("blobs/", fake.redirect(registry.url + path))
        assert room.get(reference, credentials=[ada(registry)]).digest == sha256(WASM)
        assert other.authorizations == [None]
        assert registry.authorizations[-2:-1] == [None], (
            "on its way back it carries nothing; the registry asks for it itself"
        )


def test_a_host_that_is_redirected_to_may_ask_for_no_credential(room: Room, registry: FakeRegistry) -> None:
    with FakeRegistry() as thief:
        reference = registry.push("hello:v1", WASM)
        thief.lock("bucket")
        for challenge in ('Basic realm="x"', f'Bearer realm="{thief.url}/token"'):
            thief.challenge = challenge
            registry.answer("blobs/", fake.redirect(f"{thief.url}/v2/bucket/blobs/1"))
            assert "access denied (401)" in fail(room, reference, ada(registry)).message
        assert thief.authorizations == [None, None]


def test_a_token_service_that_redirects_gets_no_credential_on(room: Room, registry: FakeRegistry) -> None:
    registry.scheme = "bearer"
    registry.refresh_tokens[TOKEN] = "ada"
    with FakeRegistry() as thief:
        reference = registry.push("hello:v1", WASM)
        registry.lock("hello", ada=PASSWORD)
        registry.answer("/token", fake.redirect(f"{thief.url}/v2/x"))
        fail(room, reference, ada(registry))
        assert thief.authorizations == [None]
        registry.answer("/token", fake.redirect(f"{thief.url}/v2/x"))
        message = fail(room, reference, ada(registry, "", token=TOKEN)).message
        assert f"it redirects a request with a credential to {thief.url}/v2/x" in message
        assert len(thief.asked) == 1


def test_a_user_in_a_redirect_or_a_realm_is_not_shown(room: Room, registry: FakeRegistry) -> None:
    with FakeRegistry() as other:
        reference = registry.push("hello:v1", WASM)
        other._content["x"] = fake.Reply(body=WASM)
        registry.answer("blobs/", fake.redirect(f"http://ada:{'p' * 8}@{other.address}/v2/x"))
        room.get(reference)
        assert other.authorizations == [None]


@pytest.mark.parametrize("realm", ["http://tokens.example/token", "ftp://127.0.0.1/x", "/token", "http://[::1"])
def test_a_token_service_without_tls_is_not_asked(tmp_path: Path, realm: str) -> None:
    authority = CertificateAuthority(tmp_path / "pki", "ca")
    with FakeRegistry(tls=authority.issue("registry", ips=["127.0.0.1"], server=True)) as registry:
        registry.scheme = "bearer"
        registry.challenge = f'Bearer realm="{realm}"'
        reference = registry.push("hello:v1", WASM)
        registry.lock("hello", ada=PASSWORD)
        room = Room(tmp_path / "modules", hosts={"ca_files": {registry.address: authority.cert_file}})
        error = fail(room, reference, ada(registry))
        assert isinstance(error, PullError)
        assert (
            "for a token, which is not https" in error.message
            or "is no URL" in error.message
            or "denied" in error.message
        )
        assert set(registry.authorizations) == {None}


def test_a_token_service_on_another_host(tmp_path: Path) -> None:
    """As Docker Hub has it. Its certificate may be of the registry's own CA."""
    authority = CertificateAuthority(tmp_path / "pki", "ca")
    certificate = authority.issue("registry", ips=["127.0.0.1"], server=True)
    with FakeRegistry(tls=certificate) as registry, FakeRegistry(tls=certificate) as tokens:
        registry.scheme = "bearer"
        registry.realm = f"{tokens.url}/token"
        tokens.lock("hello", ada=PASSWORD)
        registry.lock("hello", ada=PASSWORD)
        registry._tokens = tokens._tokens
        reference = registry.push("hello:v1", WASM)
        room = Room(tmp_path / "modules", hosts={"ca_files": {registry.address: authority.cert_file}})
        assert room.get(reference, credentials=[ada(registry)]).digest == sha256(WASM)
        assert len(tokens.asked) == 1


def test_cookies_are_not_kept(room: Room, registry: FakeRegistry) -> None:
    """A session that one workload's credential opened would serve the next one without."""
    registry.cookies = {"sid": "of-ada"}
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD)

    async def work(modules: Modules) -> None:
        await modules.get(image(reference), credentials=[ada(registry)])
        with pytest.raises(PullError):
            await modules.get(image(reference, "Always"))

    room.do(work)
    assert {request.cookie for request in registry.asked} == {None}


def test_a_mirror_gets_its_own_credentials_only(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.push("library/hello:latest", WASM)
    room = Room(tmp_path / "modules", hosts={"mirrors": {"docker.io": f"{registry.url}/"}})
    assert room.get("hello").name == "hello"
    registry.lock("library/hello", ada=PASSWORD)
    room.folder = tmp_path / "other"
    assert "no pull secret" in fail(room, "hello", secret("https://index.docker.io/v1/", "ada", PASSWORD)).message
    assert set(registry.authorizations) == {None}
    assert room.get("hello", credentials=[ada(registry, path="/library")]).name == "hello"


# --- what is here already (KEP-2535) ----------------------------------------------------------------------------------


@pytest.fixture
def private(registry: FakeRegistry, room: Room) -> str:
    """A private module, pulled by Ada; each use of the room is another life of the runner."""
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD, bob="b")
    room.get(reference, credentials=[ada(registry)])
    registry.asked.clear()
    return reference


@pytest.mark.parametrize("policy", ["IfNotPresent", "Never"])
def test_who_pulled_it_isn_t_asked_again(room: Room, registry: FakeRegistry, private: str, policy: str) -> None:
    others = [secret(registry.address, "x", "y"), ada(registry)]
    assert room.get(private, policy, credentials=others).digest == sha256(WASM)
    assert registry.asked == []


@pytest.mark.parametrize("password", ["", "wrong"])
def test_who_may_not_pull_it_doesn_t_get_it(room: Room, registry: FakeRegistry, private: str, password: str) -> None:
    entries = [secret(registry.address, "ada", password)] if password else []
    assert "access denied (401)" in fail(room, private, *entries).message
    assert registry.count("HEAD ") == len(registry.asked) >= 1
    error = fail(room, private, *entries, policy="Never")
    assert isinstance(error, NeverPull)
    assert error.message == f'Container image "{private}" is not present with pull policy of Never', (
        "nor learns that it is here"
    )


def test_who_may_pull_it_too_shows_it_once(room: Room, registry: FakeRegistry, private: str) -> None:
    bob = secret(registry.address, "bob", "b")
    assert isinstance(fail(room, private, bob, policy="Never"), NeverPull)
    assert room.get(private, credentials=[bob]).digest == sha256(WASM)
    assert {request.method for request in registry.asked} == {"HEAD"}, "not a byte is fetched"
    registry.asked.clear()
    for entry in (bob, ada(registry)):
        assert room.get(private, "Never", credentials=[entry]).digest == sha256(WASM)
    assert registry.asked == []


def test_what_became_public_is_for_all(room: Room, registry: FakeRegistry, private: str) -> None:
    registry._locks.clear()
    assert room.get(private).digest == sha256(WASM)
    registry.asked.clear()
    assert room.get(private, "Never").digest == room.get(private, credentials=[ada(registry, "x")]).digest
    assert registry.asked == []


def test_what_is_another_thing_by_now_is_pulled(room: Room, registry: FakeRegistry, private: str) -> None:
    registry.push("hello:v1", OTHER)
    assert room.get(private, credentials=[ada(registry)]).digest == sha256(WASM), "not asked for"
    assert room.get(private, credentials=[secret(registry.address, "bob", "b")]).digest == sha256(OTHER)
    assert isinstance(fail(room, private, ada(registry), policy="Never"), NeverPull), (
        "of this one, Ada has shown nothing"
    )


def test_by_another_name_it_is_not_given_either(room: Room, registry: FakeRegistry, private: str) -> None:
    digest = sha256(registry.content("hello/manifests/v1"))
    by_digest = f"{registry.address}/hello@{digest}"
    assert "access denied (401)" in fail(room, by_digest).message
    assert room.get(by_digest, credentials=[ada(registry)]).digest == sha256(WASM)
    assert registry.count("/blobs/") == 0, "the same manifest"


def test_a_registry_that_is_away_lets_nobody_new_in(room: Room, registry: FakeRegistry, private: str) -> None:
    registry.answer("manifests/", *[fake.status(503)] * 6)
    assert "503 Service Unavailable (3 attempts)" in fail(room, private, secret(registry.address, "bob", "b")).message
    assert room.get(private, credentials=[ada(registry)]).digest == sha256(WASM)


def test_at_the_same_time_each_is_let_in_by_themselves(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.lock("hello", ada=PASSWORD, bob="b")
    entries = [[ada(registry)], [secret(registry.address, "bob", "b")], [], [ada(registry, "wrong")]] * 3

    async def work(modules: Modules) -> list[Any]:
        waiting = [modules.get(image(reference), credentials=own) for own in entries]
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = [isinstance(outcome, Exception) for outcome in room.do(work)]
    assert found == [False, False, True, True] * 3
    assert room.get(reference, "Never", credentials=[ada(registry)]).digest == sha256(WASM)
    assert room.get(reference, "Never", credentials=entries[1]).digest == sha256(WASM)
