"""What a WasmWorkload waits for, or how it is, in one sentence: a pure function of the object."""

from __future__ import annotations

from wherry_cli.cluster import Object


def why(workload: Object) -> str:
    """The sentence."""
    return f"{workload['metadata']['name']} {_what(workload)}"


def _what(workload: Object) -> str:
    status = workload.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    phase = status.get("phase", "")
    if workload["metadata"].get("deletionTimestamp"):
        holders = ", ".join(workload["metadata"].get("finalizers") or [])
        return "is being deleted" + (f", and waits for whoever put the finalizer on it: {holders}" if holders else "")
    if not status:
        class_name = workload["spec"].get("className", "wherry")
        return f"waits for an operator: none that serves className {class_name} has looked at it"
    if workload["spec"].get("suspend"):
        return "is suspended: set spec.suspend to false for it to run"
    behind = ""
    if status.get("observedGeneration", 0) < workload["metadata"].get("generation", 0):
        behind = " (its newest change was not looked at yet)"
    return _state(status, conditions, phase) + behind


def _state(status: Object, conditions: dict[str, Object], phase: str) -> str:
    instances = status.get("instances") or []
    waiting = next((item for item in instances if item.get("state") != "Running"), None)
    match phase:
        case "Succeeded":
            return "is done: it ended well and will not run again"
        case "Failed":
            return f"has failed and will not run again: {_message(conditions, 'Failed') or _instance(instances)}"
        case "Unknown":
            runners = ", ".join(sorted({item["runner"] for item in instances if item.get("runner")}))
            return f"may be running: its runner {runners or '(not known)'} does not answer"
    if _is(conditions, "Ready", "True"):
        nodes = ", ".join(sorted({item["node"] for item in instances if item.get("node")}))
        return f"runs: {status.get('ready', '1/1')} ready" + (f", on {nodes}" if nodes else "")
    if _is(conditions, "Scheduled", "False"):
        return f"waits for a runner: {_message(conditions, 'Scheduled')}"
    if waiting is not None and (waiting.get("reason") or waiting.get("message")):
        return f"waits: {_instance([waiting])}"
    if _is(conditions, "ModuleReady", "False"):
        return f"waits for its module: {_message(conditions, 'ModuleReady') or 'it is being pulled or compiled'}"
    return f"is {phase or 'Pending'}: {_message(conditions, 'Ready') or 'it is being started'}"


def _instance(instances: list[Object]) -> str:
    one = next((item for item in instances if item.get("reason") or item.get("message") or item.get("exitCode")), None)
    if one is None:
        return "nothing is said of why"
    code = f"exit code {one['exitCode']}" if one.get("exitCode") else ""
    return ": ".join(filter(None, [one.get("reason", ""), one.get("message", "")])) + (f" ({code})" if code else "")


def _is(conditions: dict[str, Object], kind: str, status: str) -> bool:
    return bool(conditions.get(kind, {}).get("status") == status)


def _message(conditions: dict[str, Object], kind: str) -> str:
    found = conditions.get(kind, {})
    return str(found.get("message") or found.get("reason") or "")
