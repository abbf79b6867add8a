"""What can be wrong with a module, in the kubelet's words.

ModuleError
├── InvalidReference   the spec names nothing that could be fetched
├── NeverPull          not here, and not to be fetched
├── PullError          not given by its registry or server
│   ├── AccessDenied       401, 403
│   └── NotThere           404
└── NotRunnable        given, but nothing that can run here
"""

from __future__ import annotations


class ModuleError(Exception):
    """A module can't be had. `reason` is the waiting reason of the container, `message` what is wrong and what to do."""

    def __init__(self, reason: str, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry = retry
        """False where only a change of the spec helps: it is still tried again, as a kubelet does, but never at once."""


class PullError(ModuleError):
    """The registry did not give the module (`ErrImagePull`)."""

    def __init__(self, message: str) -> None:
        super().__init__("ErrImagePull", message)


class AccessDenied(PullError):
    """The registry wants a credential, or another one."""


class NotThere(PullError):
    """There is no such thing; some registries say so of what is private, too."""


class InvalidReference(ModuleError):
    """The image reference can't be parsed (`InvalidImageName`)."""

    def __init__(self, message: str) -> None:
        super().__init__("InvalidImageName", message, retry=False)


class NeverPull(ModuleError):
    """The module isn't here, and `imagePullPolicy: Never` forbids to fetch it (`ErrImageNeverPull`)."""

    def __init__(self, message: str) -> None:
        super().__init__("ErrImageNeverPull", message)


class NotRunnable(ModuleError):
    """The bytes are there, but are nothing that can run here (`ErrImagePull` for images, else `CreateContainerConfigError`)."""

    def __init__(self, message: str, *, inline: bool) -> None:
        super().__init__("CreateContainerConfigError" if inline else "ErrImagePull", message, retry=False)


def shown(text: object, limit: int = 200) -> str:
    """A stranger's text as a message may carry it: printable, and no longer than `limit` characters."""
    whole = str(text)
    cut = whole[:limit]
    printable = cut if cut.isprintable() else repr(cut)[1:-1]
    return printable + ("…" if len(whole) > limit else "")
