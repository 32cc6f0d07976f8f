"""Checks: evidence in, findings out. One module per subject."""
