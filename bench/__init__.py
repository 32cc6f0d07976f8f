"""The measured claims. Run them with `make bench`, or `python -m bench --help`."""
