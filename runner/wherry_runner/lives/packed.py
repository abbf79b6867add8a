"""Wire values that are looked at only now and then, kept small.

A container's spec as pydantic objects takes some thousand bytes, and as JSON some hundred: it is read when the container
starts, and most containers start once (5,000 of them are to fit into 150 MiB).
"""

from __future__ import annotations

from typing import Generic, TypeVar

from wherry_runner import protocol

W = TypeVar("W", bound=protocol.Wire)


class Packed(Generic[W]):
    """A value as its JSON. It may hold Secrets' values: it has no representation that shows them."""

    __slots__ = ("_json", "_type")

    def __init__(self, value: W) -> None:
        self._type = type(value)
        self._json = value.to_json()

    def unpack(self) -> W:
        """The value, made anew."""
        return self._type.model_validate_json(self._json)
