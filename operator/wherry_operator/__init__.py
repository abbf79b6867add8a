"""The cluster-wide process: it watches Kubernetes, places workloads on runners and keeps status true."""
