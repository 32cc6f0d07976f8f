"""The backend: the HTTP API and the console, and the process that syncs providers and runs agents."""
