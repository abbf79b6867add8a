"""The API server, as the kubeconfig leads there: plain objects in and out, errors as kubectl words them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import urllib3
import websocket
from kubernetes import client, config
from kubernetes.stream import ws_client

from wherry_cli.errors import CliError, InvalidObject, ServerError

Object = dict[str, Any]

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
"""Of an answer that has an end."""

WORKLOADS = "/apis/wherry.dev/v1alpha1/namespaces/{namespace}/wasmworkloads"
PORT_FORWARD_PROTOCOL = "portforward.wherry.dev"
REVISIONS = "/apis/apps/v1/namespaces/{namespace}/controllerrevisions"
PORT_FORWARD = "/apis/subresources.wherry.dev/v1alpha1/namespaces/{namespace}/wasmworkloads/{name}/portforward"
LOG = "/apis/subresources.wherry.dev/v1alpha1/namespaces/{namespace}/wasmworkloads/{name}/log"


class Connection:
    """A connection to an instance of a WasmWorkload. Iterating gives what it says, to its end."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self._socket = socket

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                kind, piece = self._socket.recv_data()
            except (websocket.WebSocketException, OSError):
                return
            if kind == websocket.ABNF.OPCODE_CLOSE:
                return
            yield piece

    def send(self, piece: bytes) -> None:
        """Say something. Raises CliError."""
        try:
            self._socket.send_binary(piece)
        except (websocket.WebSocketException, OSError) as error:
            raise CliError(f"error: the connection broke off: {error}") from error

    def end(self) -> None:
        """Say that this was all. Raises CliError."""
        try:
            self._socket.send("end")
        except (websocket.WebSocketException, OSError) as error:
            raise CliError(f"error: the connection broke off: {error}") from error


