"""Guests' logs: the CRI format, their folders, and one budget for all."""
