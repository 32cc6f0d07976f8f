"""Benchmarks of the claims in the README. Run them with `make bench`, or `python -m bench --help`."""
