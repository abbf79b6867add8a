"""The installation's CA: what it issues is taken by both sides, and by nobody for more than it is for; and how it ages."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from wherry_operator import authority
from wherry_operator.authority import CA_LIFETIME, LIFETIME, TRUSTED_FIRST, Authority, Pair, Subject
from wherry_operator.settings import ClientTls
from wherry_operator.tls import RunnerTls
from wherry_runner.serving.tls import Role, ServerTls, role

RUNNER = Subject(common_name="wherry-runner", dns_name="wherry-runner")
OPERATOR = Subject(common_name="wherry-operator")
NOW = datetime.now(UTC).replace(microsecond=0)  # TLS looks at the real clock
DAY = timedelta(days=1)


def write(folder: Path, pair: Pair, trusted: bytes) -> tuple[Path, Path, Path]:
    """A Secret's files: ca.crt, tls.crt, tls.key."""
    folder.mkdir()
    files = (folder / "ca.crt", folder / "tls.crt", folder / "tls.key")
    for path, content in zip(files, (trusted, pair.certificate, pair.key), strict=True):
        path.write_bytes(content)
    return files


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Both ends of a connection, with nothing between them; returns the server's. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = client.wrap_bio(to_client, to_server, server_hostname=name)
    here = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (there, here, there, here):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    here.write(b"hello")
    assert there.read() == b"hello"
    return here


def met(folder: Path, runner: Authority, operator: Authority, *, subject: Subject = OPERATOR) -> Role | None:
    """The role that a client gets of a runner, when each side has what its CA has given it. Raises ssl.SSLError."""
    folder.mkdir()
    ca, cert, key = write(folder / "runner", authority.issue(runner, RUNNER, NOW), runner.trusted)
    server = ServerTls(cert_file=cert, key_file=key, client_ca_file=ca)
    ca, cert, key = write(folder / "client", authority.issue(operator, subject, NOW), operator.trusted)
    client = RunnerTls(ClientTls(ca_file=ca, cert_file=cert, key_file=key))
    return role(handshake(server.context, client.context(), client.server_name).getpeercert())


def test_operator_and_scraper_are_known_by_what_it_issues(tmp_path: Path) -> None:
    ours = authority.found(NOW)
    assert met(tmp_path / "operator", ours, ours) is Role.OPERATOR
    metrics = Subject(common_name="wherry-metrics")
    assert met(tmp_path / "metrics", ours, ours, subject=metrics) is Role.METRICS
    assert met(tmp_path / "other", ours, ours, subject=Subject(common_name="somebody")) is None


def test_a_runners_key_opens_no_other_runner(tmp_path: Path) -> None:
    ours = authority.found(NOW)
    with pytest.raises(ssl.SSLError, match="certificate purpose"):
        met(tmp_path / "intruder", ours, ours, subject=RUNNER)


def test_another_installations_operator_is_a_stranger(tmp_path: Path) -> None:
    ours, theirs = authority.found(NOW), authority.found(NOW)
    with pytest.raises(ssl.SSLError, match="verify failed"):
        met(tmp_path / "strangers", ours, theirs)


def test_the_service_of_the_log_api_is_verified_strictly(tmp_path: Path) -> None:
    """As Go does it, and Python from 3.13 on."""
    ours = authority.found(NOW)
    host = f"wherry-operator.{'n' * 63}.svc"
    api = authority.issue(ours, Subject(common_name="wherry-api", dns_name=host), NOW)
    ca, cert, key = write(tmp_path / "api", api, ours.trusted)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(ca)
    handshake(server, client, host)


def test_what_is_kept_of_it_is_the_whole_of_it() -> None:
    made = authority.found(NOW)
    for days in range(0, 2 * CA_LIFETIME.days, 90):
        assert authority.from_data(authority.to_data(made)) == made
        made = authority.aged(made, NOW + days * DAY)


@pytest.mark.parametrize("key", ["tls.crt", "tls.key", "ca.crt"])
def test_what_is_not_whole_is_none(key: str) -> None:
    data = authority.to_data(authority.found(NOW))
    other = authority.to_data(authority.found(NOW))
    assert authority.from_data({name: value for name, value in data.items() if name != key}) is None
    assert authority.from_data({**data, key: b"nonsense"}) is None
    if key != "ca.crt":
        assert authority.from_data({**data, key: other[key]}) is None


def test_a_ca_is_trusted_before_it_signs_and_until_it_ends(tmp_path: Path) -> None:
    first = authority.found(NOW)
    at = NOW + CA_LIFETIME * 0.79
    assert authority.aged(first, at) == first
    at = NOW + CA_LIFETIME * 0.81
    announced = authority.aged(first, at)
    assert (announced.signing, announced.retired) == (first.signing, ())
    assert announced.successor is not None
    assert authority.aged(announced, at + TRUSTED_FIRST - timedelta(seconds=1)) == announced
    changed = authority.aged(announced, at + TRUSTED_FIRST)
    assert changed.signing == announced.successor
    assert (changed.successor, changed.retired) == (None, (first.signing.certificate,))
    assert authority.aged(changed, NOW + CA_LIFETIME - DAY) == changed
    alone = authority.aged(changed, NOW + CA_LIFETIME + DAY)
    assert (alone.signing, alone.retired) == (changed.signing, ())


def test_nobody_is_cut_off_while_a_ca_changes(tmp_path: Path) -> None:
    """One side may already have what the other gets in a minute. The CAs' ages are played, TLS's clock is the real one."""
    first = authority.found(NOW)
    announced = Authority(signing=first.signing, successor=authority.found(NOW).signing)
    assert announced.successor is not None
    changed = Authority(signing=announced.successor, retired=(first.signing.certificate,))
    for number, (one, other) in enumerate([(first, announced), (announced, changed)]):
        assert met(tmp_path / f"{number}-runner-first", other, one) is Role.OPERATOR
        assert met(tmp_path / f"{number}-operator-first", one, other) is Role.OPERATOR


def test_a_certificate_is_issued_anew_in_time_and_by_the_ca_that_signs() -> None:
    ours = authority.found(NOW)
    pair = authority.issue(ours, RUNNER, NOW)
    assert authority.serves(pair, ours, RUNNER, NOW)
    assert authority.serves(pair, ours, RUNNER, NOW + LIFETIME * 0.79)
    assert not authority.serves(pair, ours, RUNNER, NOW + LIFETIME * 0.81)
    assert not authority.serves(pair, authority.found(NOW), RUNNER, NOW)
    assert not authority.serves(pair, ours, OPERATOR, NOW)
    assert not authority.serves(pair, ours, Subject(common_name="wherry-runner", dns_name="other"), NOW)
    other = authority.issue(ours, RUNNER, NOW)
    assert not authority.serves(Pair(certificate=pair.certificate, key=other.key), ours, RUNNER, NOW)
    assert not authority.serves(Pair(certificate=b"", key=b""), ours, RUNNER, NOW)


def test_no_two_cas_have_a_name_in_common() -> None:
    first = authority.found(NOW)
    second = authority.found(NOW + DAY)
    names = {x509.load_pem_x509_certificate(each.signing.certificate).subject for each in (first, second)}
    assert len(names) == 2
