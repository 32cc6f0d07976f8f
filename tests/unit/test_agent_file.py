"""Agent files: what is taken out of them, what is left out and named, and where a malformed one is malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from isabella.agents.agent_file import AgentFile, allowed_rules, read
from isabella.errors import AgentFileRefused


def document(**agent: Any) -> dict[str, Any]:
    """A file with one agent that has a block, a memory tool and a short conversation."""
    return {
        "agents": [
            {
                "id": "agent-0",
                "name": "Ada",
                "agent_type": "letta_v1_agent",
                "system": "You are Ada.",
                "tool_ids": ["tool-0"],
                "block_ids": ["block-0"],
                "include_base_tools": False,
                "messages": [
                    message(0, "system", "You are Eve."),
                    message(1, "user", "Hi."),
                    message(2, "assistant", "Yo."),
                ],
                "in_context_message_ids": ["message-0", "message-1", "message-2"],
                **agent,
            }
        ],
        "groups": [],
        "blocks": [{"id": "block-0", "label": "human", "value": "Likes tea."}],
        "tools": [{"id": "tool-0", "name": "memory_insert", "tool_type": "letta_sleeptime_core"}],
        "files": [],
        "sources": [],
        "mcp_servers": [],
    }


def message(number: int, role: str, text: str | list[Any] | None, **others: Any) -> dict[str, Any]:
    """A message of a file."""
    content = [{"type": "text", "text": text}] if isinstance(text, str) else text
    return {"id": f"message-{number}", "role": role, "content": content, **others}


def taken(found: dict[str, Any]) -> AgentFile:
    """What is taken out of a document."""
    return read(json.dumps(found))


def texts(file: AgentFile) -> list[str]:
    """The texts of the messages in the agent's context, in order."""
    by_id = {one["id"]: one for one in file.agent["messages"]}
    return ["".join(part["text"] for part in by_id[id]["content"]) for id in file.agent["in_context_message_ids"]]


