"""The gateway between Letta and the vendors."""
