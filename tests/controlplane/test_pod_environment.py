"""Variables of every kind, as the module sees them."""

from __future__ import annotations

from pathlib import Path

from tests.guests import build
from tests.support import wat
from tests.support.kube import Json, Workspace, pod


def environment(space: Workspace, tmp_path: Path, **container: object) -> dict[str, str]:
    """What a module with this container sees."""
    tool = tmp_path / "tool.wasm"
    tool.write_bytes(build.c("tool"))
    image = space.push_file(tool)
    body = pod("sees", image, node=space.installation.node_name, args=["environment"], **container)  # type: ignore[arg-type]
    body["metadata"] |= {"labels": {"app": "web"}, "annotations": {"note": "two words"}}
    body["spec"] |= {"restartPolicy": "Never"}
    space.apply(body)
    space.wait_phase("sees", "Succeeded")
    return dict(line.split("=", 1) for line in space.logs("sees").splitlines())


def test_variables_of_every_kind(space: Workspace, tmp_path: Path) -> None:
    space.kubectl("create", "configmap", "settings", "--from-literal=colour=red", "--from-literal=SIZE=9")
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=password=s3cret", "--from-literal=SIZE=10")

    def field(name: str, path: str) -> Json:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def resource(name: str, what: str, divisor: str = "1") -> Json:
        return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": what, "divisor": divisor}}}

    def key(name: str, kind: str, of: str, key: str, **more: object) -> Json:
        return {"name": name, "valueFrom": {f"{kind}KeyRef": {"name": of, "key": key, **more}}}

    seen = environment(
        space,
        tmp_path,
        resources={"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"cpu": "1500m", "memory": "64Mi"}},
        envFrom=[
            {"configMapRef": {"name": "settings"}},
            {"secretRef": {"name": "hidden"}, "prefix": "S_"},
            {"configMapRef": {"name": "nobody", "optional": True}},
        ],
        env=[
            {"name": "PLAIN", "value": "as it is"},
            {"name": "MADE", "value": "$(PLAIN), $$(PLAIN), $(COLOUR), $(LATER)"},
            {"name": "LATER", "value": "late"},
            {"name": "SIZE", "value": "wins"},
            key("COLOUR", "configMap", "settings", "colour"),
            key("PASSWORD", "secret", "hidden", "password"),
            key("NO_KEY", "configMap", "settings", "nothing", optional=True),
            key("NO_SECRET", "secret", "nobody", "password", optional=True),
            field("NAME", "metadata.name"),
            field("NAMESPACE", "metadata.namespace"),
            field("UID", "metadata.uid"),
            field("APP", "metadata.labels['app']"),
            field("NOTE", "metadata.annotations['note']"),
            field("NODE", "spec.nodeName"),
            field("ACCOUNT", "spec.serviceAccountName"),
            field("HOST", "status.hostIP"),
            resource("CPU", "limits.cpu"),
            resource("CPU_MILLI", "limits.cpu", "1m"),
            resource("KEPT", "requests.memory", "1Mi"),
        ],
    )
    uid = (space.get("pod", "sees") or {})["metadata"]["uid"]
    assert seen == {
        "colour": "red",
        "SIZE": "wins",
        "S_password": "s3cret",
        "S_SIZE": "10",
        "PLAIN": "as it is",
        "MADE": "as it is, $(PLAIN), $(COLOUR), $(LATER)",
        "LATER": "late",
        "COLOUR": "red",
        "PASSWORD": "s3cret",
        "NAME": "sees",
        "NAMESPACE": space.namespace,
        "UID": uid,
        "APP": "web",
        "NOTE": "two words",
        "NODE": space.installation.node_name,
        "ACCOUNT": "default",
        "HOST": "127.0.0.1",
        "CPU": "2",
        "CPU_MILLI": "1500",
        "KEPT": "32",
    }


def test_variables_that_name_each_other_end_as_on_a_kubelet(space: Workspace, tmp_path: Path) -> None:
    """Each sees those before it: there is nothing that could go round for ever."""
    cycle = [
        {"name": "A", "value": "$(B)"},
        {"name": "B", "value": "$(A)$(A)"},
        {"name": "C", "value": "$(C)"},
        *({"name": f"D{n}", "value": f"$(D{n - 1})x"} for n in range(1, 100)),
    ]
    seen = environment(space, tmp_path, env=cycle)
    assert (seen["A"], seen["B"], seen["C"]) == ("$(B)", "$(B)$(B)", "$(C)")
    assert seen["D99"] == "$(D0)" + "x" * 99


def test_variables_that_double_each_time_are_refused_and_nobody_suffers(space: Workspace) -> None:
    doubles = [{"name": "V0", "value": "x" * 1000}]
    doubles += [{"name": f"V{n}", "value": f"$(V{n - 1})$(V{n - 1})"} for n in range(1, 60)]
    image = space.push(wat.exits(0))
    space.pod("grows", image, env=doubles)
    space.pod("other", image, spec={"restartPolicy": "Never"})
    space.wait_phase("other", "Succeeded")
    space.wait(lambda: space.waiting("grows").get("reason") == "CreateContainerConfigError", "it is refused")
    assert "env" in space.waiting("grows")["message"]
