"""The per-node process that pulls, compiles and runs modules. It holds no Kubernetes credential."""
