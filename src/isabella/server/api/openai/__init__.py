"""The OpenAI format, for other programs: each agent is a model."""
