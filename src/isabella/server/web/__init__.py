"""The console: providers, agents and their memory in a browser, served by the backend from this package alone.

Pages are rendered here (`templates`), and change by fragments that htmx puts in place; what happens comes as
server-sent events. They stand on the same services as the JSON API, never on the API itself.
"""
