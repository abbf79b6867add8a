"""The files and folders that containers see: brought with the request, made empty, or the runner's own.

`Volumes` keeps them and says what a container's mounts come to; `SizeWatch` looks whether an emptyDir outgrew its limit.
What decides is pure: `mounts.py`, `file_mounts.py`, `empty_dir.py`. What strangers may have a hand in is opened by
`wherry_runner.files.beneath`, measured by `usage.py` and removed by `files.removal`: none of them is led astray by a link.
"""

from wherry_runner.volumes.claim import Claim
from wherry_runner.volumes.empty_dir import memory_bytes
from wherry_runner.volumes.errors import VolumeError
from wherry_runner.volumes.host_path import HostPath
from wherry_runner.volumes.mounts import check
from wherry_runner.volumes.size_watch import SizeWatch
from wherry_runner.volumes.volumes import Volumes

__all__ = ["Claim", "HostPath", "SizeWatch", "VolumeError", "Volumes", "check", "memory_bytes"]
