"""What a runner says → the status that Kubernetes sees. Pure: nothing here does I/O, and time is an argument."""
