"""Rows of agents and messages, copied in Letta's database: ten thousand POSTs would take hours."""

from __future__ import annotations

import psycopg

from isabella.embedded import Letta

#: The id of the copy of a row with the number n: the same wherever the row is referred to, and a UUID of version 4,
#: which Letta checks.
_UUID = "overlay(overlay(md5({id} || n) placing '4' from 13) placing '8' from 17)::uuid"
_AGENT = f"'agent-' || {_UUID.format(id='%(agent)s')}"
_BLOCK = f"'block-' || {_UUID.format(id='one.id')}"
_MESSAGE = f"'message-' || {_UUID}"
_COPIES = "generate_series(%(first)s::int, %(last)s::int) AS n"

#: The rows to copy are read once: the tables grow while they are copied.
_ONE = "WITH one AS MATERIALIZED (SELECT {columns} WHERE {owner} = %(agent)s) INSERT INTO"
_OF_BLOCKS = "block AS whole, block.id, block_label FROM block JOIN blocks_agents ON block_id = block.id"

_COPY_AGENT = (
    # The order of statements follows the foreign keys.
    f"""
    {_ONE.format(columns="agents AS whole, created_at, message_ids FROM agents", owner="id")}
    agents SELECT copy.* FROM one, {_COPIES},
        LATERAL jsonb_populate_record(whole, jsonb_build_object(
            'id', {_AGENT}, 'name', %(name)s || n, 'created_at', one.created_at + n * interval '1 millisecond',
            'message_ids', (SELECT jsonb_agg({_MESSAGE.format(id="id")} ORDER BY place)
                FROM jsonb_array_elements_text(one.message_ids::jsonb) WITH ORDINALITY AS ids(id, place)))) AS copy
    """,
    f"""
    {_ONE.format(columns="tag FROM agents_tags", owner="agent_id")}
    agents_tags (agent_id, tag) SELECT {_AGENT}, tag FROM one, {_COPIES}
    """,
    f"""
    {_ONE.format(columns="tool_id FROM tools_agents", owner="agent_id")}
    tools_agents (agent_id, tool_id) SELECT {_AGENT}, tool_id FROM one, {_COPIES}
    """,
    f"""
    {_ONE.format(columns=_OF_BLOCKS, owner="agent_id")}
    block SELECT copy.* FROM one, {_COPIES}, LATERAL jsonb_populate_record(whole, jsonb_build_object(
        'id', {_BLOCK}, 'current_history_entry_id', NULL)) AS copy
    """,
    f"""
    {_ONE.format(columns=_OF_BLOCKS, owner="agent_id")}
    blocks_agents (agent_id, block_id, block_label) SELECT {_AGENT}, {_BLOCK}, block_label FROM one, {_COPIES}
    """,
    f"""
    {_ONE.format(columns="messages AS whole, id FROM messages", owner="agent_id")}
    messages SELECT copy.* FROM one, {_COPIES},
        LATERAL jsonb_populate_record(whole, jsonb_build_object(
            'id', {_MESSAGE.format(id="one.id")}, 'agent_id', {_AGENT}, 'step_id', NULL, 'run_id', NULL,
            'sequence_id', nextval('message_seq_id'))) AS copy
    """,
)
#: In pairs of a message and its answer, a second apart, and before the messages that the agent has.
_COPY_MESSAGES = f"""
    WITH said AS MATERIALIZED (
        SELECT DISTINCT ON (role) messages AS whole, created_at, role = 'user' AS asked FROM messages
        WHERE agent_id = %(agent)s AND role IN ('user', 'assistant') ORDER BY role, sequence_id)
    INSERT INTO messages SELECT copy.* FROM said JOIN {_COPIES} ON asked = (n %% 2 = 0),
        LATERAL jsonb_populate_record(whole, jsonb_build_object(
            'id', 'message-00000000-0000-4000-8000-' || lpad(n::text, 12, '0'), 'step_id', NULL, 'run_id', NULL,
            'created_at', said.created_at - n * interval '1 second',
            'sequence_id', nextval('message_seq_id'))) AS copy
"""
_BULK = "DELETE FROM messages WHERE id LIKE 'message-00000000-%'"


def copy_agent(letta: Letta, agent_id: str, name: str, *, numbers: range) -> None:
    """Copy an agent with blocks, tools, tags and messages of its own, once for each number; it follows the name."""
    if numbers:
        values = {"agent": agent_id, "name": name, "first": numbers[0], "last": numbers[-1]}
        with psycopg.connect(letta.database_url.get_secret_value()) as database:
            for statement in _COPY_AGENT:
                database.execute(statement, values)
        settle(letta)


def add_messages(letta: Letta, agent_id: str, number: int) -> None:
    """Give an agent so many older messages, outside its context. It has a message and an answer already."""
    values = {"agent": agent_id, "first": 1, "last": number}
    with psycopg.connect(letta.database_url.get_secret_value()) as database:
        copied = database.execute(_COPY_MESSAGES, values).rowcount
        assert copied == number, copied
    settle(letta)


def remove_messages(letta: Letta) -> None:
    """Remove all messages that were added."""
    with psycopg.connect(letta.database_url.get_secret_value()) as database:
        database.execute(_BULK)
    settle(letta, full=True)


def settle(letta: Letta, *, full: bool = False) -> None:
    """Do now what Postgres would do in the background: reclaim space, and count rows."""
    with psycopg.connect(letta.database_url.get_secret_value(), autocommit=True) as database:
        database.execute(f"VACUUM ({'FULL, ' if full else ''}ANALYZE)")
