"""Every call of our own to the API server: plain objects in and out, errors with their meaning.

Objects travel as the dictionaries that JSON gives: the official client's generated classes cost several milliseconds and
drop fields that a newer API server sends. What users make is watched by kopf (`handlers.py`).
"""

from __future__ import annotations

import json
import os
import random
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from enum import StrEnum
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict

from wherry_operator.errors import Expected, text
from wherry_operator.models import Object, lean
from wherry_runner.lean_imports import bare

with bare(
    "kubernetes",
    "kubernetes.aio",
    "kubernetes.aio.client",
    "kubernetes.aio.client.models",
    "kubernetes.aio.config",
    "kubernetes.aio.utils",
) as packages:
    from kubernetes.aio.client.api_client import ApiClient
    from kubernetes.aio.client.configuration import Configuration

    if "kubernetes.aio.client" in packages:
        packages["kubernetes.aio.client"].Configuration = Configuration  # type: ignore[attr-defined]  # as its __init__ has it
    from kubernetes.aio.config.incluster_config import load_incluster_config

REQUEST_TIMEOUT_SECONDS = 30.0
"""No single call of ours needs longer; a stuck connection must not hold a reconcile for ever."""

USER_AGENT = "wherry-operator/1"

WATCH_SECONDS = 600
"""A watch is opened again after this, as all clients do it: so that load evens out after an API server came back."""

WATCH_SILENCE_SECONDS = 150.0

LIST_PAGE = 500
"""Objects asked for at once: a page stays small, and a continue token never grows old between two pages."""


class PatchKind(StrEnum):
    """How a patch is merged; the value is its media type."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


class KubeError(Expected):
    """A call failed. `status` is the HTTP status, 0 where there was no answer."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class NotFound(KubeError):
    """404: the object is not there."""


class Forbidden(KubeError):
    """403: this identity may not do that."""


class Conflict(KubeError):
    """409: it exists already, or a precondition (UID, resourceVersion) does not hold."""


class Invalid(KubeError):
    """422: the API server refuses the object's content."""


class Unavailable(KubeError):
    """No answer, 429 or 5xx: trying again may help."""


_BY_STATUS = {403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid, 429: Unavailable}


