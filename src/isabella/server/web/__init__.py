"""The console: providers, agents and their memory in a browser.

The pages are rendered on the server (`templates`). htmx replaces fragments of them; changes arrive as server-sent
events. The pages use the services of the backend directly, not its HTTP API.
"""
