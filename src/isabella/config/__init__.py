"""Settings, API keys and vendors, and the source of each value."""
