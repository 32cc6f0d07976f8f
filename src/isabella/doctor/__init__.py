"""The doctor: from a 401 to the cause and the cure, along the way that a key travels.

Evidence is gathered at the edge (`configured`, `asked`, `letta`, `host`, `database`), all at the same time and each
with a time limit of its own. What it means is decided by pure functions, one module for each layer
(`configuration`, `vendor`, `stored`, `use`, `receipt`, `exposure`); `verdict` tells causes from consequences.
"""