def call(id: str, name: str = "memory_insert") -> dict[str, Any]:
    """A tool call in a message."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}


def test_only_known_fields_reach_letta() -> None:
    """A field that is not known to be harmless does not come along, whatever it is called."""
    found = document(
        hidden=True, folder_ids=["source-1"], identity_ids=["identity-1"], project_id="p", template_id="t",
        base_template_id="b", embedding_config={"embedding_endpoint": "http://evil"}, embedding="a/b", model="a/b",
        secrets={"TOKEN": "x"}, tool_exec_environment_variables={"OTHER": "y"}, include_multi_agent_tools=True,
        enable_sleeptime=True, include_default_source=True, anything_new=1, source_ids=["source-0"],
        initial_message_sequence=[{"role": "user", "content": "hi"}], model_settings={"a": 1},
    )  # fmt: skip
    file = taken(found)
    assert set(file.agent) == {
        "agent_type", "system", "description", "timezone", "message_buffer_autoclear", "include_base_tools",
        "include_base_tool_rules", "messages", "in_context_message_ids",
    }  # fmt: skip
    assert set(file.left_out) == {
        "`hidden`",
        "folders of this Letta",
        "identities",
        "tools that reach other agents",
        "the initial messages",
        "secrets for tools: OTHER, TOKEN",
    }


def test_what_reaches_other_places_is_left_out_by_name() -> None:
    """MCP servers, files, folders and skills are named, and so are tags that mean something to Letta."""
    found = document(tags=["mine", "role:subagent", "git-memory-enabled", "mine"])
    found["mcp_servers"] = [{"id": "mcp_server-0", "server_name": "mail", "server_url": "http://evil"}]
    found["files"] = [{"id": "file-0", "file_name": "notes.md", "source_id": "source-0"}]
    found["sources"] = [
        {"id": "source-0", "name": "folder", "embedding_config": {"embedding_endpoint": "http://evil"}}
    ]
    found["skills"] = [{"name": "tmux"}]
    file = taken(found)
    assert list(file.tags) == ["mine"]
    assert list(file.left_out) == [
        "MCP servers: mail",
        "files: notes.md",
        "folders: folder",
        "skills: tmux",
        "the tag role:subagent",
        "the tag git-memory-enabled",
    ]


def test_a_json_text_within_a_json_text_is_read() -> None:
    """A JSON string that holds the JSON is taken as Letta takes it: once, not for ever."""
    once = json.dumps(document())
    assert read(json.dumps(once)).name == "Ada"
    with pytest.raises(AgentFileRefused):
        read(json.dumps(json.dumps(once)))


@pytest.mark.parametrize("first", [True, False])
def test_a_companion_is_left_out(first: bool) -> None:
    """Of an agent and the one that tends its memory, the former is brought in, wherever it stands in the file."""
    found = document()
    companion = {**document()["agents"][0], "id": "agent-1", "name": "Ada-sleeptime", "agent_type": "sleeptime_agent"}
    found["agents"].insert(0 if first else 1, companion)
    found["groups"] = [{"id": "group-0", "agent_ids": ["agent-1"], "manager_config": {"manager_type": "sleeptime"}}]
    file = taken(found)
    assert (file.name, list(file.left_out)) == ("Ada", ["the agent 'Ada-sleeptime', its companion"])


def test_two_main_agents_are_refused() -> None:
    """Which of them is meant cannot be known."""
    found = document()
    found["agents"].append({**found["agents"][0], "id": "agent-1"})
    with pytest.raises(AgentFileRefused, match="2 agents"):
        taken(found)


@pytest.mark.parametrize("part", [
    {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    {"type": "image"},
])  # fmt: skip
def test_images_are_left_out(part: dict[str, Any]) -> None:
    """No address and no data of an image remains, in a message or in the result of a tool."""
    returned = [
        {"tool_call_id": "c1", "status": "success", "func_response": [part, {"type": "text", "text": "done"}]}
    ]
    found = document(
        messages=[
            message(1, "user", [{"type": "text", "text": "Look:"}, part]),
            message(2, "assistant", "Hm.", tool_calls=[call("c1")]),
            message(3, "tool", "done", tool_call_id="c1", tool_returns=returned),
        ],
        in_context_message_ids=["message-1", "message-2", "message-3"],
    )
    file = taken(found)
    assert file.left_out == ["images in messages (2)"]
    kept = json.dumps(file.agent["messages"])
    assert '"image"' not in kept
    assert "127.0.0.1" not in kept
    assert "AAAA" not in kept
    assert "Look:[An image was left out" in texts(file)[1]


@pytest.mark.parametrize(
    ("messages", "context", "expected"),
    [
        ([], [], ["You are Ada."]),
        ([message(1, "user", "Hi.")], [], ["You are Ada."]),
        ([message(1, "user", "Hi.")], ["message-1"], ["You are Ada.", "Hi."]),
        ([message(0, "system", "You are Eve.")], ["message-0"], ["You are Ada."]),
        ([message(0, "system", "Eve"), message(1, "user", None)], ["message-0", "message-1"], ["You are Ada.", ""]),
    ],
)
def test_the_context_begins_with_the_agents_own_system_prompt(
    messages: list[dict[str, Any]], context: list[str], expected: list[str]
) -> None:
    """Whatever the file has there, or has not: no agent answers without it, and none follows a hidden one."""
    assert texts(taken(document(messages=messages, in_context_message_ids=context))) == expected


def test_unfinished_tool_calls_are_not_in_the_context() -> None:
    """Calls without a result, results without a call, and requests for an approval would be refused for ever."""
    messages = [
        message(0, "system", ""),
        message(1, "tool", "stray", tool_call_id="c0"),
        message(2, "assistant", "calls", tool_calls=[call("c1"), call("c2")]),
        message(3, "tool", "both", tool_call_id="c1", tool_returns=[{"tool_call_id": "c2", "status": "success"}]),
        message(4, "assistant", "half", tool_calls=[call("c3"), call("c4")]),
        message(5, "tool", "one", tool_call_id="c3"),
        message(6, "user", "go on"),
        message(7, "approval", "may I", tool_calls=[call("c5")]),
        message(8, "approval", None, approve=True, approval_request_id="message-7"),
    ]
    file = taken(document(messages=messages, in_context_message_ids=[one["id"] for one in messages]))
    assert texts(file) == ["You are Ada.", "calls", "both", "go on"]
    assert file.left_out == ["messages of unfinished tool calls in the context (5)"]
    assert len(file.agent["messages"]) == 8


def test_rules_that_call_a_tool_and_prefilled_arguments_are_taken_out() -> None:
    """Rules that only restrain the model stay; those about tools that are not there go, and each is named."""
    found = document(tool_rules=[
        {"type": "run_first", "tool_name": "memory_insert", "args": {"label": "x"}},
        {"type": "required_before_exit", "tool_name": "memory_insert"},
        {"type": "constrain_child_tools", "tool_name": "memory_insert", "children": ["memory_insert"],
         "child_arg_nodes": [{"name": "memory_insert", "args": {"label": "x"}}]},
        {"type": "conditional", "tool_name": "memory_insert", "child_output_mapping": {"a": "fetch_webpage"}},
        {"type": "exit_loop", "tool_name": "web_search"},
        {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 2},
        {"type": "continue_loop", "tool_name": "memory_insert", "prompt_template": "{{ x }}"},
    ])  # fmt: skip
    kept, out = allowed_rules(taken(found).rules, ["memory_insert"])
    assert kept == [
        {"type": "constrain_child_tools", "tool_name": "memory_insert", "children": ["memory_insert"]},
        {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 2},
        {"type": "continue_loop", "tool_name": "memory_insert"},
    ]
    assert out == [
        "the rule run_first of memory_insert, with prefilled arguments",
        "the rule required_before_exit of memory_insert",
        "prefilled arguments of memory_insert",
        "the rule conditional of memory_insert, which needs fetch_webpage",
        "the rule exit_loop of web_search, which needs web_search",
    ]


def test_an_agent_that_answers_in_text_gets_no_send_message() -> None:
    """With it, it would answer over and over again; agents of the older types cannot answer without it."""
    assert "send_message" not in taken(document(tools=["send_message"])).tools
    assert "send_message" in taken(document(tools=["send_message"], agent_type="memgpt_agent")).tools


def test_a_block_above_its_limit_comes_along() -> None:
    """Letta holds nobody to a limit (fact M17), so it exports such blocks."""
    found = document()
    found["blocks"][0] |= {"value": "x" * 50, "limit": 10}
    assert taken(found).blocks[0]["limit"] == 50


def changed(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    """A change of the agent's fields."""
    return lambda found: found["agents"][0].update(fields)


