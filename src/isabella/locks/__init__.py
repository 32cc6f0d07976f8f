"""Locks: one sync at a time, and no turn while its provider is recreated."""
