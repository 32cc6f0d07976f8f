"""Talking to an agent in the terminal, by way of a backend."""
