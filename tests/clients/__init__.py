"""The clients that people use, against a backend with practice vendors: `python -m tests.clients`."""
