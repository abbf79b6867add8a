"""The per-node process that pulls, compiles and runs modules. It holds no Kubernetes credential."""

from wherry_runner import stand_ins

stand_ins.install()
