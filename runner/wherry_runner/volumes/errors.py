"""What can be wrong with a volume or a mount."""

from __future__ import annotations


class VolumeError(Exception):
    """A volume can't be had, or not as it is mounted; the message names it and says what is wrong with it."""
