"""The story of the bug and of its cure, played on a real Letta with practice vendors.

Nothing in it is told from memory: every answer that it shows was given while it ran, and where one is not as the
story goes, the story says so.
"""
