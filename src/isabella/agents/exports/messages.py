"""Messages of an agent as records, one JSON line each: made from Letta's rows, and put into an agent file's form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from isabella.agents.agent_file_format import Text
from isabella.agents.history import HistoryEntry, images_of, text_of, unwrapped
from isabella.letta.client import LettaClient
from isabella.letta.http import PAGE_SIZE

#: The source of reasoning that a model gives by itself.
_NATIVE = "reasoner_model"


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ImageRecord(_Record):
    """An image of a message."""

    media_type: Text
    file: Text = ""  # the path of its file in the export
    data: Annotated[str, Field(exclude=True, repr=False)] = ""  # base64; never in a record's line


class CallRecord(_Record):
    """A call of a tool."""

    id: Text
    tool: Text
    arguments: Text = "{}"


class ResultRecord(_Record):
    """The result of a tool."""

    call: Text | None = None  # the id of the call
    ok: bool = True
    text: Text = ""
    stdout: tuple[Text, ...] = ()
    stderr: tuple[Text, ...] = ()


class MessageRecord(_Record):
    """A message. Fields that are empty are not written."""

    id: Text
    at: Text = ""  # ISO 8601
    role: Literal["user", "assistant", "tool", "system", "summary", "other"]
    text: Text = ""
    reasoning: Text = ""
    native: bool = False  # whether the reasoning is the model's own, not text that it was asked for
    calls: tuple[CallRecord, ...] = ()
    results: tuple[ResultRecord, ...] = ()
    tool: Text | None = None  # the name of the tool whose results it has
    images: tuple[ImageRecord, ...] = ()
    row: tuple[dict[str, Any], ...] = ()  # Letta's rows of a message of another kind

    def line(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(self.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n"

    def entries(self) -> Iterator[HistoryEntry]:
        """Yield what a history shows of the message."""
        if self.reasoning:
            yield HistoryEntry(self.id, self.at, "reasoning", self.reasoning)
        if self.text or self.images:
            yield HistoryEntry(self.id, self.at, self.role, self.text, images=len(self.images))
        for call in self.calls:
            yield HistoryEntry(self.id, self.at, "tool_call", call.arguments, tool=call.tool)
        for result in self.results:
            text = "\n".join([result.text, *result.stdout, *result.stderr])
            yield HistoryEntry(self.id, self.at, "tool_return", text, tool=self.tool, failed=not result.ok)
        for row in self.row:
            yield HistoryEntry(self.id, self.at, "other", json.dumps(row, ensure_ascii=False))

    def for_agent_file(self) -> dict[str, Any] | None:
        """Return the message as agent files hold it; None for kinds that cannot be imported."""
        match self.role:
            case "other":
                return None
            case "user" | "system":
                content: list[dict[str, Any]] = [{"type": "text", "text": self.text}] if self.text else []
                content += [{"type": "image"} for _ in self.images]
            case "summary":
                content = [
                    {
                        "type": "text",
                        "text": json.dumps({"type": "system_alert", "message": self.text, "time": self.at}),
                    }
                ]
            case "assistant":
                content = []
                if self.reasoning:
                    content.append({"type": "reasoning", "reasoning": self.reasoning, "is_native": self.native})
                if self.text:
                    content.append({"type": "text", "text": self.text})
            case "tool":
                content = [{"type": "text", "text": self._packed(self.results[0])}] if self.results else []
        message: dict[str, Any] = {"id": self.id, "role": self.role, "content": content}
        if self.at:
            message["created_at"] = self.at
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "function": {"name": call.tool, "arguments": call.arguments}} for call in self.calls
            ]
        if self.results:
            message |= {"name": self.tool, "tool_call_id": self.results[0].call}
            message["tool_returns"] = [
                {
                    "tool_call_id": result.call,
                    "status": "success" if result.ok else "error",
                    "stdout": list(result.stdout),
                    "stderr": list(result.stderr),
                    "func_response": self._packed(result),
                }
                for result in self.results
            ]
        return message

    def _packed(self, result: ResultRecord) -> str:
        # Letta reads the status and the text of a result out of this form, and fails on any other.
        status = "OK" if result.ok else "Failed"
        return json.dumps({"status": status, "message": result.text, "time": self.at}, ensure_ascii=False)


async def all_rows(
    letta: LettaClient, agent_id: str, conversation: str
) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the messages of a conversation, oldest first, each as its id and its rows. One page is in memory.

    Raises `LettaError`.
    """
    after: str | None = None
    while True:
        # With `use_assistant_message` Letta would hide some tool calls.
        page = await letta.messages.page(
            agent_id,
            limit=PAGE_SIZE,
            order="asc",
            after=after,
            conversation_id=conversation,
            use_assistant_message="false",
        )
        messages: dict[str, list[dict[str, Any]]] = {}
        for row in page:
            messages.setdefault(str(row["id"]), []).append(row)
        # A release may return the message `after` itself.
        messages.pop(after or "", None)
        for id, rows in messages.items():
            yield id, rows
        if not messages:
            return
        after = next(reversed(messages))


