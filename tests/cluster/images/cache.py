"""Images in the one cache: an entry's name holds a hash of what it is made of; it appears by rename, whole or not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.cluster import build


def cached(kind: str, ingredients: str | bytes, make: Callable[[Path], None]) -> Path:
    """Return the folder `images/KIND-HASH` of the cache, filled by `make` if it isn't there yet.

    Others that want the same wait meanwhile. What was made of other ingredients is dropped when it wasn't used for long.
    """
    content = ingredients.encode() if isinstance(ingredients, str) else ingredients
    folder = build.cache_directory() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    entry = folder / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}"
    # Who finds it waits for nobody, least of all for somebody else's build of other ingredients.
    if not entry.exists():
        with (folder / f"{kind}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not entry.exists():
                with tempfile.TemporaryDirectory(dir=folder, prefix=f".{kind}-") as made:
                    result = Path(made) / "entry"
                    result.mkdir()
                    make(result)
                    result.rename(entry)
                build.drop_unused(folder, kind, keep=entry)
    os.utime(entry)
    return entry
