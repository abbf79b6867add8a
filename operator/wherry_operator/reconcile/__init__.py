"""One reconciler per kind: each brings what is to what should be, and may be called again at any time."""
