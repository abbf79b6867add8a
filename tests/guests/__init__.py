"""Guests for tests: sources, and how they become WebAssembly."""
