"""Watching: configuration and Letta are kept in line for as long as somebody looks, not at the start alone."""
