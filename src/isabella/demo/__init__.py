"""The demo: the stale-key bug and its fix, shown on a real Letta with practice vendors.

Every answer that it prints was given during the run. If one differs from what the demo expects, the demo says so.
"""
