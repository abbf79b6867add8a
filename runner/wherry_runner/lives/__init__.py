"""Workloads from their first PUT to their end: order, restarts, words of their states."""
