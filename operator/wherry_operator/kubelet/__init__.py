"""The virtual node's HTTPS endpoint: the kubelet API, as far as a module has it."""
