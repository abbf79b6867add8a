"""Container images, made here: `pause`, `base` (Debian), and those of our own Dockerfiles. No daemon, no pulls."""
