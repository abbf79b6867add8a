"""What a container image's config says is to be run (`docker build --platform wasi/wasm`, buildah). Pure.

The platform is not believed either way: tools put modules into images for linux, too (crun's, by the name of the file), so an
image for another platform is refused only if what it runs doesn't look like a module by its name.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import Any

from wherry_runner.modules.errors import shown
from wherry_runner.modules.manifest import PLATFORMS, NotAModule

MAX_ARGUMENTS_CHARACTERS = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Command:
    """What an image runs."""

    path: str
    """Of the module, absolute, as the image's files have it."""
    entrypoint_args: tuple[str, ...] = ()
    """What follows the module in `Entrypoint`: its first arguments, unless the container has a `command`."""
    args: tuple[str, ...] = ()
    """`Cmd`: the arguments after them, unless the container has a `command` or `args`."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.rpartition("/")[2]


def parse(config: bytes) -> Command:
    """What an image of file system layers runs. Raises NotAModule."""
    try:
        fields = json.loads(config)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise NotAModule("is a container image whose config is not JSON")
    platform = str(fields.get("os", "")), str(fields.get("architecture", ""))
    inner = fields.get("config")
    inner = inner if isinstance(inner, dict) else {}
    entrypoint, args = _strings(inner, "Entrypoint"), _strings(inner, "Cmd")
    if not entrypoint:
        entrypoint, args = args[:1], args[1:]
    if platform not in PLATFORMS and not (entrypoint and _module_path(entrypoint[0]).endswith(".wasm")):
        what = f" for {shown('/'.join(platform), 80)}" if any(platform) else ""
        raise NotAModule(
            f"is a container image{what}, not a WebAssembly module: it would need a node that runs containers"
        )
    if not entrypoint:
        raise NotAModule(
            "is a container image for WebAssembly that doesn't say which file is to be run: set ENTRYPOINT in its Dockerfile"
        )
    working_dir = inner.get("WorkingDir")
    folder = working_dir if isinstance(working_dir, str) else ""
    return Command(
        path=posixpath.join("/", folder, _module_path(entrypoint[0])),
        entrypoint_args=entrypoint[1:],
        args=args,
    )


def _module_path(text: str) -> str:
    """`path#function`, as runwasi reads it: only `_start` can be run here."""
    path, separator, function = text.partition("#")
    if separator and function not in ("", "_start"):
        raise NotAModule(f"is to be run by its function {shown(function, 80)}; modules are run by `_start`")
    return path


def _strings(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name) or []
    if not isinstance(value, list) or not all(map(_is_argument, value)):
        raise NotAModule(f"is a container image whose {name} is not a list of strings")
    if sum(map(len, value)) + len(value) > MAX_ARGUMENTS_CHARACTERS:
        raise NotAModule(f"is a container image whose {name} is longer than {MAX_ARGUMENTS_CHARACTERS} characters")
    return tuple(value)


def _is_argument(value: Any) -> bool:
    """Whether a program could be given it: JSON can write what is no text."""
    try:
        return isinstance(value, str) and b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False
