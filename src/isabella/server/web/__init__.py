"""The console: providers, agents and their memory in a browser.

htmx replaces fragments of pages that are rendered on the server; changes arrive as server-sent events.
"""
