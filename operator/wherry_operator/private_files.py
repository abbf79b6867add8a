"""Files of keys and certificates that nobody else can read or write."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from wherry_operator.tls import TlsError


def make_directory(path: Path) -> None:
    """Raises TlsError where others could write to it: in a shared /tmp anybody may have made it before."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise TlsError(f"can't make {path} for certificates: {error}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise TlsError(f"{path} is no directory of ours alone: give another with --certificate-dir")


def replace(files: Mapping[Path, bytes]) -> None:
    """One after the other: who reads in between finds that they don't fit, and keeps what it has."""
    for path, content in files.items():
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        new.replace(path)
