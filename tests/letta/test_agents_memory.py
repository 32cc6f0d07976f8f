"""Memory over HTTP, on a real Letta: blocks, passages, history, and what a client may get wrong."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import Backend, backend

NO_PASSAGE = "passage-00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def served(empty_letta: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend whose agents have Mistral's vectors."""
    with (
        PracticeVendors() as vendors,
        backend(empty_letta, tmp_path_factory.mktemp("home"), vendors) as running,
    ):
        yield running


@pytest.fixture
def agent(served: Backend) -> str:
    """The path of a fresh agent."""
    name = served.agent(f"memory{secrets.token_hex(3)}", "cerebras/gpt-oss-120b")
    return f"/api/agents/{name}"


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which has the one form."""
    error = answer.json()["error"]
    assert error["message"]
    return answer.status_code, error["code"]


def test_an_edit_that_saw_the_present_text_is_written(served: Backend, agent: str) -> None:
    """The ETag of what was read lets it be replaced, and the agent knows the new text at once."""
    read = served.client.get(f"{agent}/blocks/human")
    etag = read.headers["etag"]
    assert etag == f'"{read.json()["version"]}"'
    written = served.client.put(
        f"{agent}/blocks/human", json={"value": "Has a cat called Mina."}, headers={"If-Match": etag}
    )
    assert written.status_code == 200
    assert written.headers["etag"] != etag
    assert "Mina" in served.say(agent.rsplit("/", 1)[1], "What is my cat called?").text


def test_an_edit_of_a_text_that_is_no_longer_there_is_detected(served: Backend, agent: str) -> None:
    """Of two editors the second is told, by 412 or 409, with the version that is there; nothing is lost."""
    seen = served.client.get(f"{agent}/blocks/human").json()["version"]
    assert served.client.put(f"{agent}/blocks/human", json={"value": "First.", "version": seen}).status_code == 200
    late = served.client.put(f"{agent}/blocks/human", json={"value": "Second.", "version": seen})
    assert code(late) == (409, "memory_changed")
    late = served.client.put(f"{agent}/blocks/human", json={"value": "Second."}, headers={"If-Match": f'"{seen}"'})
    assert code(late) == (412, "memory_changed")
    now = served.client.get(f"{agent}/blocks/human").json()
    assert now["value"] == "First."
    assert late.json()["error"]["details"]["version"] == now["version"]
    assert code(served.client.put(f"{agent}/blocks/human", json={"value": "x"})) == (428, "version_required")
    forced = served.client.put(f"{agent}/blocks/human", json={"value": "Third."}, headers={"If-Match": "*"})
    assert forced.json()["value"] == "Third."


def test_of_many_editors_at_once_exactly_one_wins(served: Backend, agent: str) -> None:
    """Twelve edits of the same text at the same moment: one is written, the others are told."""
    seen = served.client.get(f"{agent}/blocks/human").json()["version"]

    def edit(number: int) -> int:
        body = {"value": f"Editor {number}.", "version": seen}
        return served.client.put(f"{agent}/blocks/human", json=body).status_code

    with ThreadPoolExecutor(12) as editors:
        statuses = sorted(editors.map(edit, range(12)))
    assert statuses == [200, *[409] * 11]


def test_a_change_by_the_agent_itself_is_detected(served: Backend, agent: str) -> None:
    """What the agent writes between reading and editing is not overwritten."""
    seen = served.client.get(f"{agent}/blocks/human").json()["version"]
    served.say(agent.rsplit("/", 1)[1], "Remember that my dog is called Rex.")
    late = served.client.put(f"{agent}/blocks/human", json={"value": "Nothing.", "version": seen})
    assert code(late) == (409, "memory_changed")
    assert "Rex" in served.client.get(f"{agent}/blocks/human").json()["value"]


def test_a_text_above_the_limit_never_reaches_letta(served: Backend, agent: str) -> None:
    """Letta enforces no limit; the backend does, to the character."""
    block = served.client.get(f"{agent}/blocks/human").json()
    limit = block["limit"]
    put = {"If-Match": "*"}
    too_long = served.client.put(f"{agent}/blocks/human", json={"value": "x" * (limit + 1)}, headers=put)
    assert code(too_long) == (422, "memory_too_long")
    assert served.client.get(f"{agent}/blocks/human").json()["value"] == block["value"]
    fits = served.client.put(f"{agent}/blocks/human", json={"value": "x" * min(limit, 1000)}, headers=put)
    assert fits.status_code == 200


def test_passages_are_added_listed_found_by_meaning_and_deleted(served: Backend) -> None:
    """A search finds the passage that is nearest in meaning, with vectors from Mistral and Mistral's own key."""
    served.vendors.forget()
    path = "/api/agents/isabella/passages"
    texts = ["The boiler was repaired in May.", "Rex likes long walks on the beach.", "The rent is due on the fifth."]
    made = [served.client.post(path, json={"text": text, "tags": ["house"]}).json() for text in texts]
    found = served.client.get(
        "/api/agents/isabella/search", params={"q": "repairing a boiler", "in": "archive"}
    ).json()
    assert [one["text"] for one in found["passages"] if one["near"]] == [texts[0]]
    assert len(found["passages"]) == len(texts)
    nothing = served.client.get("/api/agents/isabella/search", params={"q": "quantum physics", "in": "archive"})
    assert [one["near"] for one in nothing.json()["passages"]] == [False] * len(texts)
    asked = [request for request in served.vendors.requests("mistral") if request.path.endswith("/embeddings")]
    # One for each passage and each query, and one for the texts that distances are compared with.
    assert len(asked) == len(texts) + 2 + 1
    assert all(request.carries(served.vendors.key("mistral").get_secret_value()) for request in asked)
    assert served.foreign_keys() == []
    pages, after = [], None
    while True:
        page = served.client.get(path, params={"limit": 2, **({"after": after} if after else {})}).json()
        pages += [passage["id"] for passage in page["passages"]]
        after = page["after"]
        if after is None:
            break
    assert [passage["id"] for passage in made] == [id for id in pages if id in {p["id"] for p in made}]
    for passage in made:
        assert served.client.delete(f"{path}/{passage['id']}").status_code == 204
        assert code(served.client.delete(f"{path}/{passage['id']}")) == (404, "memory_unknown")


