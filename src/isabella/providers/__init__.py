"""Providers: what is desired, what is stored, how the two are brought in line, and the proof."""
