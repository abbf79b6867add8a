"""Which changes a runner takes, in which order, and what they change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ALWAYS,
    ID,
    NEVER,
    PLENTY,
    Runner,
    code,
    container,
    files,
    refusal,
    run,
    summary,
)
from wherry_runner.lives.supervisor import Refused
from wherry_runner.protocol import (
    FilesVolume,
    RefusalReason,
    Resources,
    RestartPolicy,
    Running,
    Terminated,
    VolumeFile,
    VolumeMount,
)

# --- order ------------------------------------------------------------------------------------------------------------


def test_an_older_epoch_and_an_older_sequence_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(epoch=5, sequence=7)
        with pytest.raises(Refused) as caught:
            runner.put(epoch=4, sequence=99, template="t2")
        assert (caught.value.refusal.reason, caught.value.refusal.epoch) == (RefusalReason.STALE_EPOCH, 5)
        assert refusal(lambda: runner.delete(epoch=4, sequence=99)) is RefusalReason.STALE_EPOCH
        assert refusal(lambda: runner.put(epoch=5, sequence=6, template="t2")) is RefusalReason.STALE_SEQUENCE
        assert refusal(lambda: runner.delete(epoch=5, sequence=6)) is RefusalReason.STALE_SEQUENCE
        status = runner.put(epoch=6, sequence=1)  # a new leader counts anew
        assert (status.epoch, status.sequence, status.template_hash) == (6, 1, "t1")
        await runner.die()

    run(scenario())


def test_an_epoch_that_any_request_told_of_counts_for_every_workload_and_the_next_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        assert runner.delete(epoch=9, id="unknown") is None
        assert refusal(lambda: runner.put(epoch=8)) is RefusalReason.STALE_EPOCH
        assert refusal(lambda: Runner(tmp_path).put(epoch=8)) is RefusalReason.STALE_EPOCH

    run(scenario())


@pytest.mark.parametrize("sequence", [1, 2])
def test_the_same_put_again_changes_nothing(tmp_path: Path, sequence: int) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        before = await runner.running()
        after = runner.put(sequence=sequence)
        assert after == before.model_copy(update={"sequence": sequence})
        await settle()
        assert len(runner.engine.guests) == 1
        await runner.die()

    run(scenario())


def test_the_order_of_what_was_accepted_outlives_the_process_also_that_of_a_delete(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(sequence=5)
        await first.running()
        assert first.delete(sequence=8, grace=3600) is not None
        await first.die()
        second = Runner(tmp_path)
        assert refusal(lambda: second.put(sequence=7)) is RefusalReason.STALE_SEQUENCE
        second.put(sequence=9)
        await second.die()

    run(scenario())


# --- changes ----------------------------------------------------------------------------------------------------------


def test_another_template_ends_the_containers_and_begins_them_with_the_next_restart_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(grace=0)
        await runner.running()
        runner.put(sequence=2, template="t2", grace=0, containers=(container(args=("new",)),))
        status = await runner.running(restarts=1)
        old, new = runner.engine.guests
        assert old.killed
        assert new.spec.argv == ("hello", "new")
        found = status.containers[0]
        assert found.container_id == new.spec.guest_id
        assert found.last_terminated is not None
        assert (found.last_terminated.container_id, found.last_terminated.exit_code) == (old.spec.guest_id, 137)
        await runner.die()

    run(scenario())


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_another_template_restarts_what_runs_whatever_the_policy_and_nothing_that_has_ended(
    tmp_path: Path, policy: RestartPolicy
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy, grace=0, containers=(container("a"), container("b")))
        await runner.running()
        if policy is not ALWAYS:
            runner.engine.guests[0].exit(0)
            await runner.when(lambda status: isinstance(status.containers[0].state, Terminated))
        runner.put(sequence=2, template="t2", policy=policy, grace=0, containers=(container("a"), container("b")))
        status = await runner.when(
            lambda status: isinstance(status.containers[1].state, Running) and status.containers[1].restart_count == 1
        )
        expected = (1, 1) if policy is ALWAYS else (0, 1)
        assert tuple(item.restart_count for item in status.containers) == expected
        await runner.die()

    run(scenario())


def test_of_several_templates_that_come_while_the_old_one_ends_only_the_newest_runs_and_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(grace=3600)
        await runner.running()
        for sequence in (2, 3, 4):
            runner.put(
                sequence=sequence, template=f"t{sequence}", grace=3600, containers=(container(args=(str(sequence),)),)
            )
            await settle()
        runner.engine.guests[0].exit(0)
        await runner.running(restarts=1)
        await settle()
        assert [guest.spec.argv for guest in runner.engine.guests] == [("hello",), ("hello", "4")]
        await runner.die()

    run(scenario())


def test_a_delete_while_a_template_is_replaced_need_not_wait_for_the_old_ones_grace_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(grace=3600)
        await runner.running()
        runner.put(sequence=2, template="t2", grace=3600)
        await settle()
        runner.delete(sequence=3, grace=0)
        assert code(await runner.ended()) == 137
        assert len(runner.engine.guests) == 1

    run(scenario())


def test_another_content_swaps_the_files_without_a_restart_and_reaches_the_next_run(tmp_path: Path) -> None:
    def content(value: str) -> dict[str, Any]:
        spec = container(env={"COLOUR": value}, args=(value,), mounts=(VolumeMount(volume="v", mount_path="/etc/v"),))
        return {"content": value, "containers": (spec,), "volumes": (files(colour=value),)}

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(**content("red"))
        await runner.running()
        (guest,) = runner.engine.guests
        assert guest.env == {"COLOUR": "red"}
        (mount,) = guest.spec.preopens
        assert (mount.guest_path, mount.writable) == ("/etc/v", False)
        assert (mount.host_path / "colour").read_text() == "red"

        status = runner.put(sequence=2, **content("blue"))
        assert status.content_revision == "blue"
        assert (mount.host_path / "colour").read_text() == "blue"
        await settle()
        assert len(runner.engine.guests) == 1

        guest.exit(1)
        await runner.running(restarts=1)
        after = runner.engine.guests[1]
        assert (after.env, after.spec.argv) == ({"COLOUR": "blue"}, ("hello", "blue"))
        await runner.die()

    run(scenario())


def test_a_content_that_can_not_be_written_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(volumes=(files(a="old"),))
        bad = FilesVolume(name="v", files=(VolumeFile(path="../x", data=b"eA=="),))
        assert refusal(lambda: runner.put(sequence=2, content="c2", volumes=(bad,))) is RefusalReason.INVALID
        status = runner.supervisor.status(ID)
        assert (status.sequence, status.content_revision) == (1, "c1")
        assert (tmp_path / "volumes" / ID / "files" / "v" / "a").read_text() == "old"
        assert refusal(lambda: runner.put(id="w2", volumes=(files(a="x"), bad.model_copy(update={"name": "u"})))) is (
            RefusalReason.INVALID
        )
        assert refusal(lambda: runner.supervisor.status("w2")) is RefusalReason.NOT_FOUND
        assert not (tmp_path / "volumes" / "w2").exists()
        await runner.die()

    run(scenario())


@pytest.mark.parametrize("known", [False, True], ids=["new", "changed"])
def test_what_makes_no_sense_is_refused_and_harms_nothing_that_runs(tmp_path: Path, known: bool) -> None:
    """What makes none: test_check.py."""

    async def scenario() -> None:
        runner = Runner(tmp_path)
        if known:
            runner.put()
            await runner.running()
        twice = (container("a"), container("a"))
        assert refusal(lambda: runner.put(sequence=2, template="t2", containers=twice)) is RefusalReason.INVALID
        await settle()
        if known:
            assert summary(runner.supervisor.status(ID)) == "main=Running"
        else:
            assert not runner.journals.known(ID)
            assert runner.put().sequence == 1, "it was not accepted, so its order does not count"

    run(scenario())


@pytest.mark.parametrize("known", [False, True], ids=["new", "changed"])
def test_what_does_not_fit_is_refused_and_leaves_no_trace(tmp_path: Path, known: bool) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, offered=replace(PLENTY, memory_bytes=100))
        if known:
            runner.put(containers=(container(resources=Resources(memory_request_bytes=40)),))
            await runner.running()
        large = (container(resources=Resources(memory_request_bytes=101)),)
        assert refusal(lambda: runner.put(sequence=2, template="t2", containers=large)) is RefusalReason.NO_ROOM
        assert runner.admission.requested_bytes == (40 if known else 0)
        if known:
            status = runner.supervisor.status(ID)
            assert (status.template_hash, summary(status)) == ("t1", "main=Running")
        assert runner.journals.known(ID) is known

    run(scenario())


def test_room_comes_with_the_end_and_a_place_with_the_delete(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, offered=replace(PLENTY, memory_bytes=100, workloads=2))
        whole = (container(resources=Resources(memory_request_bytes=100)),)
        runner.put(id="a", policy=NEVER, containers=whole)
        guest = await runner.engine.guest(0)
        assert refusal(lambda: runner.put(id="b", containers=whole)) is RefusalReason.NO_ROOM
        guest.exit(0)
        await runner.ended("a")
        runner.put(id="b", containers=whole)
        await runner.running(id="b")
        tiny = (container(resources=Resources(memory_request_bytes=0)),)
        assert refusal(lambda: runner.put(id="c", containers=tiny)) is RefusalReason.NO_ROOM
        assert runner.delete(id="a") is None
        runner.put(id="c", containers=tiny)

    run(scenario())


def test_a_runner_takes_no_more_than_its_maximum_and_room_comes_with_a_delete(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, max_workloads=2)
        for name in ("a", "b"):
            runner.put(id=name)
            await runner.running(id=name)
        assert refusal(lambda: runner.put(id="c")) is RefusalReason.TOO_LARGE
        runner.put(id="b", sequence=2)  # what is there may change
        runner.delete(id="a", grace=0)
        await runner.ended("a")
        runner.delete(id="a", sequence=101, grace=0)
        runner.put(id="c")
        await runner.die()

    run(scenario())


def test_a_runner_that_stops_takes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        await runner.die()
        assert refusal(runner.put) is RefusalReason.STOPPING

    run(scenario())