class Kube:
    """A client with one identity: our own, or another that we may impersonate."""

    def __init__(self, configuration: Configuration, *, user: str = "", groups: tuple[str, ...] = ()) -> None:
        self._api = ApiClient(configuration)
        # Up to the slash it is the manager of the fields that are written (`kubectl get --show-managed-fields`).
        self._api.user_agent = USER_AGENT
        # Impersonate-Group is repeated, one line per group: a plain mapping of headers can't say that.
        self._identity = (
            [("Impersonate-User", user), *(("Impersonate-Group", group) for group in groups)] if user else []
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, path: str) -> Object:
        """One object. Raises NotFound, Forbidden, Unavailable, KubeError."""
        return await self._call("GET", path)

    async def find(self, path: str) -> Object:
        """The object at a path, by a LIST of its name: who may list needs no further right. Raises NotFound."""
        collection, _, name = path.rpartition("/")
        async for page in self._pages(collection, f"metadata.name={name}", "", accept="application/json"):
            for body in page["items"]:
                found: Object = body
                return found
        raise NotFound(404, "NotFound", f"{path} not found")

    async def list_metadata(self, path: str, *, field_selector: str = "", label_selector: str = "") -> list[Object]:
        """The metadata of all objects of a collection: what a comparison needs, at a fraction of the bytes."""
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        found: list[Object] = []
        async for page in self._pages(path, field_selector, label_selector, accept=accept):
            found += page["items"]
        return found

    async def each(self, path: str, *, field_selector: str = "") -> AsyncIterator[Object]:
        """All objects of a collection, one after the other, and never more than a page of them in memory."""
        async for page in self._pages(path, field_selector, "", accept="application/json"):
            for body in page["items"]:
                yield body

    async def list_objects(self, path: str, *, label_selector: str = "") -> tuple[list[Object], str]:
        """All objects of a collection, and the version from which a watch goes on."""
        found: list[Object] = []
        version = ""
        async for page in self._pages(path, "", label_selector, accept="application/json"):
            found += page["items"]
            version = page["metadata"]["resourceVersion"]
        return found, version

    async def watch(
        self, path: str, version: str, *, label_selector: str = ""
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """What happens in a collection after a version: ADDED, MODIFIED, DELETED or BOOKMARK, and the object. Ends when the
        API server ends it, after some minutes. Raises KubeError: of status 410 where the version is too old."""
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(random.randint(WATCH_SECONDS // 2, WATCH_SECONDS))),
        ]
        if label_selector:
            query.append(("labelSelector", label_selector))
        # Bookmarks come once a minute: who is silent for longer is not there any more.
        patience = aiohttp.ClientTimeout(
            total=None, sock_connect=REQUEST_TIMEOUT_SECONDS, sock_read=WATCH_SILENCE_SECONDS
        )
        response = await self._send("GET", path, query=query, timeout=patience)
        try:
            if response.status >= 300:
                raise _error(response.status, await response.read())
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise _error(int(status.get("code") or 500), json.dumps(status).encode())
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, "Unavailable", f"the watch broke off: {text(error)}") from error
        finally:
            response.close()

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection. Raises Conflict where it exists."""
        return await self._call("POST", path, body=body)

    async def replace(self, path: str, body: Object) -> Object:
        """Replace an object; with a resourceVersion in it only if nobody changed it since (else Conflict)."""
        return await self._call("PUT", path, body=body)

    async def patch(self, path: str, body: Object, kind: PatchKind = PatchKind.MERGE) -> Object:
        """Change some fields of an object."""
        return await self._call("PATCH", path, body=body, headers={"Content-Type": kind.value})

    async def apply(self, path: str, body: Object, *, manager: str) -> Object:
        """Create an object, or set these fields of it. The right to create may then be one for this name only, other than with
        `create`. Raises Conflict where another manager has set one of them to something else."""
        query, headers = [("fieldManager", manager)], {"Content-Type": PatchKind.APPLY.value}
        return await self._call("PATCH", path, query=query, body=body, headers=headers)

    async def delete(
        self, path: str, *, uid: str, resource_version: str = "", grace_seconds: int | None = None
    ) -> None:
        """Delete the object with this UID, no other of the same name; with a `resource_version` only if nobody changed it since
        (else Conflict). Gone already is success."""
        preconditions = {"uid": uid, **({"resourceVersion": resource_version} if resource_version else {})}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._call("DELETE", path, body=options)
        except NotFound:
            return
        except Conflict as error:
            if "uid" not in error.message.lower():
                raise

    async def _pages(self, path: str, fields: str, labels: str, *, accept: str) -> AsyncIterator[Object]:
        query: list[tuple[str, str]] = [("limit", str(LIST_PAGE))]
        if fields:
            query.append(("fieldSelector", fields))
        if labels:
            query.append(("labelSelector", labels))
        token = ""
        while True:
            page = await self._call(
                "GET",
                path,
                query=[*query, ("continue", token)] if token else query,
                headers={"Accept": accept},
            )
            page["items"] = [lean(item) for item in page["items"] or ()]  # null where there are none
            yield page
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        response = await self._send(method, path, query=query, body=body, headers=headers)
        try:
            raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, "Unavailable", f"the API server does not answer: {text(error)}") from error
        if response.status >= 300:
            raise _error(response.status, raw)
        answer: Object = json.loads(raw) if raw else {}
        return lean(answer)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | aiohttp.ClientTimeout = REQUEST_TIMEOUT_SECONDS,
    ) -> aiohttp.ClientResponse:
        request = await self._api.param_serialize(
            method,
            path,
            query_params=query or [],
            header_params={
                "Accept": "application/json",
                "Content-Type": "application/json",
                **(headers or {}),
            },
            body=body,
            auth_settings=["BearerToken"],
        )
        method, url, header_params, sent_body = request[:4]
        sent_headers = CIMultiDict([*header_params.items(), *self._identity])
        try:
            answer = await self._api.call_api(method, url, sent_headers, sent_body, _request_timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, "Unavailable", f"the API server does not answer: {text(error)}") from error
        response: aiohttp.ClientResponse = answer.response
        return response


def _error(status: int, raw: bytes) -> KubeError:
    reason, message = "", raw[:500].decode(errors="replace")
    try:
        answer = json.loads(raw)
        reason, message = answer.get("reason") or "", answer.get("message") or message
    except (ValueError, AttributeError):
        pass  # a proxy's page, or cut off: its text is all there is
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else KubeError)
    return kind(status, reason, message)


async def load_configuration() -> Configuration:
    """How the API server is reached: from inside a Pod by its ServiceAccount, else by KUBECONFIG."""
    configuration = Configuration()
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        load_incluster_config(client_configuration=configuration)
    else:
        from kubernetes.aio.config import load_kube_config  # with all that a kubeconfig may ask for

        await load_kube_config(client_configuration=configuration)
    # The client would ask the environment for a proxy at every call, in a thread: that takes longer than writing the request.
    configuration.proxy = configuration.proxy or _proxy(configuration.host)
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this URL (HTTPS_PROXY, NO_PROXY)."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass_environment(parts.netloc):  # type: ignore[attr-defined]
        return None
    return urllib.request.getproxies_environment().get(parts.scheme)