def test_a_passage_is_deleted_by_its_own_agent_only(served: Backend, agent: str) -> None:
    """Letta's route deletes anybody's passage; ours looks whose it is."""
    passage = served.client.post("/api/agents/isabella/passages", json={"text": "Not yours."}).json()["id"]
    assert code(served.client.delete(f"{agent}/passages/{passage}")) == (404, "memory_unknown")
    served.client.post(f"{agent}/passages", json={"text": "An archive of its own."}).raise_for_status()
    assert code(served.client.delete(f"{agent}/passages/{passage}")) == (404, "memory_unknown")
    assert served.client.delete(f"/api/agents/isabella/passages/{passage}").status_code == 204


def test_vectors_that_cannot_be_had_are_said_so(served: Backend) -> None:
    """When Mistral refuses, a passage is not half written, and the answer is no 500."""
    served.vendors.fault("mistral", on="embeddings", status=401)
    try:
        answer = served.client.post("/api/agents/isabella/passages", json={"text": "Lost?"})
    finally:
        served.vendors.clear()
    assert code(answer) == (502, "letta_broken")
    texts = [p["text"] for p in served.client.get("/api/agents/isabella/passages").json()["passages"]]
    assert "Lost?" not in texts


def test_the_address_of_vectors_tells_nobody_that_it_is_there(served: Backend) -> None:
    """Without the secret in the path every path is alike: one that does not exist, too, is for known senders only."""
    body = {"model": "mistral-embed", "input": ["x"]}
    for path in ("/embeddings/guess/v1/embeddings", "/no/such/path"):
        answer = httpx.post(f"{served.url}{path}", json=body, headers={"Authorization": "x"})
        assert code(answer) == (401, "unauthorized")


