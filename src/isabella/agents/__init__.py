"""Memory agents: how they are bound to a vendor, and what they are asked."""
