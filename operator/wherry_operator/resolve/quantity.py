"""Quantities (apimachinery/pkg/api/resource) and what containers ask for, as the wire has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

from wherry_operator.models import Quantity
from wherry_runner import protocol

_SUFFIXES = {
    **{"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(10) ** 3},
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate("MGTPE", start=2)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_FORM = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)(?P<suffix>[numkMGTPE]|[KMGTPE]i|)")


def parse(quantity: Quantity) -> Decimal:
    """A quantity's value. Raises ValueError."""
    match = _FORM.fullmatch(str(quantity).strip())
    if match is None:
        raise ValueError(f"{quantity!r} is no quantity; write for example 500m, 2 or 64Mi")
    return Decimal(match["number"]) * _SUFFIXES[match["suffix"]]


def ceiling(value: Decimal) -> int:
    """Rounded up, as Kubernetes does where a whole number is wanted."""
    return int(value.to_integral_value(ROUND_CEILING))


def resources(
    requests: Mapping[str, Quantity | None], limits: Mapping[str, Quantity | None], *, fuel: int | None = None
) -> protocol.Resources:
    """What of `cpu` and `memory` is kept and allowed; a limit of 0 is none, a limit alone is the request too, as the API
    server's defaults have it. Raises ValueError."""

    def amount(of: Mapping[str, Quantity | None], name: str, unit: int = 1) -> int | None:
        given = of.get(name)
        return None if given is None else max(0, ceiling(parse(given) * unit))

    cpu, memory = amount(limits, "cpu", 1000) or None, amount(limits, "memory") or None
    cpu_request, memory_request = amount(requests, "cpu", 1000), amount(requests, "memory")
    return protocol.Resources(
        cpu_request_millicores=cpu if cpu_request is None else cpu_request,
        cpu_limit_millicores=cpu,
        memory_request_bytes=memory if memory_request is None else memory_request,
        memory_limit_bytes=memory,
        fuel=fuel,
    )