def test_the_history_comes_page_by_page_newest_last(served: Backend, agent: str) -> None:
    """Going back from the newest page gives every message once, in order."""
    name = agent.rsplit("/", 1)[1]
    said = [f"This is line {number}." for number in range(5)]
    for line in said:
        served.say(name, line)
    entries: list[dict[str, str]] = []
    before = None
    while True:
        page = served.client.get(
            f"{agent}/messages", params={"limit": 3, **({"before": before} if before else {})}
        ).json()
        entries = page["messages"] + entries
        before = page["before"]
        if before is None:
            break
    assert [entry["text"] for entry in entries if entry["kind"] == "user"] == said
    found = served.client.get(f"{agent}/search", params={"q": "LINE 3", "in": "messages"}).json()["messages"]
    assert said[3] in [entry["text"] for entry in found]


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/api/agents/nobody", None, (404, "agent_unknown")),
        ("GET", "/api/agents/%00", None, (404, "agent_unknown")),
        ("GET", "/api/agents/isabella/blocks/nothing", None, (404, "memory_unknown")),
        ("PUT", "/api/agents/isabella/blocks/nothing", '{"value":"x","version":"*"}', (404, "memory_unknown")),
        ("PUT", "/api/agents/isabella/blocks/human", '{"value":"a\\u0000b","version":"*"}', (422, "memory_refused")),
        ("PUT", "/api/agents/isabella/blocks/human", '{"value":"\\ud800","version":"*"}', (422, "invalid_request")),
        ("PUT", "/api/agents/isabella/blocks/human", b'{"value":"\xff"}', (400, "bad_request")),
        ("PUT", "/api/agents/isabella/blocks/human", "not json", (422, "invalid_request")),
        ("PUT", "/api/agents/isabella/blocks/human", '{"value":1}', (422, "invalid_request")),
        ("POST", "/api/agents/isabella/passages", '{"text":""}', (422, "invalid_request")),
        ("POST", "/api/agents/isabella/passages", '{"text":"  "}', (422, "invalid_request")),
        ("POST", "/api/agents/isabella/passages", json.dumps({"text": "word " * 60_000}), (422, "invalid_request")),
        (
            "POST",
            "/api/agents/isabella/passages",
            json.dumps({"text": "\U0001f431" * 9_000}),
            (422, "memory_too_long"),
        ),
        ("DELETE", "/api/agents/isabella/passages/x%3Flimit=1", None, (422, "invalid_request")),
        ("DELETE", f"/api/agents/isabella/passages/{NO_PASSAGE}", None, (404, "memory_unknown")),
        ("GET", "/api/agents/isabella/messages?limit=0", None, (422, "invalid_request")),
        (
            "GET",
            "/api/agents/isabella/messages?before=message-00000000-0000-4000-8000-000000000000",
            None,
            (404, "memory_unknown"),
        ),
        ("GET", "/api/agents/isabella/search", None, (422, "invalid_request")),
        ("POST", "/api/agents/isabella/switch", '{"handle":"nobody/model"}', (409, "model_unknown")),
        ("POST", "/api/agents/isabella/switch", '{"handle":""}', (422, "invalid_request")),
        ("POST", "/api/agents/import", "{", (422, "agent_file_refused")),
        ("POST", "/api/agents/import", "[" * 100_000, (422, "agent_file_refused")),
        ("POST", "/api/agents/import", "{}", (422, "agent_file_refused")),
        ("POST", "/api/agents/import", '{"agents":[{"name":"a/b"}]}', (422, "agent_file_refused")),
        ("POST", "/api/agents/import?name=Ghost", '{"agents":[{"name":"x"}]}', (422, "agent_file_refused")),
        ("POST", "/api/agents/import?name=Ghost", '{"agents":[{"name":"x","tools":3}]}', (422, "agent_file_refused")),
        *(
            ("POST", "/api/agents/import?name=Ghost", json.dumps(file), (422, "agent_file_refused"))
            for file in (
                {"agents": [{"id": "agent-0", "metadata": [1]}]},
                {"agents": [{"id": "agent-0", "tags": 1}]},
                {"agents": [{"id": "agent-0"}], "tools": [{"id": 1}]},
                {"agents": [{"id": "agent-0", "tools": ["web_search"]}]},
            )
        ),
    ],
)
def test_a_clients_mistake_has_a_status_and_a_message_of_its_own(
    served: Backend, method: str, path: str, body: str | bytes | None, expected: tuple[int, str]
) -> None:
    """Never 500, and always the one form."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    content = body.encode() if isinstance(body, str) else body
    assert code(served.client.request(method, path, content=content, headers=headers)) == expected


def test_the_agents_are_listed_with_what_they_speak_through(served: Backend) -> None:
    """Isabella and the one that reflects on her are there, bound, with Mistral's vectors, and without a problem."""
    agents = {agent["definition"]: agent for agent in served.client.get("/api/agents").json()["agents"]}
    isabella, reflection = agents["isabella"], agents["reflection"]
    assert isabella["model"]["handle"] in isabella["handles"]
    assert isabella["model"]["window"] > 8192
    assert isabella["archive"] == "mistral"
    assert isabella["problem"] is None
    assert reflection["reflects_on"] == "isabella"
    assert set(served.client.get("/api/models").json()["handles"]) >= set(isabella["handles"])


