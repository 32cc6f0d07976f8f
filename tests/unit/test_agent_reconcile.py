"""What the file asks for that an agent was not given yet: pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isabella.agents import metadata
from isabella.agents.definitions import AgentDefinition, BlockDefinition
from isabella.agents.history import HistoryEntry
from isabella.agents.memory import MemoryBlock
from isabella.agents.metadata import AgentMetadata
from isabella.agents.reconcile import DefinitionDiff, diff_definition
from isabella.agents.reflection import lost
from isabella.agents.registry import AgentRecord, select_agent
from isabella.errors import AgentUnknown

WANTED = AgentDefinition(
    "ada",
    "Ada",
    "A test.",
    "You are Ada.",
    (BlockDefinition("human", "About the user."),),
    ("memory_insert",),
    ("cerebras/x",),
)


def record(definition: AgentDefinition = WANTED, **changes: object) -> AgentRecord:
    """An agent that a definition has made."""
    noted = AgentMetadata(metadata.fingerprints(definition), definition.tools)
    made = AgentRecord(
        "agent-1",
        definition.name,
        definition.description,
        definition,
        tags=(metadata.MANAGED_TAG, metadata.definition_tag(definition.id)),
        blocks={block.label: f"block-{block.label}" for block in definition.blocks},
        tools={tool: f"tool-{tool}" for tool in definition.tools},
        metadata=noted.into({"theirs": 1}),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_an_agent_that_the_file_has_made_needs_nothing() -> None:
    """Nothing differs, whatever somebody has changed in Letta since."""
    assert diff_definition(WANTED, record()) == DefinitionDiff()
    assert diff_definition(WANTED, record(name="Nickname", description="?")) == DefinitionDiff()
    assert diff_definition(WANTED, record(tools={"memory_insert": "t", "other": "t2"})) == DefinitionDiff()


def test_only_what_the_file_changed_is_changed() -> None:
    """A new persona is one field; name and tools stay as they are."""
    changed = diff_definition(replace(WANTED, persona="You are Ada, still."), record(name="Nickname"))
    assert changed == DefinitionDiff(fields={"system": "You are Ada, still."}, said=("persona",))


def test_tools_of_others_stay_and_those_of_the_file_go_with_it() -> None:
    """What the file had and has no longer is taken off; what it never had is left."""
    there = record(tools={"memory_insert": "t1", "theirs": "t2"})
    changed = diff_definition(replace(WANTED, tools=("memory_replace",)), there)
    assert (changed.tools, changed.tools_off) == (("memory_replace",), ("memory_insert",))


def test_a_new_beginning_of_a_block_changes_nothing() -> None:
    """`value` is for the first time only; description and limit are the file's."""
    begins = replace(WANTED, blocks=(BlockDefinition("human", "About the user.", value="Likes figs."),))
    assert diff_definition(begins, record()) == DefinitionDiff()
    wider = replace(WANTED, blocks=(BlockDefinition("human", "About the user.", limit=9000),))
    assert diff_definition(wider, record()).block_fields["human"]["limit"] == 9000
    assert "value" not in diff_definition(wider, record()).block_fields["human"]


def test_a_block_that_was_taken_from_an_agent_is_not_forced_on_it() -> None:
    """A new block is made; one that it had once stays away."""
    assert diff_definition(WANTED, record(blocks={})) == DefinitionDiff()
    more = replace(WANTED, blocks=(*WANTED.blocks, BlockDefinition("plans", "Plans.")))
    assert [block.label for block in diff_definition(more, record()).blocks] == ["plans"]


def test_notes_leave_the_metadata_of_others_alone() -> None:
    """Isabella's marks stand below one key, and read back as they were."""
    noted = AgentMetadata({"name": "1"}, ("a",), {"source": "text", "model": None, "dimensions": 0}, "message-1")
    metadata = noted.into({"theirs": 1})
    assert metadata["theirs"] == 1
    assert AgentMetadata.read(metadata) == noted
    assert AgentMetadata.read({"isabella": "broken"}) == AgentMetadata()
    assert AgentMetadata.read(None) == AgentMetadata()


def test_names_are_found_ours_first_and_ambiguity_is_told() -> None:
    """Id, our name, definition, their name, and case last; two alike are told by their ids."""
    ours = record()
    theirs = AgentRecord("agent-2", "Ada")
    twins = [AgentRecord("agent-3", "Twin"), AgentRecord("agent-4", "Twin")]
    everybody = [theirs, ours, *twins]
    assert select_agent("Ada", everybody) is ours
    assert select_agent("ada", everybody) is ours
    assert select_agent("agent-2", everybody) is theirs
    assert select_agent("ADA", [theirs]) is theirs
    with pytest.raises(AgentUnknown, match="2 agents") as several:
        select_agent("Twin", everybody)
    assert "agent-4" in (several.value.remedy or "")
    with pytest.raises(AgentUnknown) as nobody:
        select_agent("Bob", everybody)
    assert "Available: Ada" in (nobody.value.remedy or "")


def test_a_line_is_lost_only_when_it_stands_nowhere() -> None:
    """Moved, re-wrapped, or merged into another line is not lost."""

    def block(label: str, value: str) -> MemoryBlock:
        return MemoryBlock(f"block-{label}", label, value, 1000, "", False)

    before = [block("human", "Likes figs.\nHas a dog.\n\nLives in  Ghent."), block("threads", "Rent is due.")]
    assert lost(before, {"human": "Lives in Ghent. Likes figs.", "threads": "has a dog.\nrent is due."}) == {}
    assert lost(before, {"human": "Likes figs.", "threads": ""}) == {
        "human": ["Has a dog.", "Lives in Ghent."],
        "threads": ["Rent is due."],
    }


def test_a_version_changes_with_the_text_and_only_with_it() -> None:
    """The same text has the same version, in whatever block."""
    one, other = MemoryBlock("b1", "human", "x", 10, "", False), MemoryBlock("b2", "self", "x", 99, "d", True)
    assert one.version == other.version
    assert one.version != replace(one, value="y").version
    assert HistoryEntry("m", "", "user", "x").tool is None
