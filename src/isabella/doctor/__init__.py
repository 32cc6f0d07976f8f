"""The doctor: finds the cause of a 401 along the way of a key, from the configuration to the agents.

A run (`run`) has four steps. `collect` gathers the evidence from all layers at the same time. `checks` are pure
functions that turn evidence into findings; `findings.toml` has all their texts. `findings.explain` separates root
causes from consequences. `run.apply_fixes` fixes those that need no person. Apart from a run, `log_messages` explains
messages of Letta and the vendors.
"""
