"""How a reference becomes a compiled module: pulled, verified, stored by digest, compiled once."""
