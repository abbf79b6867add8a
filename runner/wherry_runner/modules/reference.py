"""Image references, read as Docker and containerd read them: `[host/]repository[:tag][@digest]` with Docker's defaults.

The grammar is that of the distribution project's `reference` package; the messages are those that a kubelet
gives for the same mistake (`InvalidImageName`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wherry_runner.modules.errors import InvalidReference

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"

MAX_REPOSITORY_CHARACTERS = 255

_LEGACY_DEFAULT_HOST = "index.docker.io"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>{_HOST})/(?P<repository>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where a module is in a registry."""

    host: str
    """With its port, if one is given. `docker.io` is Docker Hub's name, not its API's address."""
    repository: str
    tag: str
    """Empty if only a digest is given."""
    digest: str
    """`sha256:…` of the manifest, or empty. Where both are given the digest decides."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"

    @property
    def name(self) -> str:
        """The last part of the repository."""
        return self.repository.rpartition("/")[2]

    @property
    def version(self) -> str:
        """By what the registry is asked: the digest if there is one, else the tag."""
        return self.digest or self.tag


def parse(text: str) -> Reference:
    """Parse a reference and apply the defaults. Raises InvalidReference."""
    try:
        return _parse(text)
    except ValueError as error:
        quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        raise InvalidReference(
            f"Failed to apply default image tag {quoted}: couldn't parse image name {quoted}: {error}"
        ) from None


def _parse(text: str) -> Reference:
    if not text:
        raise ValueError("invalid reference format: repository name must have at least one component")
    if re.fullmatch(r"[a-f0-9]{64}", text):
        raise ValueError(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    host, path = _split(text)
    # Said apart, because it is by far the most frequent mistake. A tag may be upper-case.
    name = re.split(r"[:@]", path, maxsplit=1)[0]
    if name != name.lower():
        raise ValueError(f"invalid reference format: repository name ({name}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{host}/{path}")
    if match is None:
        raise ValueError("invalid reference format")
    if len(match["repository"]) > MAX_REPOSITORY_CHARACTERS:
        raise ValueError(f"repository name must not be more than {MAX_REPOSITORY_CHARACTERS} characters")
    digest = match["digest"] or ""
    if digest and not _SHA256.fullmatch(digest):
        if digest.startswith("sha256:"):
            raise ValueError("invalid checksum digest length")
        raise ValueError("unsupported digest algorithm: modules are addressed by sha256")
    tag = match["tag"] or ("" if digest else DEFAULT_TAG)
    return Reference(host=host, repository=match["repository"], tag=tag, digest=digest)


def _split(text: str) -> tuple[str, str]:
    """Host and the rest. The first part is a host if it looks like one: a dot, a port, upper case or `localhost`."""
    first, slash, rest = text.partition("/")
    if not slash or not (set(first) & {".", ":"} or first == "localhost" or first != first.lower()):
        host, path = DEFAULT_HOST, text
    else:
        host, path = first, rest
    if host == _LEGACY_DEFAULT_HOST:
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and "/" not in path:
        path = f"library/{path}"
    return host, path
