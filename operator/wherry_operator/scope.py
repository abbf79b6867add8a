"""The namespaces whose objects are looked at: all of the cluster, or some, in each of which a RoleBinding then does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """None named: all of them."""

    namespaces: tuple[str, ...] = ()

    @property
    def everywhere(self) -> bool:
        """Whether it is the whole cluster."""
        return not self.namespaces

    def paths(self, group: str, plural: str) -> dict[str, str]:
        """Where all objects of a kind are listed and watched, by namespace (`""`: all): of a group as it begins its paths, like
        `/api/v1`."""
        if self.everywhere:
            return {"": f"{group}/{plural}"}
        return {namespace: f"{group}/namespaces/{namespace}/{plural}" for namespace in self.namespaces}
