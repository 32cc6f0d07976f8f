"""Memory agents: their bindings to vendors, memory, conversations, import and export."""
