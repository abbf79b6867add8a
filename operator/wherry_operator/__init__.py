"""The cluster-wide process: it watches Kubernetes, places workloads on runners and keeps status true."""

from wherry_runner import stand_ins

stand_ins.install()
