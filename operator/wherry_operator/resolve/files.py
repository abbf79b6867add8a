"""The files of volumes, as the kubelet lays them out (pkg/volume/{configmap,secret,projected,downwardapi})."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping

from wherry_operator.models import (
    ConfigMapVolume,
    DownwardProjection,
    KeyToPath,
    ProjectedVolume,
    SecretProjection,
    SecretVolume,
    Volume,
    WorkloadVolume,
)
from wherry_operator.resolve.downward import Downward
from wherry_operator.resolve.objects import Kind, Missing, Objects, Reference, mount_error
from wherry_operator.resolve.tokens import Tokens, TokenWish
from wherry_runner import protocol

DEFAULT_MODE = 0o644

SERVICE_ACCOUNT_VOLUME_PREFIX = "kube-api-access-"
"""Names of the volumes that the ServiceAccount admission plugin adds to every Pod
(plugin/pkg/admission/serviceaccount/admission.go)."""


def references(volumes: Iterable[Volume | WorkloadVolume]) -> set[Reference]:
    """The objects that volumes refer to."""
    found = set()
    for volume in volumes:
        if volume.config_map is not None:
            found.add(Reference(Kind.CONFIG_MAP, volume.config_map.name))
        if volume.secret is not None:
            found.add(Reference(Kind.SECRET, volume.secret.secret_name))
        if isinstance(volume, Volume) and volume.projected is not None:
            for source in volume.projected.sources or ():
                if source.config_map is not None:
                    found.add(Reference(Kind.CONFIG_MAP, source.config_map.name))
                if source.secret is not None:
                    found.add(Reference(Kind.SECRET, source.secret.name))
    return found


def volume_files(
    volume: Volume | WorkloadVolume,
    *,
    namespace: str,
    objects: Objects,
    downward: Downward,
    tokens: Tokens | None = None,
) -> protocol.FilesVolume:
    """A volume with its files. Raises ResolveError.

    `tokens`: those of its service account that a Pod asks for; None: it gets none.
    """
    fill = _Filler(volume.name, namespace, objects, downward, tokens)
    secret = volume.secret is not None
    if volume.config_map is not None:
        fill.from_object(Kind.CONFIG_MAP, volume.config_map.name, volume.config_map, volume.config_map.default_mode)
    elif volume.secret is not None:
        fill.from_object(Kind.SECRET, volume.secret.secret_name, volume.secret, volume.secret.default_mode)
    elif isinstance(volume, Volume) and volume.downward_api is not None:
        fill.downward(volume.downward_api, volume.downward_api.default_mode)
    elif isinstance(volume, Volume) and volume.projected is not None:
        sources = volume.projected.sources or ()
        secret = any(source.secret is not None or source.service_account_token is not None for source in sources)
        fill.projected(volume.projected)
    return protocol.FilesVolume(name=volume.name, files=tuple(fill.files.values()), secret=secret)


class _Filler:
    def __init__(
        self, volume: str, namespace: str, objects: Objects, downward: Downward, tokens: Tokens | None
    ) -> None:
        self._volume = volume
        self._namespace = namespace
        self._objects = objects
        self._downward = downward
        self._tokens = tokens
        self.files: dict[str, protocol.VolumeFile] = {}

    def from_object(
        self,
        kind: Kind,
        name: str,
        source: ConfigMapVolume | SecretVolume | SecretProjection,
        default_mode: int | None,
    ) -> None:
        match self._objects[Reference(kind, name)]:
            case Missing(message=message, absent=absent):
                if source.optional and absent:
                    return
                raise mount_error(self._volume, message)
            case found:
                self._keys(kind, name, found.data, source.items, bool(source.optional), default_mode)

    def _keys(
        self,
        kind: Kind,
        name: str,
        data: Mapping[str, bytes],
        items: tuple[KeyToPath, ...] | None,
        optional: bool,
        default_mode: int | None,
    ) -> None:
        if not items:
            items = tuple(KeyToPath(key=key, path=key) for key in sorted(data))
        for item in items:
            if item.key in data:
                self._add(item.path, data[item.key], item.mode, default_mode)
            elif not optional:
                what = (
                    "configmap references non-existent config"
                    if kind is Kind.CONFIG_MAP
                    else "references non-existent secret"
                )
                raise mount_error(self._volume, f"{what} key: {item.key}")

    def downward(self, source: DownwardProjection, default_mode: int | None) -> None:
        for item in source.items:
            if item.field_ref is not None:
                text = self._downward.field(item.field_ref.field_path)
            elif item.resource_field_ref is not None:
                text = self._downward.resource(item.resource_field_ref, "")
            else:
                continue
            self._add(item.path, text.encode(), item.mode, default_mode)

    def projected(self, volume: ProjectedVolume) -> None:
        added_by_admission = self._volume.startswith(SERVICE_ACCOUNT_VOLUME_PREFIX)
        for source in volume.sources or ():
            if source.config_map is not None:
                self.from_object(Kind.CONFIG_MAP, source.config_map.name, source.config_map, volume.default_mode)
            elif source.secret is not None:
                self.from_object(Kind.SECRET, source.secret.name, source.secret, volume.default_mode)
            elif source.downward_api is not None:
                self.downward(source.downward_api, volume.default_mode)
            elif source.service_account_token is not None and self._tokens is not None:
                token = self._tokens[TokenWish.of(source.service_account_token)]
                self._add(str(source.service_account_token["path"]), token.encode(), None, volume.default_mode)
            elif source.service_account_token is not None and added_by_admission:
                continue  # nobody asked for it, and a module gets no credential that its owner did not ask for
            else:
                raise mount_error(
                    self._volume,
                    "serviceAccountToken is not given to modules by this installation; remove it from the volume, or have the "
                    "operator run with --service-account-tokens allow"
                    if source.service_account_token is not None
                    else "this kind of projected source is not supported",
                )

    def _add(self, path: str, data: bytes, mode: int | None, default_mode: int | None) -> None:
        chosen = mode if mode is not None else default_mode if default_mode is not None else DEFAULT_MODE
        self.files[path] = protocol.VolumeFile(path=path, data=base64.b64encode(data), mode=chosen & 0o777)
