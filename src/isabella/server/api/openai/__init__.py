"""The OpenAI format, for other programs: each agent is a model."""

from __future__ import annotations

from isabella.server.api.openai.chat import router

__all__ = ["router"]
