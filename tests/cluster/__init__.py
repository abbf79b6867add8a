"""A Kubernetes of our own: brings up a real cluster for `make demo`, tests and benches.

Everything is built from Go modules; nothing is pulled from a container registry and no Docker is needed.

* `tests.cluster.local.LocalCluster`: a control plane on loopback, without root.
* `tests.cluster.existing.ExistingCluster`: any kubeconfig.
* `tests.cluster.registry.Registry`: the reference OCI registry.
* `tests.cluster.fixtures`: the pytest fixtures; `python -m tests.cluster`: the command line.
"""