class Cluster:
    """One context of a kubeconfig."""

    def __init__(self, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> None:
        configuration = client.Configuration()
        try:
            config.load_kube_config(kubeconfig, context, client_configuration=configuration, persist_config=False)
            contexts, current = config.list_kube_config_contexts(kubeconfig)
        except (config.ConfigException, OSError) as error:
            raise CliError(f"error: {error}") from error
        configuration.retries = False
        self._api = client.ApiClient(configuration)
        self._api.user_agent = "kubectl-wherry/1"
        used = next((item for item in contexts if item["name"] == context), None) if context else current
        self.namespace = namespace or (used or {}).get("context", {}).get("namespace") or "default"

    def get(self, name: str) -> Object:
        """A WasmWorkload. Raises ServerError."""
        return self._call("GET", f"{self._workloads()}/{name}")

    def create(self, body: Object) -> Object:
        """Create a WasmWorkload; the API server refuses fields that it does not know. Raises ServerError."""
        return self._call("POST", self._workloads(), query={"fieldValidation": "Strict"}, body=body)

    def patch(self, name: str, operations: list[Object]) -> Object:
        """Change a WasmWorkload by a JSON Patch. Raises ServerError."""
        media_type = "application/json-patch+json"
        return self._call("PATCH", f"{self._workloads()}/{name}", body=operations, media_type=media_type)

    def revisions(self, uid: str) -> list[Object]:
        """The ControllerRevisions of the WasmWorkload with this UID, the oldest first. Raises ServerError."""
        query = {"labelSelector": f"wherry.dev/workload={uid}"}
        found = self._call("GET", REVISIONS.format(namespace=self.namespace), query=query)["items"]
        # The label is no proof: a StatefulSet's revisions have the labels of its Pods.
        own = [
            item
            for item in found
            if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences") or ())
        ]
        return sorted(own, key=lambda item: int(item["revision"]))

    def changes(self, workload: Object) -> Iterator[Object]:
        """The object as it is given, and whenever it changes after that. Raises ServerError; CliError once it is another."""
        name, uid = workload["metadata"]["name"], workload["metadata"]["uid"]
        while True:
            yield workload
            for workload in self.watch(name, workload["metadata"]["resourceVersion"]):  # noqa: B020 - the newest goes on
                yield workload
            workload = self.get(name)
            if workload["metadata"]["uid"] != uid:
                raise CliError(f'error: wasmworkload "{name}" was deleted, and made again by somebody else')

    def delete(self, name: str, uid: str) -> None:
        """Delete that WasmWorkload; one that is gone is no failure. Raises ServerError."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        try:
            self._call("DELETE", f"{self._workloads()}/{name}", body=options)
        except ServerError as error:
            if error.status not in (404, 409):
                raise

    def watch(self, name: str, resource_version: str) -> Iterator[Object]:
        """A WasmWorkload whenever it changes after that version, until it is gone or the API server ends the watch."""
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": resource_version,
            "timeoutSeconds": "300",
        }
        with self._open("GET", self._workloads(), query=query) as pieces:
            rest = b""
            for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return  # too old a version: the caller reads the object again
                    if event["type"] == "DELETED":
                        raise ServerError(
                            404, "NotFound", f'wasmworkloads.wherry.dev "{name}" not found: it was deleted'
                        )
                    yield event["object"]

    @contextmanager
    def log(self, name: str, query: Mapping[str, str]) -> Iterator[Iterator[bytes]]:
        """The log of a WasmWorkload, in pieces as they come. Raises ServerError."""
        with self._open("GET", LOG.format(namespace=self.namespace, name=name), query=query) as pieces:
            yield pieces

    @contextmanager
    def connect(self, name: str, port: int, instance: str) -> Iterator[Connection]:
        """A connection to a port of an instance. Raises CliError."""
        path = PORT_FORWARD.format(namespace=self.namespace, name=name)
        query = [("port", str(port)), *([("instance", instance)] if instance else [])]
        _, url, headers, *_ = self._api.param_serialize("GET", path, query_params=query, auth_settings=["BearerToken"])
        headers["sec-websocket-protocol"] = PORT_FORWARD_PROTOCOL
        try:
            made = ws_client.create_websocket(
                self._api.configuration, "ws" + url.removeprefix("http"), {key.lower(): headers[key] for key in headers}
            )
        except websocket.WebSocketBadStatusException as error:
            raise _refused(error.status_code, error.resp_body or b"") from error
        except (websocket.WebSocketException, OSError) as error:
            raise CliError(f"Unable to connect to the server: {error}") from error
        try:
            yield Connection(made)
        finally:
            made.close()

    def _workloads(self) -> str:
        return WORKLOADS.format(namespace=self.namespace)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | list[Object] | None = None,
        media_type: str = "application/json",
    ) -> Object:
        with self._open(
            method, path, query=query, body=body, media_type=media_type, read_seconds=READ_SECONDS
        ) as pieces:
            answer: Object = json.loads(b"".join(pieces))
        return answer

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | list[Object] | None = None,
        media_type: str = "application/json",
        read_seconds: float | None = None,
    ) -> Iterator[Iterator[bytes]]:
        try:
            request = self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json, */*", "Content-Type": media_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._api.call_api(*request, _request_timeout=(CONNECT_SECONDS, read_seconds)).response
            try:
                if answer.status >= 300:
                    raise _refused(answer.status, answer.read())
                yield answer.stream(64 << 10, decode_content=True)
            finally:
                answer.close()
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            raise CliError(f"Unable to connect to the server: {error}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise CliError(f"error: the connection to the server broke off: {error}") from error


def _refused(status: int, raw: bytes) -> ServerError:
    try:
        answer = json.loads(raw)
        reason, details = answer.get("reason") or "", answer.get("details") or {}
        message = answer.get("message") or ""
        causes = [f"{cause.get('field')}: {cause.get('message')}" for cause in details.get("causes") or []]
    except (ValueError, AttributeError):  # a proxy's page
        reason, message, details, causes = "", raw[:500].decode(errors="replace").strip(), {}, []
    if reason == "Invalid":
        return InvalidObject(status, details.get("kind", ""), details.get("name", ""), causes or [message])
    return ServerError(status, reason, message or f"the server answered {status}")
