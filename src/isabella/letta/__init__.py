"""The Letta server: the only package that knows the shapes of its REST API."""
