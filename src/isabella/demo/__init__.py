"""The demo: the stale-key bug and its fix, shown on a real Letta with practice vendors."""
