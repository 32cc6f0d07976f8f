"""The backend: the HTTP API and the console, and the process that syncs providers and runs agents."""

#: The path of the console, and of its first page.
ROOT = "/console"
START = f"{ROOT}/providers"
