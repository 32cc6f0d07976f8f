"""The vendors themselves, asked directly."""
