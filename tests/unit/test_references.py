"""ConfigMaps and Secrets by name: how often they are read, and what is said where they can't be."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from tests.support import virtual_time
from tests.support.fake_kube import FakeKube
from wherry_operator.clock import Clock
from wherry_operator.kube import Forbidden, Kube, Unavailable
from wherry_operator.queue import Key
from wherry_operator.references import MISSING_TTL_SECONDS, References, is_immutable
from wherry_operator.resolve.objects import Found, Kind, Missing, Reference

TTL = 60.0
NO_RIGHT = (
    'secret "s" can\'t be read: the operator has no right to get secrets in namespace "boats"; '
    "see docs/security.md for the grant"
)
CONFIG, SECRET = Reference(Kind.CONFIG_MAP, "c"), Reference(Kind.SECRET, "s")
CONFIG_PATH, SECRET_PATH = "/api/v1/namespaces/boats/configmaps/c", "/api/v1/namespaces/boats/secrets/s"


def config(value: str = "1", **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": "c", "namespace": "boats", "uid": "u"}, "data": {"a": value}, **more}


def references(
    kube: FakeKube, *, retry_forbidden: bool = False, on_change: Callable[[Key], None] = lambda _: None
) -> References:
    return References(
        cast("Kube", kube),
        who="the operator",
        retry_forbidden=retry_forbidden,
        ttl_seconds=TTL,
        on_change=on_change,
        clock=Clock(monotonic=virtual_time.now),
    )


def reads(kube: FakeKube) -> int:
    return len(kube.calls)


def test_what_is_found_is_what_is_there() -> None:
    async def scenario() -> None:
        kube = FakeKube()
        kube.put(CONFIG_PATH, config())
        kube.put(SECRET_PATH, {"metadata": {"uid": "u"}, "data": {"p": base64.b64encode(b"x").decode()}})
        found = await references(kube).read("boats", {CONFIG, SECRET})
        assert found == {CONFIG: Found({"a": b"1"}), SECRET: Found({"p": b"x"})}

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("body", "age", "expected"),
    [
        (config(), TTL - 1, 1),
        (config(), TTL, 2),
        (config(immutable=True), 24 * 3600, 1),
        (None, MISSING_TTL_SECONDS - 1, 1),
        (None, MISSING_TTL_SECONDS, 2),
    ],
)
def test_how_long_an_answer_is_good_for(body: dict[str, Any] | None, age: float, expected: int) -> None:
    async def scenario() -> None:
        kube = FakeKube()
        if body is not None:
            kube.put(CONFIG_PATH, body)
        cache = references(kube)
        await cache.read("boats", [CONFIG])
        await asyncio.sleep(age)
        await cache.read("boats", [CONFIG])
        assert reads(kube) == expected

    virtual_time.run(scenario())


@contextlib.asynccontextmanager
async def kept(kube: FakeKube) -> AsyncIterator[tuple[References, list[Key]]]:
    """References that are kept fresh, and who was told of a change."""
    told: list[Key] = []
    cache = references(kube, on_change=told.append)
    task = asyncio.create_task(cache.run())
    try:
        yield cache, told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def key(name: str) -> Key:
    return Key("WasmWorkload", "boats", name)


def test_who_depends_on_what_changed_is_told_within_90_s_and_nobody_else() -> None:
    async def scenario() -> None:
        kube = FakeKube()
        kube.put(CONFIG_PATH, config())
        kube.put(SECRET_PATH, {"metadata": {"uid": "u"}, "data": {}})
        async with kept(kube) as (cache, told):
            await cache.read("boats", [CONFIG])  # somebody else's read fills the cache
            for name, wanted in (("a", {CONFIG}), ("b", {CONFIG, SECRET}), ("c", {SECRET})):
                cache.use(key(name), "boats", wanted)
                await cache.read("boats", wanted)
            await asyncio.sleep(3 * TTL)
            assert told == []
            kube.put(CONFIG_PATH, config("2"))
            await asyncio.sleep(90)
            assert sorted(told) == [key("a"), key("b")]
            assert (await cache.read("boats", [CONFIG]))[CONFIG] == Found({"a": b"2"})
            kube.remove(CONFIG_PATH)
            await asyncio.sleep(90)
            assert sorted(told[2:]) == [key("a"), key("b")]

    virtual_time.run(scenario())


def test_however_many_depend_on_it_it_is_read_once_in_a_time_to_live() -> None:
    async def scenario() -> None:
        kube = FakeKube()
        kube.put(CONFIG_PATH, config())
        async with kept(kube) as (cache, told):
            for number in range(100):
                cache.use(key(str(number)), "boats", {CONFIG})
                await cache.read("boats", {CONFIG})
            await asyncio.sleep(60 * TTL)
            assert 50 <= reads(kube) <= 61
            assert told == []
            for number in range(100):
                cache.use(key(str(number)), "boats", {SECRET} if number == 7 else ())
            calls = reads(kube)
            await asyncio.sleep(10 * TTL)
            assert {path for _, path in kube.calls[calls:]} == {SECRET_PATH}, "nobody depends on the other any more"

    virtual_time.run(scenario())


def test_what_is_immutable_is_not_read_again_and_what_is_optional_and_missing_once_in_a_time_to_live() -> None:
    async def scenario() -> None:
        kube = FakeKube()
        kube.put(CONFIG_PATH, config(immutable=True))
        async with kept(kube) as (cache, told):
            cache.use(key("a"), "boats", {CONFIG, SECRET})
            await cache.read("boats", {CONFIG, SECRET})
            await asyncio.sleep(20 * TTL)
            counts = Counter(path for _, path in kube.calls)
            assert counts[CONFIG_PATH] == 1
            assert counts[SECRET_PATH] <= 21
            assert told == []
            kube.put(SECRET_PATH, {"metadata": {"uid": "u"}, "data": {}})
            await asyncio.sleep(90)
            assert told == [key("a")]

    virtual_time.run(scenario())


def test_many_that_want_the_same_at_once_read_it_once_and_a_cancelled_one_spoils_it_for_nobody() -> None:
    class Slow(FakeKube):
        async def get(self, path: str) -> dict[str, Any]:
            await asyncio.sleep(1)
            return await super().get(path)

    async def scenario() -> None:
        kube = Slow()
        kube.put(CONFIG_PATH, config())
        cache = references(kube)
        tasks = [asyncio.create_task(cache.read("boats", [CONFIG])) for _ in range(20)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        answers = await asyncio.gather(*tasks[1:])
        assert all(answer == {CONFIG: Found({"a": b"1"})} for answer in answers)
        assert reads(kube) == 1

    virtual_time.run(scenario())


def test_namespaces_do_not_share() -> None:
    async def scenario() -> None:
        kube = FakeKube()
        kube.put(CONFIG_PATH, config())
        cache = references(kube)
        assert (await cache.read("boats", [CONFIG]))[CONFIG] == Found({"a": b"1"})
        assert (await cache.read("ports", [CONFIG]))[CONFIG] == Missing('configmap "c" not found')

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("error", "message", "absent"),
    [
        (None, 'secret "s" not found', True),
        (
            Forbidden(403, "Forbidden", "no"),
            NO_RIGHT,
            False,
        ),
        (
            Unavailable(503, "", "the API server does not answer"),
            'failed to get secret "s": the API server does not answer',
            False,
        ),
    ],
)
def test_what_can_not_be_read_says_why(error: Any, message: str, absent: bool) -> None:
    async def scenario() -> None:
        kube = FakeKube()
        if error is not None:
            kube.errors[SECRET_PATH] = [error]
        assert await references(kube).read("boats", [SECRET]) == {SECRET: Missing(message, absent=absent)}

    virtual_time.run(scenario())


@pytest.mark.parametrize(("refusals", "allowed"), [(1, True), (4, True), (5, False)])
def test_the_node_authorizer_is_given_time_to_learn_of_a_binding(refusals: int, allowed: bool) -> None:
    async def scenario() -> None:
        kube = FakeKube()
        kube.put(CONFIG_PATH, config())
        kube.errors[CONFIG_PATH] = [Forbidden(403, "", "no")] * refusals
        found = (await references(kube, retry_forbidden=True).read("boats", [CONFIG]))[CONFIG]
        assert isinstance(found, Found) is allowed
        assert virtual_time.now() < 3

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], True),
        ([Found({}, immutable=True)], True),
        ([Found({}, immutable=True), Found({})], False),
        ([Missing("no")], False),
    ],
)
def test_nothing_more_is_to_be_expected_only_where_all_is_immutable(values: list[Any], expected: bool) -> None:
    assert is_immutable(values) is expected


@pytest.mark.parametrize(("body", "expected"), [(config(), 2), (config(immutable=True), 1)])
def test_what_is_in_doubt_is_read_again_soon_but_not_at_once(body: dict[str, Any], expected: int) -> None:
    async def scenario() -> None:
        kube = FakeKube()
        kube.put(CONFIG_PATH, body)
        cache = references(kube)
        await cache.read("boats", [CONFIG])
        cache.doubt("boats", [CONFIG, SECRET])
        await cache.read("boats", [CONFIG])
        assert reads(kube) == 1
        for _ in range(3):
            await asyncio.sleep(MISSING_TTL_SECONDS / 3)
            cache.doubt("boats", [CONFIG])
        await cache.read("boats", [CONFIG])
        assert reads(kube) == expected, "and doubting over and over puts it off no further"

    virtual_time.run(scenario())
