"""Turns: what is said to an agent and what comes back, on whichever vendor answers."""
