"""The certificate of the operator's HTTPS ports, where nobody else brings one: made here, or signed by the cluster.

As a kubelet does it (`serverTLSBootstrap`): it serves at once, with a certificate of its own making, and from the moment that an
administrator has approved its request with the cluster's. Approving is nobody's here: whoever may approve that signer's requests
may approve them for any node.
"""

from __future__ import annotations

import base64
import logging
from typing import Protocol

from wherry_operator import certificates, private_files
from wherry_operator.certificates import Facts, Subject
from wherry_operator.clock import Clock
from wherry_operator.kube import KubeError, NotFound
from wherry_operator.models import Object
from wherry_operator.settings import Settings

log = logging.getLogger(__name__)

REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
SIGNER = "kubernetes.io/kubelet-serving"

LOOK_SECONDS = 5.0
"""Between two looks at a request that waits."""

RETRY_SECONDS = 30.0
"""After the API server refused or did not answer."""

DENIED_SECONDS = 3600.0
"""After a request was denied: who denied it may change their mind."""

LONGEST_SLEEP_SECONDS = 3600.0
"""A clock may be set meanwhile."""


class SigningApi(Protocol):
    """What of `Kube` is used here, as the node: the signer takes requests from nobody else."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        ...


class ServingCertificate:
    """Keeps the files that `Settings.kubelet` names. `prepare` comes first, before anything listens."""

    def __init__(self, settings: Settings, kube_as_node: SigningApi, *, clock: Clock | None = None) -> None:
        self._of = settings.kubelet
        self._subject = Subject(node_name=settings.node_name, address=settings.kubelet.address)
        self._kube = kube_as_node
        self._clock = clock or Clock()

    def prepare(self) -> None:
        """See to it that there is a certificate to begin with. Raises TlsError."""
        if self._of.certificate == "files":
            return
        private_files.make_directory(self._of.cert_file.parent)
        facts = self._facts()
        if facts is None or facts.renew_at <= self._clock.now() or (facts.own and self._of.certificate == "csr"):
            self._make()

    async def run(self) -> None:
        """Renew until cancelled; returns at once where somebody else brings the files."""
        while self._of.certificate != "files":
            facts = self._facts()
            left = (facts.renew_at - self._clock.now()).total_seconds() if facts else 0.0
            if facts is None or left <= 0 or (facts.own and self._of.certificate == "csr"):
                await self._clock.sleep(await self._renew())
            else:
                await self._clock.sleep(min(left, LONGEST_SLEEP_SECONDS))

    async def _renew(self) -> float:
        """Returns after how many seconds to look again."""
        if self._of.certificate == "self-signed":
            self._make()
            return 0.0
        try:
            return await self._have_signed()
        except KubeError as error:
            log.warning("can't get a serving certificate: %s", error)
            return RETRY_SECONDS

    async def _have_signed(self) -> float:
        key = certificates.new_key()
        body = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": f"csr-{self._subject.node_name[:200]}-"},
            "spec": {
                "request": base64.b64encode(certificates.request(self._subject, key)).decode(),
                "signerName": SIGNER,
                "usages": ["digital signature", "server auth"],
            },
        }
        name = (await self._kube.create(REQUESTS, body))["metadata"]["name"]
        log.warning(
            "%s is served with a certificate that nobody vouches for until an administrator approves the request: "
            "kubectl certificate approve %s",
            self._subject.address,
            name,
        )
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                status = (await self._kube.get(f"{REQUESTS}/{name}")).get("status") or {}
            except NotFound:
                log.info("the request %s was forgotten: another follows", name)
                return 0.0
            if status.get("certificate"):
                return self._take(base64.b64decode(status["certificate"]), certificates.key_pem(key), name)
            for condition in status.get("conditions") or ():
                if condition["type"] in ("Denied", "Failed"):
                    log.error("the request %s was refused: %s", name, condition.get("message") or condition["reason"])
                    return DENIED_SECONDS

    def _take(self, certificate: bytes, key: bytes, name: str) -> float:
        if certificates.facts(certificate, key, self._subject) is None:
            log.error("what was signed for the request %s is no certificate for %s", name, self._subject.address)
            return DENIED_SECONDS
        self._write(certificate, key)
        log.info("serving with the certificate that was signed for the request %s", name)
        return 0.0

    def _make(self) -> None:
        key = certificates.new_key()
        self._write(certificates.self_signed(self._subject, key, now=self._clock.now()), certificates.key_pem(key))

    def _write(self, certificate: bytes, key: bytes) -> None:
        private_files.replace({self._of.key_file: key, self._of.cert_file: certificate})

    def _facts(self) -> Facts | None:
        try:
            certificate, key = self._of.cert_file.read_bytes(), self._of.key_file.read_bytes()
        except OSError:
            return None
        return certificates.facts(certificate, key, self._subject)
