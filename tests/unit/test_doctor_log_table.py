"""What messages mean: the table, held to its own examples, and to the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from isabella.doctor.log_messages import KnownMessage, known_messages, normalise_line, recognise, recognise_in
from tests.support.further_vendors import PROFILES
from tests.support.recorded_messages import MESSAGES, REFUSALS, RecordedMessage

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = [(symptom.id, example) for symptom in known_messages() for example in symptom.examples]

#: Messages that people explain wrongly, word for word, and what each is.
MISUNDERSTOOD = {
    'Error code: 401 – Authentication failed with the LLM model provider. "Wrong API Key"': "wrong-api-key",
    'Error code: 401 – Authentication failed with the LLM model provider.\n    "Wrong API Key"': "wrong-api-key",
    "No provider class found for type 'cerebras'": "no-provider-class",
    "No provider class found for type 'mistral'": "no-provider-class",
    "Failed to sync models for provider 'byok-groq':\n       Client error '401 Unauthorized' for url "
    "https://api.groq.com/openai/v1/models": "model-sync-failed",
    "No encryption key configured. Storing Secret value as plaintext in _enc column.": "no-encryption-key",
}
#: What the refusals of practice vendors are, by their reason; those that no known message is about are not here.
OF_REASON = {
    "wrong_key": ["wrong-api-key"],
    "no_funds": ["out-of-funds"],
    "no_model": ["model-gone"],
    "no_path": ["wrong-path"],
    "too_fast": ["rate-limited"],
    "requests_used_up": ["rate-limited"],
    "tokens_used_up": ["tokens-used-up"],
    "too_large": ["request-over-allowance"],
    "too_long": ["context-overflow"],
}
#: Many word a missing key like a wrong one; LongCat's 403 is about money.
OF_PRACTICE = {
    (vendor, "no_key"): ["wrong-api-key"]
    for vendor in (
        *("groq", "longcat", "mistral", "openrouter", "deepseek", "fireworks", "gemini", "lm-studio", "vllm"),
    )
} | {("longcat", "forbidden"): ["out-of-funds"]}


def ids(text: str) -> list[str]:
    """What is recognised in a text."""
    return [one.message.id for one in recognise(text)]


@pytest.mark.parametrize(("symptom", "example"), EXAMPLES)
def test_examples_are_recognised(symptom: str, example: str) -> None:
    """Each example of an entry is recognised as that entry and as no other."""
    assert ids(example) == [symptom]


@pytest.mark.parametrize("server", REFUSALS)
def test_recorded_refusals(server: str) -> None:
    """A refusal that somebody published is recognised as what it is and as nothing else, however Letta words it."""
    recorded = REFUSALS[server]
    assert ids(recorded.quoted) == [recorded.message]
    for before in ("Bad request to OpenAI-compatible endpoint", "Rate limited by OpenAI", "OpenAI API error"):
        assert ids(f"INVALID_ARGUMENT: {before}: {recorded.quoted} [BYOK]") == [recorded.message]


@pytest.mark.parametrize("recorded", MESSAGES, ids=lambda one: one.message)
def test_recorded_messages(recorded: RecordedMessage) -> None:
    """A message that somebody published is recognised as what it is and as nothing else."""
    assert ids(recorded.text) == [recorded.message]


def test_each_recorded_message_has_a_source() -> None:
    """An address, or a file of Letta or of this project."""
    sources = {refusal.source for refusal in REFUSALS.values()} | {message.source for message in MESSAGES}
    assert {source for source in sources if not source.startswith(("https://", "letta/", "practice/"))} == set()


@pytest.mark.parametrize("vendor", PROFILES)
def test_refusals_of_practice_vendors(vendor: str) -> None:
    """What each vendor answers in practice, in its own words, is recognised for its reason."""
    for reason, shape in PROFILES[vendor].refusals.items():
        body = json.loads(re.sub(r"%\w+%", "7", shape.body))
        assert ids(f"Error code: {shape.status} - {body}") == OF_PRACTICE.get(
            (vendor, reason), OF_REASON.get(reason, [])
        )


@pytest.mark.parametrize(("text", "symptom"), MISUNDERSTOOD.items())
def test_wrong_explanations_are_corrected(text: str, symptom: str) -> None:
    """Each message is recognised, broken lines and typography included, and what people say of it is corrected."""
    (one,) = recognise(text)
    assert one.message.id == symptom
    assert one.message.correction


@pytest.mark.parametrize("symptom", known_messages(), ids=lambda one: one.id)
def test_entries_are_complete(symptom: KnownMessage) -> None:
    """Each entry says what it means, where it is printed and what to do; its facts exist; ids are not used twice."""
    assert symptom.meaning
    assert symptom.releases
    assert symptom.remedy
    assert symptom.examples
    assert [one.id for one in known_messages()].count(symptom.id) == 1
    known = set(re.findall(r"^\| ([RPOMCAG]\d+) \|", (DOCS / "facts.md").read_text(), re.MULTILINE))
    assert set(symptom.facts) <= known
    others = {one.id for one in known_messages()}
    assert symptom.unless <= others


def test_what_the_message_names_is_named_in_the_answer() -> None:
    """Provider and type of a message stand in what it means and in the command."""
    (sync,) = recognise("Failed to sync models for provider 'acme-7': Client error '403 Forbidden' for url http://x")
    assert "isabella providers sync --only acme-7" in sync.remedy
    (kind,) = recognise("No provider class found for type 'mistral'")
    assert "mistral" in kind.meaning
    (bare,) = recognise("conflicts with an existing base provider")
    assert "{" not in bare.meaning


def test_a_log_is_counted() -> None:
    """In a log each message is told once, with how often it was met; lines in between do not matter."""
    line = "Letta.letta.schemas.secret - WARNING - No encryption key configured. Storing Secret value as plaintext"
    log = [line, "INFO - nothing", line, "\x1b[31mConnect call failed ('127.0.0.1', 5432)\x1b[0m", line]
    found = {one.message.id: one.count for one in recognise_in(log)}
    assert found == {"no-encryption-key": 3, "database-refused": 1}


def test_messages_of_a_paste_are_counted_once() -> None:
    """A message is not counted again with each line that follows it."""
    (one,) = recognise("DUMMY_API_KEY\nnothing\nnothing else")
    assert one.count == 1


@pytest.mark.parametrize("text", ["", "\n\n", "All is well.", "GET /v1/agents/ 200", "401"])
def test_other_texts_are_not_recognised(text: str) -> None:
    """What is no known message is not taken for one."""
    assert ids(text) == []


def test_a_key_in_a_paste_is_not_repeated() -> None:
    """What is quoted of a text shows no key that stood in it, though this program never saw it before."""
    (one,) = recognise("Incorrect API key provided: csk-pasted-by-accident-0815. Error code: 401 wrong api key")
    assert "pasted-by-accident" not in str(one.as_json())


def test_normal_form() -> None:
    """Colours, typographic dashes and quotes, and runs of spaces make no difference."""
    assert normalise_line("\x1b[1m“A”  –\tb’s\x1b[0m ") == '"A" - b\'s'


def table() -> str:
    """The table of symptoms as it stands in docs/doctor.md."""
    rows = ["| Message | Layer | Releases | What it means, and what to do |", "|---|---|---|---|"]
    for symptom in known_messages():
        text = re.sub(r"\{\w+\|([^}]*)\}", r"\1", f"{symptom.meaning} **Do:** {symptom.remedy}")
        if symptom.correction:
            text += f" **But:** {symptom.correction}"
        facts = f" ({', '.join(symptom.facts)})" if symptom.facts else ""
        title = symptom.examples[0] if len(symptom.examples[0]) < 120 else symptom.title
        cells = (
            f"`{title}`" if title is not symptom.title else title,
            symptom.layer.heading,
            symptom.releases,
            text + facts,
        )
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def test_the_documentation_has_the_table() -> None:
    """docs/doctor.md shows the table as the data have it; `python tests/unit/test_doctor_log_table.py` prints it."""
    assert table() in (DOCS / "doctor.md").read_text()


if __name__ == "__main__":
    print(table(), end="")