def test_an_agent_is_created_renamed_and_duplicated(served: Backend) -> None:
    """It answers at once on the chosen model, prefers those of its definition, and its copy knows what it knew."""
    name = f"Clara{secrets.token_hex(3)}"
    handle = "byok-mistral/mistral-medium-latest"
    body = {"name": name, "handle": handle, "persona": "I am Clara."}
    created = served.client.post("/api/agents", json=body)
    assert created.status_code == 201, created.text
    assert created.json()["model"]["handle"] == created.json()["handles"][0] == handle
    assert "cerebras/gpt-oss-120b" in created.json()["handles"]
    assert created.json()["definition"] is None
    assert set(created.json()["blocks"]) == {"human", "threads", "self"}
    assert code(served.client.post("/api/agents", json={"name": name.upper()})) == (409, "agent_exists")
    refused = served.client.post("/api/agents", json={"name": f"{name}x", "handle": "cerebras/none"})
    assert code(refused) == (409, "model_unknown")
    unknown = served.client.post("/api/agents", json={"name": f"{name}x", "definition": "reflection"})
    assert code(unknown) == (404, "agent_unknown")
    served.say(name, "Remember that my dog is called Rex.")
    served.client.post(f"/api/agents/{name}/passages", json={"text": "Rex likes the beach.", "tags": ["dog"]})
    renamed = served.client.patch(f"/api/agents/{name}", json={"name": f"{name} II"})
    assert (renamed.status_code, renamed.json()["id"]) == (200, created.json()["id"])
    assert code(served.client.get(f"/api/agents/{name}")) == (404, "agent_unknown")
    assert code(served.client.patch(f"/api/agents/{name} II", json={"name": "Isabella"})) == (409, "agent_exists")
    copied = served.client.post(f"/api/agents/{name} II/duplicate", json={"name": f"{name} III"})
    assert (copied.status_code, copied.json()["passages"]) == (201, 1), copied.text
    copy = served.client.get(f"/api/agents/{name} III").json()
    assert copy["handles"] == created.json()["handles"]
    assert copy["tools"] == created.json()["tools"]
    served.client.put(f"/api/agents/{name} III/blocks/human", json={"value": "Nothing.", "version": "*"})
    assert "Rex" in served.client.get(f"/api/agents/{name} II/blocks/human").json()["value"]
    assert "Rex" in served.say(f"{name} III", "What is my dog called?").text


def test_a_deleted_agent_leaves_nothing_but_what_others_share(served: Backend) -> None:
    """What is lost is said before; blocks of its own and its archive go with it, a block of another agent stays."""
    name = served.agent(f"gone{secrets.token_hex(3)}", "cerebras/gpt-oss-120b")
    other = served.agent(f"stays{secrets.token_hex(3)}", "cerebras/gpt-oss-120b")
    id, blocks = served.id_of(name), served.letta.get(f"/v1/agents/{served.id_of(name)}").json()["blocks"]
    own, shared = (next(one["id"] for one in blocks if one["label"] == label) for label in ("persona", "human"))
    others = served.letta.get(f"/v1/agents/{served.id_of(other)}").json()["blocks"]
    replaced = next(one["id"] for one in others if one["label"] == "human")
    served.letta.patch(f"/v1/agents/{served.id_of(other)}/core-memory/blocks/detach/{replaced}").raise_for_status()
    served.letta.patch(f"/v1/agents/{served.id_of(other)}/core-memory/blocks/attach/{shared}").raise_for_status()
    served.say(name, "Say hi")
    served.client.post(f"/api/agents/{name}/passages", json={"text": "Only here."})
    (archive,) = served.letta.get("/v1/archives/", params={"agent_id": id}).json()
    losses = served.client.get(f"/api/agents/{name}/losses").json()
    assert losses == {
        "messages": {"number": 2, "more": False},
        "passages": {"number": 1, "more": False},
        "blocks": ["persona"],
        "shared": {"human": [other]},
        "defined": True,
    }
    assert served.client.delete(f"/api/agents/{name}").status_code == 204
    assert code(served.client.get(f"/api/agents/{name}")) == (404, "agent_unknown")
    assert served.letta.get(f"/v1/blocks/{own}").status_code == 404
    assert served.letta.get(f"/v1/archives/{archive['id']}").status_code == 404
    found = served.letta.post("/v1/passages/search", json={"query": None, "limit": 100}).json()
    assert "Only here." not in [one["passage"]["text"] for one in found]
    assert served.letta.get(f"/v1/blocks/{shared}").status_code == 200
    assert served.client.get(f"/api/agents/{other}/blocks/human").status_code == 200
    served.letta.delete(f"/v1/blocks/{replaced}")


