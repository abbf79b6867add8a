"""Bodies of a PUT at random: what has the right types and makes no sense, and what has not even the types."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Json = Any

NESTED, DIGITS = "\ue000nested", "\ue000digits"
"""Stand for what Python's json won't write: arrays inside arrays, and very long numbers."""

_weird_texts = st.one_of(
    st.sampled_from(
        [
            "", " ", "\0", "a\0b", "/", "//", ".", "..", "../..", "/..", "a/../..", "/proc/self/root", "-", "--help", "=",
            "\ud800", "\udfff", "\u202e", "\u2028", "\ufeff", "\x1b[2J", "\r\n", "%00", "%s%n", "{}", "${x}", "é" * 200,
            "\U0001d54f" * 50, "x" * 254, "x" * 5000, "x" * 70_000, "main", "Always", "Memory", "inline", "hostPath",
            "1970-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2020-01-01T00:00:00",
        ]
    ),
    st.text(max_size=12),
)  # fmt: skip

_weird_numbers = st.one_of(
    st.sampled_from([0, -1, 1, 0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from([2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400]),
    st.integers(-300, 300),
)

_weird: st.SearchStrategy[Json] = st.one_of(
    st.none(),
    st.booleans(),
    _weird_numbers,
    _weird_texts,
    st.builds(list),
    st.builds(dict),
    st.sampled_from([[None], [[]], [{}], {"": None}, [0] * 10_000, {str(number): 0 for number in range(3000)}]),
    st.integers(1, 5).map(lambda size: f"{NESTED}{10**size}"),
    st.integers(1, 5).map(lambda size: f"{DIGITS}{10**size}"),
)


# --- right types, any sense -------------------------------------------------------------------------------------------


def mostly(usual: st.SearchStrategy[Json], odd: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """What is usual, and now and then what is odd: of a spec with many odd parts, only the first is ever seen."""
    return st.one_of(*[usual] * 15, odd)


names = st.sampled_from(["main", "a", "b", "c-1", "x.y", "a" * 63, "0"])
_volume_names = mostly(st.sampled_from(["files", "secret", "empty", "memory", "host", "small"]), st.just("nothing"))

_paths = mostly(
    st.sampled_from(
        [
            "/",
            "/data",
            "/data/",
            "//data//x",
            "/data/./x",
            "/data/x",
            "/a/b/c/d",
            "/" + "d/" * 300,
            "/\u202e",
            "/x" * 2000,
        ]
    ),
    st.one_of(
        st.sampled_from(["data", "../x", "/data/../..", "/data/..", "/\0", ""]),
        st.text("ab./", max_size=8).map("/".__add__),
    ),
)
_sub_paths = mostly(
    st.sampled_from(
        ["", "", "file", "folder/file", "folder", "absent", "a/b/c", "./file", "file/beyond", "link", "x" * 300]
    ),
    st.sampled_from(["..", "../..", "/etc", "a/../../b", "folder/../../..", "\0"]),
)


def optional(value: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """A value that is mostly absent."""
    return st.one_of(st.none(), st.none(), value)


def sizes(limit: int) -> st.SearchStrategy[int]:
    """Sizes in bytes, mostly below a limit."""
    return mostly(st.integers(1, limit), st.sampled_from([1, 4096, 65536, limit, 2**40, 2**63 - 1, 2**63, 2**70]))


_resources = st.fixed_dictionaries(
    {},
    optional={
        "cpuRequestMillicores": optional(mostly(st.sampled_from([0, 1, 10]), st.sampled_from([10**7, 2**63, 2**70]))),
        "cpuLimitMillicores": optional(
            mostly(st.sampled_from([10, 1000]), st.sampled_from([1, 10**9, 2**63 - 1, 2**64]))
        ),
        "memoryRequestBytes": optional(sizes(4 << 20)),
        "memoryLimitBytes": optional(sizes(64 << 20)),
        "fuel": optional(st.sampled_from([1, 1000, 10**6, 2**63 - 1])),
    },
)

_environment = st.lists(
    st.fixed_dictionaries(
        {
            "name": mostly(st.sampled_from(["A", "PATH", "a.b", "é", " "]), st.text(min_size=1, max_size=5)),
            "value": mostly(st.text("ab€\n", max_size=20), st.sampled_from(["", "\0", "x" * 130_000, "€" * 5000])),
        }
    ),
    max_size=4,
)
_tool_arguments = st.sampled_from(
    [
        ["write", "1000000"], ["endless"], ["flood"], ["spin"], ["grow", "64", "3"], ["overflow"], ["list", "/data"],
        ["read", "/data/file"], ["create", "/data/made", "x"], ["fill", "/data/large", "3000000"], ["link", "/etc", "/data/link"],
        ["folder", "/data/deep"], ["open", "/data/file"], ["wait"], ["exit", "3"], ["unreachable"],
    ]
)  # fmt: skip
_arguments = mostly(
    _tool_arguments,
    st.lists(st.one_of(st.text(max_size=10), st.sampled_from(["", "\0", "x" * 130_000])), max_size=4),
)

_mounts = st.lists(
    st.fixed_dictionaries(
        {"volume": _volume_names, "mountPath": _paths},
        optional={"readOnly": st.booleans(), "subPath": _sub_paths},
    ),
    max_size=3,
)


def encoded(data: bytes) -> str:
    """As bytes travel in JSON."""
    return base64.b64encode(data).decode()


_files = st.lists(
    st.fixed_dictionaries(
        {
            "path": mostly(
                st.sampled_from(["file", "folder/file", "a/b/c", "x" * 255]),
                st.sampled_from(
                    [
                        "folder",
                        "file/file",
                        "x" * 256,
                        "..",
                        "../file",
                        "/etc/passwd",
                        "..data",
                        "..2020/x",
                        "a//b",
                        "\0",
                        ".",
                    ]
                ),
            ),
            "data": st.sampled_from([encoded(b"content"), "", encoded(b"\0" * 100_000)]),
        },
        optional={"mode": st.sampled_from([0, 0o400, 0o644, 0o777])},
    ),
    max_size=4,
    unique_by=lambda file: file["path"],
)


def _volumes(host_paths: Sequence[str]) -> st.SearchStrategy[Json]:
    def named(kind: str, **fields: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"kind": st.just(kind), "name": _volume_names, **fields})

    usual: list[dict[str, Json]] = [
        {"kind": "files", "name": "files", "files": [{"path": "file", "data": encoded(b"content")}]},
        {"kind": "files", "name": "secret", "files": [{"path": "folder/file", "data": ""}], "secret": True},
        {"kind": "emptyDir", "name": "empty"},
        {"kind": "emptyDir", "name": "memory", "medium": "Memory", "sizeLimitBytes": 1 << 20},
        {"kind": "emptyDir", "name": "small", "sizeLimitBytes": 1 << 20},
        {"kind": "hostPath", "name": "host", "path": host_paths[0]},
    ]
    odd = st.lists(
        st.one_of(
            named("files", files=_files, secret=st.booleans()),
            named(
                "emptyDir",
                medium=st.sampled_from(["", "Memory"]),
                sizeLimitBytes=optional(st.one_of(st.just(0), sizes(1 << 20))),
            ),
            named(
                "hostPath",
                path=st.sampled_from(host_paths),
                type=st.sampled_from(["", "Directory", "DirectoryOrCreate"]),
            ),
        ),
        max_size=5,
        unique_by=_name,
    )

    def joined(some: list[Json]) -> list[Json]:
        names = {each["name"] for each in some}
        return [*some, *(each for each in usual if each["name"] not in names)]

    return st.one_of(st.just(usual), odd.map(joined), odd)


_broken = st.builds(
    lambda whole, cut, flip: bytes(_flipped(whole[: int(len(whole) * cut)], flip)),
    st.sampled_from([b"\0asm\1\0\0\0" + bytes(range(256)), b"\0asm\x0d\0\1\0\0\0", b"(module", b"(module)" * 500, b""]),
    st.sampled_from([1.0, 0.9, 0.5, 0.0]),
    st.integers(0, 4000),
)


def _flipped(data: bytes, bit: int) -> bytearray:
    found = bytearray(data)
    if found:
        found[bit // 8 % len(found)] ^= 1 << bit % 8
    return found


def _modules(inline: Mapping[str, bytes], references: Sequence[str], urls: Sequence[str]) -> st.SearchStrategy[Json]:
    known = [{"kind": "inline", "data": encoded(data), "source": name} for name, data in inline.items()]
    whole = sorted((data for data in inline.values() if data.startswith(b"\0asm")), key=len)[:3]
    spoilt = st.one_of(
        _broken,
        st.binary(max_size=40),
        # A few only: each is compiled.
        st.builds(lambda data, bit: bytes(_flipped(data, bit)), st.sampled_from(whole), st.integers(0, 400)),
        st.builds(lambda data, end: data[:end], st.sampled_from(whole), st.integers(0, 60)),
    )
    policies = st.sampled_from(["Always", "IfNotPresent", "Never"])
    inlined = st.sampled_from(known)
    return st.one_of(
        *[inlined] * 6,
        spoilt.map(lambda data: {"kind": "inline", "data": encoded(data)}),
        st.fixed_dictionaries(
            {"kind": st.just("image"), "reference": st.sampled_from(references), "pullPolicy": policies}
        ),
        st.fixed_dictionaries(
            {
                "kind": st.just("url"),
                "url": st.sampled_from(urls),
                "sha256": st.sampled_from(["0" * 64, "f" * 64]),
                "pullPolicy": policies,
            }
        ),
    )


def _name(container: Json) -> Json:
    return container["name"]


def bodies(
    *, inline: Mapping[str, bytes], references: Sequence[str], urls: Sequence[str], host_paths: Sequence[str]
) -> st.SearchStrategy[Json]:
    """Bodies of the right types. `inline`: modules by their names; the other three: what specs may name."""
    modules = _modules(inline, references, urls)
    container: dict[str, st.SearchStrategy[Json]] = {"name": names, "module": modules}
    more: dict[str, st.SearchStrategy[Json]] = {
        "command": mostly(st.builds(list), _arguments),
        "args": _arguments,
        "argv0": st.sampled_from(["auto", "none", None]),
        "env": _environment,
        "workingDir": mostly(st.sampled_from(["", "/"]), st.sampled_from(["/data", "data", "/..", "\0"])),
        "mounts": _mounts,
        "resources": _resources,
        "stdin": st.booleans(),
        "stdinOnce": st.booleans(),
    }
    containers = st.lists(st.fixed_dictionaries(container, optional=more), min_size=1, max_size=2, unique_by=_name)
    inits = st.fixed_dictionaries(
        {**container, "name": mostly(st.sampled_from(["init", "side"]), names)},
        optional={**more, "restartPolicy": st.sampled_from(["Always", None, None])},
    )
    workload = st.fixed_dictionaries(
        {
            "owner": st.just({"kind": "Pod", "namespace": "default", "name": "random", "uid": "u"}),
            "containers": containers,
            "volumes": _volumes(host_paths),
        },
        optional={
            "initContainers": st.lists(inits, max_size=2, unique_by=_name),
            "restartPolicy": st.sampled_from(["Always", "OnFailure", "Never"]),
            "terminationGracePeriodSeconds": st.sampled_from([0, 1, 30, 10**9, 2**63, 10**30]),
            "deadline": st.sampled_from(
                [
                    None,
                    0,
                    "1970-01-01T00:00:00Z",
                    "2999-01-01T00:00:00",
                    "9999-12-31T23:59:59-23:59",
                    "0001-01-01T00:00:00Z",
                ]
            ),
            "credentials": st.lists(
                st.fixed_dictionaries(
                    {"registry": st.sampled_from(["localhost", "*", "https://*.x/", "[", "\0", "127.0.0.1:*"])},
                    optional={"username": st.text(max_size=5), "password": st.text(max_size=5)},
                ),
                max_size=2,
            ),
        },
    )
    terminated = st.fixed_dictionaries(
        {"exitCode": st.sampled_from([0, 1, 137, -1, 2**40]), "reason": st.sampled_from(["Completed", "", "x" * 3000])}
    )
    history = st.lists(
        st.fixed_dictionaries(
            {"container": names},
            optional={
                "containerId": mostly(st.sampled_from(["", "c", "../..", "x" * 256, "\0"]), st.just("x" * 257)),
                "restartCount": mostly(st.sampled_from([0, 1, 5, 2**31, 2**63 - 1]), st.sampled_from([2**63, -1])),
                "startedAt": st.sampled_from(["2020-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]),
                "terminated": terminated,
            },
        ),
        max_size=2,
    )
    return st.fixed_dictionaries(
        {
            "sequence": st.just(1),
            "templateHash": st.text("abc", min_size=1, max_size=3),
            "workload": workload,
        },
        optional={"contentRevision": st.text(max_size=5), "history": history},
    )


# --- not even the types -----------------------------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn, bodies: st.SearchStrategy[Json]) -> Json:
    """A body of which a few parts, at any depth, are missing, doubled, or something else."""
    body = copy.deepcopy(draw(bodies))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(body))
        if not places:
            break
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["other", "other", "other", "gone", "copied", "many", "longer", "unknown"])):
            case "gone":
                del parent[key]
            case "copied":
                whole, place = places[draw(st.integers(0, len(places) - 1))]
                parent[key] = copy.deepcopy(whole[place])
            case "many" if isinstance(parent[key], list):
                parent[key] = (parent[key] * 400)[:400]
            case "longer" if isinstance(parent[key], str):
                parent[key] = (parent[key] or "x") * draw(st.sampled_from([2, 100, 10_000]))
            case "unknown" if isinstance(parent, dict):
                parent[draw(_weird_texts)] = copy.deepcopy(draw(_weird))
            case _:
                # A copy: the next change may be one in it, and hypothesis gives the same object again.
                parent[key] = copy.deepcopy(draw(_weird))
    return body


def _places(value: Json) -> Iterator[tuple[Any, Any]]:
    """Every part of a value, as what it is in and under which key or index."""
    found = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in found:
        yield value, key
        yield from _places(part)


_spoil = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.integers(0, 1 << 20)),
    st.tuples(
        st.just("insert"), st.sampled_from([b"\0", b"\xff", b"\xed\xa0\x80", b"{", b"]", b'"', b"\\u", b"\xef\xbb\xbf"])
    ),
    st.tuples(st.just("twice"), st.none()),
)


@st.composite
def spoilt(draw: st.DrawFn, texts: st.SearchStrategy[bytes]) -> bytes:
    """A text of which bytes are missing or others."""
    text = draw(texts)
    match draw(_spoil):
        case "cut", float(part):
            return text[: int(len(text) * part)]
        case "flip", int(bit):
            return bytes(_flipped(text, bit))
        case "insert", bytes(some):
            at = draw(st.integers(0, len(text)))
            return text[:at] + some + text[at:]
        case _:
            return text + text


def as_json(value: Json) -> bytes:
    """A body as bytes, with what stands for what Python's json won't write."""
    text = json.dumps(value)
    for mark, make in ((NESTED, _nested), (DIGITS, "9".__mul__)):
        before, *others = text.split(json.dumps(mark)[:-1])
        parts = [other.partition('"') for other in others]
        text = before + "".join(make(int(size)) + rest if size.isdigit() else rest for size, _, rest in parts)
    return text.encode()


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth
