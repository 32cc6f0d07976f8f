"""The calls of `calls.json` with one Python client: `python_calls.py CLIENT BASE_URL`, with the token in `TOKEN`.

It runs in the client's own environment, and prints one line of JSON for each call.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

AGENT = "Isabella"
FACT = "Remember that my boat is called Albatross."
QUESTION = "What is my boat called?"
SIGNS = "größer, 日本語, \U0001f415 and “quotes”"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {}},
    },
}


class Missing(Exception):
    """The client has no such call."""


class Client:
    """A client. A method that it lacks raises `Missing`; `say` and `pieces` return text and total tokens."""

    def __init__(self, base_url: str, token: str) -> None:
        self.base_url, self.token = base_url, token

    def models(self) -> list[str]:
        """The ids of the models."""
        raise Missing

    def model(self, id: str) -> str:
        """The id of a model, as it is told."""
        raise Missing

    def say(self, messages: list[dict[str, Any]], model: str = AGENT, **options: Any) -> tuple[str, int]:
        """The answer to messages."""
        raise NotImplementedError

    def pieces(self, messages: list[dict[str, Any]]) -> tuple[list[str], int]:
        """The pieces of an answer."""
        raise NotImplementedError

    def respond(self, text: str) -> tuple[str, str]:
        """An answer of the Responses API, at once and joined from a stream."""
        raise Missing


class OpenAi(Client):
    """The package `openai`."""

    def __init__(self, base_url: str, token: str) -> None:
        from openai import OpenAI

        super().__init__(base_url, token)
        self.client: Any = OpenAI(base_url=base_url, api_key=token, max_retries=0)

    def models(self) -> list[str]:
        return [model.id for model in self.client.models.list()]

    def model(self, id: str) -> str:
        return str(self.client.models.retrieve(id).id)

    def say(self, messages: list[dict[str, Any]], model: str = AGENT, **options: Any) -> tuple[str, int]:
        answer = self.client.chat.completions.create(model=model, messages=messages, **options)
        return answer.choices[0].message.content, answer.usage.total_tokens

    def pieces(self, messages: list[dict[str, Any]]) -> tuple[list[str], int]:
        chunks = [
            *self.client.chat.completions.create(
                model=AGENT, messages=messages, stream=True, stream_options={"include_usage": True}
            )
        ]
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        return texts, chunks[-1].usage.total_tokens

    def respond(self, text: str) -> tuple[str, str]:
        whole = self.client.responses.create(model=AGENT, input=text)
        events = self.client.responses.create(model=AGENT, input=text, previous_response_id=whole.id, stream=True)
        streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        return whole.output_text, streamed


class LangChain(Client):
    """The package `langchain-openai`."""

    def _chat(self, model: str = AGENT, **options: Any) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=model, base_url=self.base_url, api_key=self.token, max_retries=0, **options)

    def say(self, messages: list[dict[str, Any]], model: str = AGENT, **options: Any) -> tuple[str, int]:
        format, tools = options.pop("response_format", None), options.pop("tools", None)
        chat = self._chat(model, **options)
        if format is not None and format["type"] == "json_schema":
            inner = format["json_schema"]
            schema = {"title": inner["name"], **inner["schema"]}
            return json.dumps(chat.with_structured_output(schema, method="json_schema").invoke(messages)), 1
        chat = chat.bind(response_format=format) if format else chat.bind_tools(tools) if tools else chat
        answer = chat.invoke(messages)
        return answer.content, answer.usage_metadata["total_tokens"]

    def pieces(self, messages: list[dict[str, Any]]) -> tuple[list[str], int]:
        chunks = [*self._chat(stream_usage=True).stream(messages)]
        used = [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata]
        return [chunk.content for chunk in chunks], used[-1]

    def respond(self, text: str) -> tuple[str, str]:
        chat = self._chat(use_responses_api=True)
        streamed = "".join(chunk.text for chunk in chat.stream(text))
        return chat.invoke(text).text, streamed


class LlamaIndex(Client):
    """The package `llama-index-llms-openai-like`."""

    def _chat(self, model: str = AGENT, **options: Any) -> Any:
        from llama_index.llms.openai_like import OpenAILike

        return OpenAILike(
            model=model,
            api_base=self.base_url,
            api_key=self.token,
            is_chat_model=True,
            is_function_calling_model=False,
            max_retries=0,
            additional_kwargs=options,
        )

    def _messages(self, messages: list[dict[str, Any]]) -> Any:
        from llama_index.core.llms import ChatMessage, TextBlock

        return [
            ChatMessage(
                role=message["role"],
                content=message["content"]
                if isinstance(message["content"], str)
                else [TextBlock(text=part["text"]) for part in message["content"]],
            )
            for message in messages
        ]

    def say(self, messages: list[dict[str, Any]], model: str = AGENT, **options: Any) -> tuple[str, int]:
        answer = self._chat(model, **options).chat(self._messages(messages))
        return answer.message.content, answer.raw.usage.total_tokens

    def pieces(self, messages: list[dict[str, Any]]) -> tuple[list[str], int]:
        chunks = [
            *self._chat(stream_options={"include_usage": True}).stream_chat(self._messages(messages)),
        ]
        return [chunk.delta or "" for chunk in chunks], chunks[-1].raw.usage.total_tokens


class LiteLlm(Client):
    """The package `litellm`."""

    def _options(self, model: str = AGENT) -> dict[str, Any]:
        return {"model": f"openai/{model}", "api_base": self.base_url, "api_key": self.token, "num_retries": 0}

    def say(self, messages: list[dict[str, Any]], model: str = AGENT, **options: Any) -> tuple[str, int]:
        import litellm

        answer: Any = litellm.completion(messages=messages, **self._options(model), **options)
        return answer.choices[0].message.content, answer.usage.total_tokens

    def pieces(self, messages: list[dict[str, Any]]) -> tuple[list[str], int]:
        import litellm

        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks: list[Any] = [*litellm.completion(messages=messages, **self._options(), **options)]
        return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices], chunks[
            -1
        ].usage.total_tokens

    def respond(self, text: str) -> tuple[str, str]:
        import litellm

        whole: Any = litellm.responses(input=text, **self._options())
        events: Any = litellm.responses(input=text, stream=True, **self._options())
        streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        return whole.output[0].content[0].text, streamed


CLIENTS: dict[str, type[Client]] = {
    "openai": OpenAi,
    "langchain-openai": LangChain,
    "llama-index-llms-openai-like": LlamaIndex,
    "litellm": LiteLlm,
}


def user(content: Any) -> list[dict[str, Any]]:
    """One message of the user."""
    return [{"role": "user", "content": content}]


class Calls:
    """The calls. Each returns what it got and what it expects of it."""

    def __init__(self, kind: type[Client], base_url: str, token: str) -> None:
        self.kind, self.base_url = kind, base_url
        self.client = kind(base_url, token)

    def models(self) -> bool:
        return {AGENT, f"{AGENT}:aside"} <= set(self.client.models())

    def model(self) -> bool:
        return self.client.model(AGENT) == AGENT

    def say(self) -> bool:
        return self.client.say(user("Say good morning"))[0] == "good morning"

    def usage(self) -> bool:
        return self.client.say(user("Say hello"))[1] > 0

    def stream(self) -> bool:
        texts, _ = self.client.pieces(user("Count to 5"))
        return "".join(texts) == "1 2 3 4 5" and len([text for text in texts if text]) > 3

    def stream_usage(self) -> bool:
        return self.client.pieces(user("Say hello"))[1] > 0

    def parts(self) -> bool:
        parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "good night"}]
        return "good night" in self.client.say(user(parts))[0]

    def copy(self) -> bool:
        before = [
            {"role": "system", "content": "Say nothing but no."},
            {"role": "user", "content": "Say one"},
            {"role": "assistant", "content": "one"},
        ]
        return self.client.say([*before, *user("Say two")])[0] == "two"

    def remember(self) -> bool:
        return "remember" in self.client.say(user(FACT))[0] or "know" in self.client.say(user(FACT))[0]

    def recall(self) -> bool:
        return "Albatross" in self.client.say(user(QUESTION))[0]

    def unicode(self) -> bool:
        return self.client.say(user(f"Say {SIGNS}"))[0] == SIGNS

    def options(self) -> bool:
        return self.client.say(user("Say hello"), temperature=0.3, max_tokens=100, seed=7)[0] == "hello"

    def tools(self) -> bool:
        return self.client.say(user("Say hello"), tools=[TOOL])[0] == "hello"

    def json_object(self) -> bool:
        answer = self.client.say(user('Say {"n": 1}'), response_format={"type": "json_object"})[0]
        return bool(json.loads(answer) == {"n": 1})

    def json_schema(self) -> bool:
        format = {"type": "json_schema", "json_schema": {"name": "dog", "schema": SCHEMA, "strict": True}}
        answer = self.client.say(user('Say {"name": "Rex"}'), response_format=format)[0]
        return bool(json.loads(answer) == {"name": "Rex"})

    def stop(self) -> bool:
        return self.client.say(user("Count to 9"), stop=[" 5"])[0].strip() == "1 2 3 4"

    def unknown(self) -> bool:
        return self._status(lambda: self.client.say(user("Say hello"), model="nobody")) == 404

    def key(self) -> bool:
        stranger = self.kind(self.base_url, "not-the-token-of-this-backend")
        return self._status(lambda: stranger.say(user("Say hello"))) == 401

    def aside(self) -> bool:
        return self.client.say(user("Say good night"), model=f"{AGENT}:aside")[0] == "good night"

    def responses(self) -> bool:
        return self.client.respond("Say good day") == ("good day", "good day")

    def _status(self, call: Callable[[], object]) -> int | None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - each client has exceptions of its own
            return getattr(error, "status_code", None)
        return None


def main() -> None:
    """Make every call."""
    name, base_url = sys.argv[1:]
    calls = Calls(CLIENTS[name], base_url, os.environ["TOKEN"])
    for call, _ in json.loads(Path(__file__).with_name("calls.json").read_text("utf-8")):
        note = ""
        try:
            outcome = "yes" if getattr(calls, call)() else "no"
        except Missing:
            outcome = "none"
        except Exception as error:  # noqa: BLE001 - a failure of one call is reported, and the others follow
            outcome, note = "no", f"{type(error).__name__}: {error}"[:500]
        print(json.dumps({"call": call, "outcome": outcome, "note": note}), flush=True)


if __name__ == "__main__":
    main()
