"""Image references: read as Docker reads them, refused as a kubelet refuses them."""

from __future__ import annotations

import pytest

from wherry_runner.modules.errors import InvalidReference
from wherry_runner.modules.reference import parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("hello", "docker.io", "library/hello", "latest", ""),
        ("hello:v1", "docker.io", "library/hello", "v1", ""),
        ("tools/hello", "docker.io", "tools/hello", "latest", ""),
        ("docker.io/hello", "docker.io", "library/hello", "latest", ""),
        ("index.docker.io/tools/hello", "docker.io", "tools/hello", "latest", ""),
        ("localhost/hello", "localhost", "hello", "latest", ""),
        ("localhost:5000/x", "localhost:5000", "x", "latest", ""),
        ("127.0.0.1:5000/a/b/c:V_1.2-x", "127.0.0.1:5000", "a/b/c", "V_1.2-x", ""),
        ("[::1]:5000/x:1", "[::1]:5000", "x", "1", ""),
        ("registry.example/x", "registry.example", "x", "latest", ""),
        ("Registry/x", "Registry", "x", "latest", ""),
        ("lab:5000/x", "lab:5000", "x", "latest", ""),
        (f"registry.example/x@{DIGEST}", "registry.example", "x", "", DIGEST),
        (f"registry.example/x:1@{DIGEST}", "registry.example", "x", "1", DIGEST),
        ("a.b/my_tool__x/y--z.w", "a.b", "my_tool__x/y--z.w", "latest", ""),
    ],
)
def test_defaults_are_docker_s(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    reference = parse(text)
    assert (reference.host, reference.repository) == (host, repository)
    assert (reference.tag, reference.digest) == (tag, digest)
    assert reference.version == (digest or tag)
    assert parse(str(reference)) == reference
    assert reference.name == repository.split("/")[-1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("UPPER/Case::x", "invalid reference format"),
        ("tools/Hello", "invalid reference format: repository name (tools/Hello) must be lowercase"),
        ("Hello:v1", "invalid reference format: repository name (library/Hello) must be lowercase"),
        ("hello:", "invalid reference format"),
        ("hello@sha256:12", "invalid reference format"),
        ("hello@sha256:" + "0" * 32, "invalid checksum digest length"),
        ("hello@sha512:" + "0" * 128, "unsupported digest algorithm"),
        ("hello world", "invalid reference format"),
        ("https://registry.example/x", "invalid reference format"),
        ("registry.example//x", "invalid reference format"),
        ("registry.example/x/", "invalid reference format"),
        ("registry.example/../x", "invalid reference format"),
        ("registry.example/a__" + "_b", "invalid reference format"),
        ("registry.example/x:" + "t" * 129, "invalid reference format"),
        ("a" * 256 + "/x", "repository name must not be more than 255 characters"),
        ("0123456789abcdef" * 4, "cannot specify 64-byte hexadecimal strings"),
        ("x:1\n", "invalid reference format"),
    ],
)
def test_bad_references_are_refused_in_the_kubelets_words(text: str, why: str) -> None:
    with pytest.raises(InvalidReference) as error:
        parse(text)
    assert error.value.reason == "InvalidImageName"
    assert error.value.message.startswith('Failed to apply default image tag "')
    assert why in error.value.message


def test_the_whole_message() -> None:
    with pytest.raises(InvalidReference) as error:
        parse("x::y")
    assert error.value.message == (
        'Failed to apply default image tag "x::y": couldn\'t parse image name "x::y": invalid reference format'
    )
