"""Agents as folders: files that need no Letta to be read, a memory folder for Letta Code, and the way back."""