@pytest.mark.parametrize(
    ("damage", "path"),
    [
        (lambda d: d.update(agents=[]), "agents:"),
        (lambda d: d.update(agents=[1]), "agents[0]:"),
        (lambda d: d.update(agents={}), "agents:"),
        (lambda d: d["agents"][0].pop("id"), "agents[0].id:"),
        (lambda d: d.update(tools="all"), "tools:"),
        (lambda d: d.update(tools=[1]), "tools[0]:"),
        (lambda d: d.update(tools=[{"id": "tool-0"}]), "tools[0].name:"),
        (lambda d: d.update(tools=[{"id": 0, "name": "x"}]), "tools[0].id:"),
        (lambda d: d["tools"][0].update(json_schema=[1]), "tools[0].json_schema:"),
        (lambda d: d["tools"][0].update(tags=[1]), "tools[0].tags[0]:"),
        (lambda d: d["tools"][0].update(return_char_limit=0), "tools[0].return_char_limit:"),
        (lambda d: d["tools"][0].update(pip_requirements=[1]), "tools[0].pip_requirements[0]:"),
        (lambda d: d.update(blocks=[{"id": "block-0"}]), "blocks[0].label:"),
        (lambda d: d["blocks"][0].update(value=1), "blocks[0].value:"),
        (lambda d: d["blocks"][0].update(limit=2**40), "blocks[0].limit:"),
        (lambda d: d["blocks"][0].update(metadata=[1]), "blocks[0].metadata:"),
        (lambda d: d.update(mcp_servers=[1]), "mcp_servers[0]:"),
        (lambda d: d.update(isabella=[1]), "isabella:"),
        (lambda d: d.update(isabella={"passages": [{"text": 1}]}), "isabella.passages[0].text:"),
        (lambda d: d.update(isabella={"passages": [{"text": "a", "tags": 7}]}), "isabella.passages[0].tags:"),
        (changed(name=7), "agents[0].name:"),
        (changed(agent_type="voice_convo_agent"), "agents[0].agent_type:"),
        (changed(tags="all"), "agents[0].tags:"),
        (changed(tags=["a", {}]), "agents[0].tags[1]:"),
        (changed(metadata=[1]), "agents[0].metadata:"),
        (changed(metadata={"a": ["\x00"]}), "agents[0].metadata:"),
        (changed(metadata={"\ud800": 1}), "agents[0].metadata:"),
        (changed(system=["x"]), "agents[0].system:"),
        (changed(system="a\x00b"), "agents[0].system:"),
        (changed(llm_config="?"), "agents[0].llm_config:"),
        (changed(tools=3), "agents[0].tools:"),
        (changed(tool_ids=["tool-9"]), "agents[0].tool_ids[0]:"),
        (changed(block_ids=["block-9"]), "agents[0].block_ids[0]:"),
        (changed(memory_blocks=[{"label": "human"}]), "agents[0].block_ids:"),
        (changed(tool_rules=[{"type": "no such rule", "tool_name": "x"}]), "agents[0].tool_rules[0].type:"),
        (changed(tool_rules=[{"type": "run_first"}]), "agents[0].tool_rules[0].tool_name:"),
        (changed(messages=7), "agents[0].messages:"),
        (changed(messages=[{"role": "user"}]), "agents[0].messages[0].id:"),
        (changed(messages=[message(1, "robot", "x")]), "agents[0].messages[0].role:"),
        (changed(messages=[message(1, "user", [7])]), "agents[0].messages[0].content[0]:"),
        (changed(messages=[message(1, "user", [{"text": 7}])]), "agents[0].messages[0].content[0].text:"),
        (changed(messages=[message(1, "user", "x", tool_calls=[{}])]), "agents[0].messages[0].tool_calls[0].id:"),
        (changed(messages=[message(1, "user", "x", created_at="noon")]), "agents[0].messages[0].created_at:"),
        (changed(messages=[message(1, "user", "x")] * 2), "agents[0].messages[1].id:"),
        (changed(in_context_message_ids=["message-9"]), "agents[0].in_context_message_ids[0]:"),
        (changed(secrets=[1]), "agents[0].secrets:"),
    ],
)  # fmt: skip
def test_a_malformed_field_is_named_by_its_path(damage: Callable[[dict[str, Any]], Any], path: str) -> None:
    """A refusal names the field, and says how to get a file that is well-formed."""
    found = document()
    damage(found)
    with pytest.raises(AgentFileRefused) as refused:
        taken(found)
    assert f"malformed at {path}" in refused.value.what
    assert refused.value.remedy


@pytest.mark.parametrize(
    "text", ["", "{", "7", "[]", '"{"', "null", '{"agents": [{"id": NaN}]}', "[" * 100_000, b"\xff\xfe"]
)
def test_no_agent_file(text: str | bytes) -> None:
    """Whatever else is given is refused as what it is."""
    with pytest.raises(AgentFileRefused):
        read(text)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "/etc/passwd", ""])
def test_a_time_zone_that_is_not_known_is_left_out(zone: str) -> None:
    """Letta would refuse the whole file."""
    file = taken(document(timezone=zone))
    assert (file.agent["timezone"], len(file.left_out)) == (None, 1)
    assert taken(document(timezone="Europe/Berlin")).agent["timezone"] == "Europe/Berlin"
