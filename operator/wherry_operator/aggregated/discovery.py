"""What the aggregated API says of itself: `metav1.APIGroupList`, `APIGroup` and `APIResourceList`."""

from __future__ import annotations

from wherry_operator.models import Object

GROUP = "subresources.wherry.dev"
VERSION = "v1alpha1"
GROUP_VERSION = f"{GROUP}/{VERSION}"
RESOURCE = "wasmworkloads"
LOG, PORT_FORWARD = "log", "portforward"
"""Subresources."""

_VERSION: Object = {"groupVersion": GROUP_VERSION, "version": VERSION}
_GROUP: Object = {"name": GROUP, "versions": [_VERSION], "preferredVersion": _VERSION}
_V1: Object = {"apiVersion": "v1"}

DOCUMENTS: dict[str, Object] = {
    "/apis": {"kind": "APIGroupList", **_V1, "groups": [_GROUP]},
    f"/apis/{GROUP}": {"kind": "APIGroup", **_V1, **_GROUP},
    f"/apis/{GROUP_VERSION}": {
        "kind": "APIResourceList",
        **_V1,
        "groupVersion": GROUP_VERSION,
        "resources": [
            {
                "name": f"{RESOURCE}/{subresource}",
                "singularName": "",
                "namespaced": True,
                "group": "wherry.dev",
                "version": "v1alpha1",
                "kind": "WasmWorkload",
                "verbs": verbs,
            }
            for subresource, verbs in ((LOG, ["get"]), (PORT_FORWARD, ["create", "get"]))
        ],
    },
    # Nothing to tell; without an answer the API server would ask again and again.
    "/openapi/v2": {"swagger": "2.0", "info": {"title": "Wherry", "version": VERSION}, "paths": {}},
    "/openapi/v3": {"paths": {}},
}
"""By path."""
