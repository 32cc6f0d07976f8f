"""Providers: the desired and the stored ones, the plan that brings them in sync, and the proof."""
