"""`rollout status`, `history` and `undo`, as kubectl has them for a Deployment."""

from __future__ import annotations

import argparse

from wherry_cli.cluster import Cluster, Object
from wherry_cli.errors import CliError


def run(cluster: Cluster, given: argparse.Namespace) -> int:
    """Do it; the exit code. Raises CliError."""
    match given.verb:
        case "status":
            return _follow(cluster, cluster.get(given.name))
        case "history":
            print(history(workload := cluster.get(given.name), cluster.revisions(workload["metadata"]["uid"])))
        case _:
            print(_undo(cluster, cluster.get(given.name), given.to_revision))
    return 0


def _follow(cluster: Cluster, workload: Object) -> int:
    told = ""
    for newest in cluster.changes(workload):
        text, done = progress(newest)
        if text != told:
            print(text, flush=True)
            told = text
        if done:
            return 0
    return 1


def progress(workload: Object) -> tuple[str, bool]:
    """How far it is, and whether it is there. Raises CliError where waiting does not help."""
    name, status = workload["metadata"]["name"], workload.get("status") or {}
    if status.get("observedGeneration", 0) < workload["metadata"].get("generation", 0):
        return "Waiting for wasmworkload spec update to be observed...", False
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    if conditions.get("Stalled", {}).get("status") == "True":
        why = conditions["Stalled"]
        raise CliError(f'error: wasmworkload "{name}" is stuck: {why["reason"]}: {why["message"]}')
    if conditions.get("Ready", {}).get("status") == "True":
        return f'wasmworkload "{name}" successfully rolled out', True
    wanted, updated = workload["spec"].get("replicas", 1), status.get("updatedReplicas", 0)
    old, available = status.get("replicas", 0) - updated, status.get("availableReplicas", 0)
    if updated < wanted:
        what = f"{updated} out of {wanted} new instances have been updated"
    elif old > 0:
        what = f"{old} old instances are pending termination"
    else:
        what = f"{available} of {updated} updated instances are available"
    return f'Waiting for wasmworkload "{name}" rollout to finish: {what}...', False


def history(workload: Object, revisions: list[Object]) -> str:
    """The revisions as a table; the one of the present spec has a star."""
    rows = [("REVISION", "HASH", "MODULE", "CREATED")]
    for item in revisions:
        metadata, spec = item["metadata"], item["data"]["spec"]
        star = "*" if spec == _template(workload, item) else ""
        rows.append(
            (
                f"{item['revision']}{star}",
                metadata["labels"]["wherry.dev/revision"],
                _module(spec["module"]),
                metadata["creationTimestamp"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _module(module: Object) -> str:
    source = module.get("image") or module.get("url")
    if not source and (reference := module.get("configMapKeyRef")):
        source = f"configmap {reference['name']}/{reference['key']}"
    return str(source or "inline")


def _undo(cluster: Cluster, workload: Object, number: int) -> str:
    name = workload["metadata"]["name"]
    target = choose(workload, cluster.revisions(workload["metadata"]["uid"]), number)
    operations = way_back(workload, target)
    if not operations:
        return (
            f"wasmworkload.wherry.dev/{name} skipped rollback "
            f"(current template already matches revision {target['revision']})"
        )
    # Of the spec as it was read: its status changes all the time.
    same = {"op": "test", "path": "/metadata/generation", "value": workload["metadata"]["generation"]}
    cluster.patch(name, [same, *operations])
    return f"wasmworkload.wherry.dev/{name} rolled back to revision {target['revision']}"


def choose(workload: Object, revisions: list[Object], number: int) -> Object:
    """The revision to go back to: the one of this number, or for 0 the newest that is not the present spec. Raises CliError."""
    if not revisions:
        raise CliError(f'error: no rollout history found for wasmworkload "{workload["metadata"]["name"]}"')
    if number:
        found = [item for item in revisions if item["revision"] == number]
        missing = f"error: unable to find specified revision {number} in history"
    else:
        found = [item for item in revisions if way_back(workload, item)]
        missing = "error: there is no revision before the present one in history"
    if not found:
        raise CliError(missing)
    return found[-1]


def way_back(workload: Object, revision: Object) -> list[Object]:
    """A JSON Patch of the spec; what is no part of a revision, as `replicas`, stays. Empty: it is there already."""
    now, then = _template(workload, revision), revision["data"]["spec"]
    gone: list[Object] = [{"op": "remove", "path": f"/spec/{field}"} for field in sorted(now.keys() - then.keys())]
    other = [field for field in sorted(then) if now.get(field) != then[field]]
    values = {field: then[field] for field in other}
    for field, value in values.items():
        if outside := _outside(revision, field):
            stays = {each: inner for each, inner in workload["spec"].get(field, {}).items() if each in outside}
            values[field] = {**value, **stays}
    return [*gone, *({"op": "add", "path": f"/spec/{field}", "value": value} for field, value in values.items())]


def _template(workload: Object, revision: Object) -> Object:
    found = {field: value for field, value in workload["spec"].items() if field not in revision["data"]["outside"]}
    for field, value in found.items():
        if outside := _outside(revision, field):
            found[field] = {each: inner for each, inner in value.items() if each not in outside}
    return found


def _outside(revision: Object, field: str) -> set[str]:
    """What of a field is no part of a revision: it is named as `FIELD.NAME`."""
    return {name.removeprefix(f"{field}.") for name in revision["data"]["outside"] if name.startswith(f"{field}.")}