def record_of(id: str, rows: Sequence[Mapping[str, Any]]) -> MessageRecord:
    """Return the record of a message from its rows."""
    fields: dict[str, Any] = {"id": id, "at": str(rows[0].get("date") or ""), "role": "other"}
    texts: list[str] = []
    reasoning: list[str] = []
    for row in rows:
        match row.get("message_type"):
            case "user_message":
                fields |= _of_user(row)
                texts.append(fields.pop("text"))
            case "system_message":
                fields["role"] = "system"
                texts.append(text_of(row.get("content")))
            case "summary_message":
                fields["role"] = "summary"
                texts.append(text_of(row.get("summary")))
            case "assistant_message":
                fields["role"] = "assistant"
                texts.append(text_of(row.get("content")))
            case "reasoning_message" if row.get("source") == _NATIVE:
                fields |= {"role": "assistant", "native": True}
                reasoning.append(text_of(row.get("reasoning")))
            case "reasoning_message":
                # The text beside a call, of older types of agents.
                fields["role"] = "assistant"
                texts.append(text_of(row.get("reasoning")))
            case "hidden_reasoning_message":
                fields["role"] = "assistant"
            case "tool_call_message" | "approval_request_message":
                fields |= {"role": "assistant", "calls": _calls(row)}
            case "tool_return_message":
                fields |= {"role": "tool", "tool": row.get("name"), "results": _results(row)}
            case _:
                return MessageRecord(**(fields | {"role": "other", "row": tuple(dict(each) for each in rows)}))
    return MessageRecord(**fields, text="".join(texts), reasoning="".join(reasoning))


def _of_user(row: Mapping[str, Any]) -> dict[str, Any]:
    text = text_of(row.get("content"))
    match unwrapped(text):
        case {"type": "system_alert", "message": str(message)}:
            return {"role": "summary", "text": message}
    images = (ImageRecord(media_type=each.media_type, data=each.data) for each in images_of(row.get("content")))
    return {"role": "user", "text": text, "images": tuple(images)}


def _calls(row: Mapping[str, Any]) -> tuple[CallRecord, ...]:
    several = row.get("tool_calls")
    calls = several if isinstance(several, list) and several else [row.get("tool_call")]
    return tuple(
        CallRecord(
            id=str(call.get("tool_call_id") or ""),
            tool=str(call.get("name") or ""),
            arguments=str(call.get("arguments") or "{}"),
        )
        for call in calls
        if isinstance(call, Mapping)
    )


def _results(row: Mapping[str, Any]) -> tuple[ResultRecord, ...]:
    several = row.get("tool_returns")
    results = several if isinstance(several, list) and several else [row]
    return tuple(
        ResultRecord(
            call=result.get("tool_call_id"),
            ok=result.get("status") != "error",
            text=text_of(result.get("tool_return")),
            stdout=tuple(result.get("stdout") or ()),
            stderr=tuple(result.get("stderr") or ()),
        )
        for result in results
    )
