"""A container's environment and arguments, as the kubelet makes them (pkg/kubelet/kubelet_pods.go, makeEnvironmentVariables).

The result is what the spec says and nothing else: no service variables, no HOSTNAME. It is sorted by name at the end, after
`$(VAR)` was expanded in declared order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from wherry_operator.models import EnvFromSource, FieldSelector, KeySelector, ResourceSelector
from wherry_operator.resolve.downward import Downward
from wherry_operator.resolve.objects import Found, Kind, Missing, Objects, Reference, ResolveError

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


LARGEST = 2 << 20
"""Characters of a container's variables, and of its arguments. Linux hands a process no more (execve(2)); and variables that each
name the one before twice would fill any memory, the operator's first."""


class _Source(Protocol):
    @property
    def field_ref(self) -> FieldSelector | None: ...
    @property
    def config_map_key_ref(self) -> KeySelector | None: ...
    @property
    def secret_key_ref(self) -> KeySelector | None: ...
    @property
    def resource_field_ref(self) -> ResourceSelector | None: ...


class _Variable(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> str | None: ...
    @property
    def value_from(self) -> _Source | None: ...


def references(env: Iterable[_Variable], env_from: Iterable[EnvFromSource]) -> set[Reference]:
    """The objects that an environment refers to."""
    found = set()
    for variable in env:
        source = variable.value_from
        if source is not None and source.config_map_key_ref is not None:
            found.add(Reference(Kind.CONFIG_MAP, source.config_map_key_ref.name))
        if source is not None and source.secret_key_ref is not None:
            found.add(Reference(Kind.SECRET, source.secret_key_ref.name))
    for item in env_from:
        if item.config_map_ref is not None:
            found.add(Reference(Kind.CONFIG_MAP, item.config_map_ref.name))
        if item.secret_ref is not None:
            found.add(Reference(Kind.SECRET, item.secret_ref.name))
    return found


def environment(
    env: Iterable[_Variable],
    env_from: Iterable[EnvFromSource],
    *,
    namespace: str,
    objects: Objects,
    downward: Downward,
    container: str = "",
) -> dict[str, str]:
    """The variables of a container, in the order in which they were declared. Raises ResolveError."""
    values: dict[str, str] = {}
    for item in env_from:
        for kind, reference in ((Kind.CONFIG_MAP, item.config_map_ref), (Kind.SECRET, item.secret_ref)):
            if reference is None:
                continue
            data = _data(objects, Reference(kind, reference.name), optional=bool(reference.optional))
            for key in sorted(data):
                name = (item.prefix or "") + key
                values[name] = _text(data[key], f"key {key} of {kind.title} {namespace}/{reference.name}")
    size = sum(map(len, values.values()))
    for variable in env:
        source = variable.value_from
        if source is None:
            values[variable.name] = expand(variable.value or "", values, where=f"env {variable.name}")
        elif source.field_ref is not None:
            values[variable.name] = downward.field(source.field_ref.field_path)
        elif source.resource_field_ref is not None:
            values[variable.name] = downward.resource(source.resource_field_ref, container)
        elif source.config_map_key_ref is not None or source.secret_key_ref is not None:
            kind = Kind.SECRET if source.config_map_key_ref is None else Kind.CONFIG_MAP
            selector = source.config_map_key_ref or source.secret_key_ref
            assert selector is not None
            value = _key(objects, kind, selector, namespace)
            if value is not None:
                values[variable.name] = value
        else:
            raise ResolveError(f"env {variable.name}: this kind of valueFrom is not supported")
        size += len(values.get(variable.name, ""))
        _check_size(size, f"env {variable.name}")
    return values


def arguments(texts: Iterable[str], values: Mapping[str, str], *, where: str) -> tuple[str, ...]:
    """`command` or `args`, with the variables' values. Raises ResolveError."""
    found = []
    size = 0
    for text in texts:
        found.append(expand(text, values, where=where))
        size += len(found[-1])
        _check_size(size, where)
    return tuple(found)


def expand(text: str, values: Mapping[str, str], *, where: str) -> str:
    """`$(NAME)` by its value, `$$` by `$`; a name that is not there stays as it is (third_party/forked/golang/expansion).
    Raises ResolveError where it would grow beyond any measure."""
    _check_size(len(text) + sum(len(values.get(match[1] or "", "")) for match in _REFERENCE.finditer(text)), where)

    def replaced(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else values.get(name, match.group(0))

    return _REFERENCE.sub(replaced, text)


def expand_all(text: str, values: Mapping[str, str], *, where: str) -> str:
    """The same where every name must be known: `subPathExpr`. Raises ResolveError."""
    for match in _REFERENCE.finditer(text):
        if match.group(1) is not None and match.group(1) not in values:
            raise ResolveError(f"{where}: missing value for {match.group(1)!r}")
    return expand(text, values, where=where)


def _check_size(size: int, where: str) -> None:
    if size > LARGEST:
        raise ResolveError(f"{where}: variables and arguments are larger than {LARGEST >> 20} MiB; mount them as files")


def _key(objects: Objects, kind: Kind, selector: KeySelector, namespace: str) -> str | None:
    optional = bool(selector.optional)
    data = _data(objects, Reference(kind, selector.name), optional=optional)
    if selector.key in data:
        return _text(data[selector.key], f"key {selector.key} of {kind.title} {namespace}/{selector.name}")
    if optional:
        return None
    raise ResolveError(f"couldn't find key {selector.key} in {kind.title} {namespace}/{selector.name}")


def _data(objects: Objects, reference: Reference, *, optional: bool) -> Mapping[str, bytes]:
    match objects[reference]:
        case Found() as found:
            return found.text
        case Missing(message=message, absent=absent):
            if optional and absent:
                return {}
            raise ResolveError(message)


def _text(value: bytes, where: str) -> str:
    if b"\0" in value:
        raise ResolveError(f"{where} has a NUL byte, which no environment can hold; mount it as a file")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ResolveError(f"{where} is not UTF-8, which WASI's environment must be; mount it as a file") from None
