"""Turns: a message to an agent and its answer, from the first vendor that gives one."""
