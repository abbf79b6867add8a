"""In which order containers begin and end, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from tests.support.runner_scene import ALWAYS, NEVER, ON_FAILURE, container, init, put, sidecar
from wherry_runner.journal.journals import Past
from wherry_runner.lives.order import Role, resume, to_begin, to_end
from wherry_runner.protocol import RestartPolicy, Terminated


@dataclass(frozen=True)
class Member:
    """A container by its name (i: init container, s: sidecar, m: main container) and what is said of it.

    `-` nothing yet, `r` runs, `b` has run and is between two runs, `0` ended well for good, `x` ended badly for good.
    """

    name: str
    says: str

    @property
    def role(self) -> Role:
        return {"i": Role.INIT, "s": Role.SIDECAR, "m": Role.MAIN}[self.name[0]]

    @property
    def begun(self) -> bool:
        return self.says in "rb0x"

    @property
    def finished(self) -> bool:
        return self.says in "0x"

    @property
    def succeeded(self) -> bool:
        return self.says == "0"


def members(text: str) -> list[Member]:
    return [Member(*word.split("=")) for word in text.split()]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("m1=-", "m1"),
        ("m1=r m2=-", "m1 m2"),
        ("m1=0 m2=r", "m2"),
        ("m1=0 m2=x", None),
        ("m1=b", "m1"),
        # Init containers, one after the other, each to its success.
        ("i1=- i2=- m1=-", "i1"),
        ("i1=r i2=- m1=-", "i1"),
        ("i1=b i2=- m1=-", "i1"),
        ("i1=0 i2=- m1=-", "i2"),
        ("i1=0 i2=0 m1=- m2=-", "m1 m2"),
        ("i1=x i2=- m1=-", None),
        ("i1=0 i2=x m1=-", None),
        ("i1=0 m1=0", None),
        # Sidecars: the next one begins once one runs, or has run.
        ("s1=- s2=- m1=-", "s1"),
        ("s1=r s2=- m1=-", "s1 s2"),
        ("s1=b s2=- m1=-", "s1 s2"),
        ("s1=r s2=r m1=-", "s1 s2 m1"),
        ("i1=0 s1=- i2=- m1=-", "s1"),
        ("i1=0 s1=r i2=- m1=-", "s1 i2"),
        ("i1=0 s1=r i2=x m1=-", None),
        ("s1=r m1=r m2=0", "s1 m1"),
        ("s1=r m1=0", None),
        ("s1=b m1=x", None),
    ],
)
def test_who_runs_now(now: str, expected: str | None) -> None:
    found = to_begin(members(now))
    assert (None if found is None else " ".join(member.name for member in found)) == expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("m1=r m2=r", "m1 m2"),
        ("m1=0 m2=r", "m2"),
        ("m1=0 m2=x", ""),
        ("i1=r m1=-", "i1 m1"),
        ("s1=r s2=r m1=r", "m1"),
        ("s1=r s2=r m1=0", "s2"),
        ("s1=r s2=0 m1=0", "s1"),
        ("s1=0 s2=0 m1=0", ""),
        ("s1=r i1=r m1=x", "i1"),
        ("s1=r i1=x m1=x", "s1"),
    ],
)
def test_who_ends_next(now: str, expected: str) -> None:
    assert [member.name for member in to_end(members(now))] == expected.split()


# --- after the runner's death -----------------------------------------------------------------------------------------


def past(text: str) -> dict[str, Past]:
    """What is journaled: `m1=0` ended with 0, `m1=r` ran when the runner died."""
    found = {}
    for word in text.split():
        name, _, code = word.partition("=")
        end = Terminated(exit_code=int(code), reason="x", container_id="c") if code != "r" else None
        found[name] = Past(container_id="c", started_at=datetime.now(UTC), terminated=end)
    return found


@pytest.mark.parametrize(
    ("policy", "containers", "journaled", "stay", "over", "says"),
    [
        # Nothing ran: it begins.
        (NEVER, "i1 m1", "", "", False, ""),
        (ALWAYS, "m1", "", "", False, ""),
        # Who has ended for good stays ended.
        (NEVER, "m1", "m1=0", "m1", True, ""),
        (NEVER, "m1", "m1=3", "m1", True, ""),
        (ON_FAILURE, "m1", "m1=0", "m1", True, ""),
        (ON_FAILURE, "i1 s1 m1", "i1=0 s1=r m1=0", "i1 s1 m1", True, ""),
        # What was lost runs again, and all that prepared it.
        (ON_FAILURE, "m1", "m1=r", "", False, ""),
        (ON_FAILURE, "m1 m2", "m1=0 m2=r", "m1", False, ""),
        (ON_FAILURE, "i1 m1 m2", "i1=0 m1=0 m2=1", "m1", False, ""),
        (ALWAYS, "m1", "m1=0", "", False, ""),
        (ALWAYS, "i1 m1", "i1=0 m1=r", "", False, ""),
        (ALWAYS, "i1 m1", "i1=7", "", False, ""),
        (ALWAYS, "s1 m1", "s1=r m1=r", "", False, ""),
        # Under Never nothing is started anew, not even what never ran.
        (NEVER, "m1", "m1=r", "m1", True, ""),
        (NEVER, "m1 m2", "m1=0 m2=r", "m1 m2", True, ""),
        (NEVER, "i1 m1", "i1=7", "i1", True, ""),
        (NEVER, "i1 m1", "i1=r", "i1", True, ""),
        (NEVER, "i1 m1", "i1=0", "i1", True, "RunnerLost"),
        (NEVER, "m1 m2", "m1=0", "m1", True, "RunnerLost"),
        (NEVER, "s1 m1", "s1=r", "s1", True, "RunnerLost"),
        (NEVER, "s1 m1", "s1=r m1=0", "s1 m1", True, ""),
    ],
)
def test_how_a_workload_goes_on_after_the_runners_death(
    policy: RestartPolicy, containers: str, journaled: str, stay: str, over: bool, says: str
) -> None:
    names = containers.split()
    workload = put(
        policy=policy,
        init=tuple(init(name) if name[0] == "i" else sidecar(name) for name in names if name[0] != "m"),
        containers=tuple(container(name) for name in names if name[0] == "m"),
    ).workload
    found = resume(workload, past(journaled))
    assert found.stay == set(stay.split())
    assert found.over is over
    assert (found.failure.reason if found.failure else "") == says
