"""Where there can be no node, that is said plainly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster import host
from tests.cluster.errors import ClusterError
from tests.cluster.node import NodeCluster


def test_without_root_there_is_no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="a node needs root"):
        NodeCluster(tmp_path / "cluster")
    assert not (tmp_path / "cluster").exists()


def test_missing_packages_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "PROGRAMS", {"/no/such/program": "some-package", "sh": "dash"})
    assert host.missing_packages() == ["some-package"]
    assert host.why_not() == "a node needs Debian's packages some-package: `make node-packages` installs them"
