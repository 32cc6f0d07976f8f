"""The chat in the terminal: a client of the backend, and the session that shows its events."""
