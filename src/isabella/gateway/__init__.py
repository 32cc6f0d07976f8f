"""The gateway: every request of Letta to a vendor passes through it, with the configured key and no other."""