def test_the_prompt_is_shown_in_parts(served: Backend, agent: str) -> None:
    """System prompt, blocks, tools and messages, each with its tokens; a key that was told is masked."""
    key = served.vendors.key("groq").get_secret_value()
    served.say(agent.rsplit("/", 1)[1], f"Remember that my cat is Mina and my key {key}.")
    prompt = served.client.get(f"{agent}/prompt")
    assert key not in prompt.text
    parts = prompt.json()["parts"]
    assert {"block", "tool", "message"} <= {part["kind"] for part in parts}
    assert {"human", "persona"} <= {part["name"] for part in parts if part["kind"] == "block"}
    said = [part for part in parts if part["kind"] == "message"]
    assert (said[0]["name"], "Mina" in said[0]["text"]) == ("user", True)
    assert 0 < prompt.json()["tokens"] < prompt.json()["window"]
    assert abs(sum(part["tokens"] for part in parts) - prompt.json()["tokens"]) <= len(parts)


def test_the_history_of_a_block_says_who_wrote_what(served: Backend, agent: str) -> None:
    """The agent, a person and somebody past Isabella; any version can be restored, and the present one stays."""
    name = agent.rsplit("/", 1)[1]
    served.say(name, "Remember that my dog is called Rex.")
    block = served.client.get(f"{agent}/blocks/human").json()
    served.client.put(f"{agent}/blocks/human", json={"value": "Has a cat.", "version": block["version"]})
    (id,) = (
        one["id"]
        for one in served.letta.get(f"/v1/agents/{served.id_of(name)}").json()["blocks"]
        if one["label"] == "human"
    )
    served.letta.patch(f"/v1/blocks/{id}", json={"value": "Has a bird."}).raise_for_status()
    history = served.client.get(f"{agent}/blocks/human/history").json()
    newest_first = [(one["author"], one["value"]) for one in history["versions"]]
    assert newest_first[:2] == [("unknown", "Has a bird."), ("person", "Has a cat.")]
    # The record begins with what the agent wrote in its first turn: it was created past Isabella.
    assert newest_first[2] == ("first", block["value"])
    assert (history["complete"], history["before"]) == (True, None)
    page = served.client.get(f"{agent}/blocks/human/history", params={"limit": 1}).json()
    assert page["before"] == history["versions"][0]["number"]
    wanted = history["versions"][2]["number"]
    stale = served.client.post(f"{agent}/blocks/human/restore", json={"number": wanted, "version": block["version"]})
    assert code(stale) == (409, "memory_changed")
    present = history["versions"][0]["version"]
    restored = served.client.post(f"{agent}/blocks/human/restore", json={"number": wanted, "version": present})
    assert restored.json()["value"] == block["value"]
    newest = served.client.get(f"{agent}/blocks/human/history").json()["versions"][0]
    assert (newest["author"], newest["restored"], newest["value"]) == ("person", wanted, block["value"])
    none = served.client.post(f"{agent}/blocks/human/restore", json={"number": 999, "version": "*"})
    assert code(none) == (404, "memory_unknown")
    # Now that there is a record, what the agent writes is the agent's, with the message behind it.
    served.say(name, "Remember that my boat is called Aurora.")
    newest = served.client.get(f"{agent}/blocks/human/history").json()["versions"][0]
    assert (newest["author"], newest["agent"]) == ("agent", name)
    messages = served.client.get(f"{agent}/messages").json()["messages"]
    assert newest["message"] == next(one["id"] for one in messages if "Aurora" in one["text"])
