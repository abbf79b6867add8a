"""What the next run of a container is to have, kept in little memory."""

from __future__ import annotations

import hashlib

from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule
from wherry_runner.lives import words
from wherry_runner.lives.packed import Packed


class Wanted:
    """Its spec, as it was asked for last."""

    __slots__ = ("_spec", "compiled", "image", "version")

    def __init__(self, spec: protocol.Container) -> None:
        self._spec: protocol.Container | Packed[protocol.Container] = spec
        self.compiled: CompiledModule | None = None
        """Of a module that came with the request: its bytes are not kept here, so it can't be asked for a second time."""
        self.image = words.image(spec.module)
        """Where its module comes from."""
        self.version = 0
        """Of the spec: what was begun with one is not finished with another."""

    @property
    def spec(self) -> protocol.Container:
        """Made anew where it is packed."""
        return self._spec.unpack() if isinstance(self._spec, Packed) else self._spec

    def unpacked(self) -> protocol.Container:
        """The spec, at hand from now on for a run that must begin fast."""
        spec = self._spec = self.spec
        return spec

    def update(self, spec: protocol.Container) -> None:
        """Another was asked for."""
        self.version += 1
        self.image = words.image(spec.module)
        if self.compiled is not None and self.compiled.digest == _digest(spec.module):
            self.keep(spec, self.compiled)
        else:
            self._spec, self.compiled = spec, None

    def keep(self, spec: protocol.Container, compiled: CompiledModule) -> None:
        """A run of it has begun, and it is read again only for the next one. The bytes of a module that came with the request are
        stored now."""
        if isinstance(spec.module, protocol.InlineModule):
            self.compiled = compiled
            spec = spec.model_copy(update={"module": spec.module.model_copy(update={"data": b""})})
        self._spec = Packed(spec)

    def drop(self) -> None:
        """No run will follow: variables may be Secrets', and are kept no longer than they are needed."""
        self._spec, self.compiled = _NO_SPEC, None


_NO_SPEC: protocol.Container = protocol.Container(name="none", module=protocol.ImageModule(reference="none"))


def _digest(module: protocol.Module) -> str:
    """`sha256:…` of the bytes of a module that came with the request; empty for others."""
    return f"sha256:{hashlib.sha256(module.data).hexdigest()}" if isinstance(module, protocol.InlineModule) else ""
