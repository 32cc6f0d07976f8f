"""Collectors: what the checks need to know, asked once."""
