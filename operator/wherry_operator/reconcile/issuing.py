"""Keeps the certificates between operator and runners, where nobody else brings them: the CA and the runners' certificate in
Secrets, this process's own in files.

Every replica does it, whoever leads: a Secret is made by whoever is first, and changed only as it was read. The runners' files
are the Secret's volume, which a kubelet renews; both sides take changed files without a restart.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from wherry_operator import authority, private_files
from wherry_operator.authority import Authority, Pair, Subject
from wherry_operator.clock import Clock
from wherry_operator.kube import Conflict, Forbidden, KubeError, NotFound, PatchKind
from wherry_operator.models import Object
from wherry_operator.reconcile import release
from wherry_operator.settings import Settings

log = logging.getLogger(__name__)

AUTHORITY_SECRET = "wherry-ca"
"""Only operators read it."""

DELIVERED = {
    "wherry-runner-tls": Subject(common_name="wherry-runner", dns_name="wherry-runner"),
    "wherry-metrics-tls": Subject(common_name="wherry-metrics"),
}
"""Secrets that others mount: runners, and who scrapes them."""

OPERATOR = Subject(common_name="wherry-operator")

API_SERVICE = "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.subresources.wherry.dev"

LOOK_SECONDS = 10.0
"""Between two looks: who deletes a Secret to have another one waits for no longer than that."""

RETRY_SECONDS = 1.0
"""At the start, when others write at the same time."""

_Data = Mapping[str, bytes]


class SecretsApi(Protocol):
    """What of `Kube` is used here."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...

    async def apply(self, path: str, body: Object, *, manager: str) -> Object:
        """Create an object by its name."""
        ...

    async def patch(self, path: str, body: Object, kind: PatchKind = ...) -> Object:
        """Change some fields of an object."""
        ...


class Issuing:
    """Does nothing where `Settings.certificates` says that somebody else brings the files."""

    def __init__(self, settings: Settings, kube: SecretsApi, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._kube = kube
        self._clock = clock or Clock()
        self._secrets = f"/api/v1/namespaces/{settings.namespace}/secrets"
        self._complaint = ""

    async def prepare(self) -> None:
        """Return once there is all that this process needs to begin. Raises TlsError (no folder for the files)."""
        if self._settings.certificates == "own":
            private_files.make_directory(self._settings.runner_tls.cert_file.parent)
            while not await self._try():
                await self._clock.sleep(RETRY_SECONDS)

    async def run(self) -> None:
        """Renew until cancelled; returns at once where somebody else brings the files."""
        while self._settings.certificates == "own":
            await self._clock.sleep(LOOK_SECONDS)
            await self._try()

    async def _try(self) -> bool:
        try:
            await self._look()
        except Conflict:
            return False  # another replica was faster: look again
        except KubeError as error:
            self._complain(f"can't keep the certificates between operator and runners: {error}")
            return False
        self._complaint = ""
        return True

    async def _look(self) -> None:
        now = self._clock.now()
        ours = await self._authority(now)
        for name, subject in DELIVERED.items():
            await self._deliver(name, subject, ours, now)
        self._keep_own(ours, now)
        await self._vouch(ours)

    async def _authority(self, now: datetime) -> Authority:
        live = await self._secret(AUTHORITY_SECRET)
        have = authority.from_data(_data(live)) if live else None
        wanted = authority.aged(have, now) if have else authority.found(now)
        if wanted != have:
            await self._write(AUTHORITY_SECRET, live, authority.to_data(wanted))
        return wanted

    async def _deliver(self, name: str, subject: Subject, ours: Authority, now: datetime) -> None:
        live = await self._secret(name)
        have = _data(live) if live else {}
        wanted = {**_pair_data(_fresh(_pair_of(have), subject, ours, now)), "ca.crt": ours.trusted}
        if any(have.get(key) != value for key, value in wanted.items()):
            await self._write(name, live, wanted)

    def _keep_own(self, ours: Authority, now: datetime) -> None:
        """The client certificate for runners, and the log API's."""
        tls, api = self._settings.runner_tls, self._settings.api_certificate
        _keep_files(tls.cert_file, tls.key_file, OPERATOR, ours, now)
        if _read(tls.ca_file) != ours.trusted:
            private_files.replace({tls.ca_file: ours.trusted})
        if api is not None:
            host = f"wherry-operator.{self._settings.namespace}.svc"
            _keep_files(api.cert_file, api.key_file, Subject(common_name="wherry-api", dns_name=host), ours, now)

    async def _vouch(self, ours: Authority) -> None:
        """Have the API server trust the log API's certificate, if it is this installation that serves it."""
        try:
            live = await self._kube.get(API_SERVICE)
        except (NotFound, Forbidden):
            return  # none, or another installation's
        bundle = base64.b64encode(ours.trusted).decode()
        spec = live["spec"]
        if (spec.get("service") or {}).get("namespace") == self._settings.namespace and spec.get("caBundle") != bundle:
            version = live["metadata"]["resourceVersion"]
            await self._kube.patch(
                API_SERVICE, {"metadata": {"resourceVersion": version}, "spec": {"caBundle": bundle}}
            )

    async def _secret(self, name: str) -> Object | None:
        try:
            return await self._kube.get(f"{self._secrets}/{name}")
        except NotFound:
            return None

    async def _write(self, name: str, live: Object | None, data: _Data) -> None:
        """Raises Conflict where somebody has made or changed it meanwhile."""
        path, encoded = f"{self._secrets}/{name}", _encoded(data)
        if live is not None:
            gone = dict.fromkeys(set(live.get("data") or {}) - set(data))
            version = live["metadata"]["resourceVersion"]
            await self._kube.patch(path, {"metadata": {"resourceVersion": version}, "data": {**gone, **encoded}})
        else:
            owner = await release.owner(self._kube, self._settings, f"the Secret {name}")
            body = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "namespace": self._settings.namespace,
                    "labels": {
                        "app.kubernetes.io/part-of": "wherry",
                        "app.kubernetes.io/managed-by": "wherry-operator",
                    },
                    "ownerReferences": [release.reference(owner)] if owner else [],
                },
                "type": "kubernetes.io/tls",
                "data": encoded,
            }
            # Not by a POST: the right to that can't be narrowed to names. Of two managers that apply it, the second is
            # refused.
            await self._kube.apply(path, body, manager=self._settings.identity)
        log.info("wrote the Secret %s: what was there before served no longer", name)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.error("%s", complaint)
            self._complaint = complaint


def _fresh(have: Pair | None, subject: Subject, ours: Authority, now: datetime) -> Pair:
    """What is there, if it serves, or another one."""
    return have if have and authority.serves(have, ours, subject, now) else authority.issue(ours, subject, now)


def _keep_files(cert: Path, key: Path, subject: Subject, ours: Authority, now: datetime) -> None:
    have = Pair(certificate=_read(cert), key=_read(key))
    wanted = _fresh(have, subject, ours, now)
    if wanted != have:
        private_files.replace({key: wanted.key, cert: wanted.certificate})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _pair_of(data: _Data) -> Pair | None:
    return Pair(certificate=data["tls.crt"], key=data["tls.key"]) if {"tls.crt", "tls.key"} <= set(data) else None


def _pair_data(pair: Pair) -> dict[str, bytes]:
    return {"tls.crt": pair.certificate, "tls.key": pair.key}


def _data(secret: Object) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}


def _encoded(data: _Data) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}
