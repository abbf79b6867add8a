"""The release: an object of it owns what the operator makes, so that all goes with it, also with a dead operator."""

from __future__ import annotations

import logging
from typing import Protocol

from wherry_operator.kube import Forbidden, NotFound
from wherry_operator.models import Object
from wherry_operator.settings import Settings

log = logging.getLogger(__name__)

OWNER_API = "rbac.authorization.k8s.io/v1"
OWNER_KIND = "ClusterRole"


class Reads(Protocol):
    """What of `Kube` is used here."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...


async def owner(kube: Reads, settings: Settings, of: str) -> Object | None:
    """The live object, if the settings name one, and it is there. `of`: whose owner, for the log. Raises KubeError."""
    if not settings.node_owner:
        return None
    try:
        return await kube.get(f"/apis/{OWNER_API}/clusterroles/{settings.node_owner}")
    except (NotFound, Forbidden) as error:
        log.warning("%s will outlive its release: %s", of, error)
        return None


def reference(owner: Object) -> Object:
    """The entry in `ownerReferences`."""
    metadata = owner["metadata"]
    return {"apiVersion": OWNER_API, "kind": OWNER_KIND, "name": metadata["name"], "uid": metadata["uid"]}
