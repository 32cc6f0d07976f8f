"""What was seen, before anybody says what it means: frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from isabella.errors import IsabellaError
from isabella.letta.encryption import KeyReading
from isabella.letta.llm_config import LlmConfig
from isabella.letta.releases import Capabilities
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Desired
from isabella.vendors.client import VendorAnswer

if TYPE_CHECKING:
    from isabella.turns.probe import ProbeResult


@dataclass(frozen=True)
class ConfigurationProblem:
    """A setting, or a file of settings, that cannot be used.

    Attributes:
        code: the code of the finding it makes.
        subject: the variable or the file.
        what: one sentence.
        remedy: what to do about it.
        origin: where the variable stands.
    """

    code: str
    subject: str
    what: str
    remedy: str | None = None
    origin: str | None = None


@dataclass(frozen=True)
class ConflictingVariable:
    """A variable that the environment and `.env` set differently.

    Attributes:
        variable: its name.
        file: the `.env` file.
        line: the line in it.
        provider: the provider whose variable it is.
        other: the value that does not win, cleaned, where it is a key.
    """

    variable: str
    file: str
    line: int
    provider: str | None = None
    other: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ConfigurationEvidence:
    """What the configuration says.

    Attributes:
        desired: the providers it asks for.
        problems: what in it cannot be used.
        contradictions: what the environment and `.env` set differently.
        env_file: the `.env` file; None where there is none.
        env_mode: its permissions.
        secrets_in_file: whether secrets stand in it.
        named: the path given with `--env-file`.
        master_key: whether there is a master key, ours or the embedded Letta's.
        ours: whether the configuration itself has one.
        practice: whether practice vendors stand in for the real ones.
    """

    desired: tuple[Desired, ...] = ()
    problems: tuple[ConfigurationProblem, ...] = ()
    contradictions: tuple[ConflictingVariable, ...] = ()
    env_file: Path | None = None
    env_mode: int | None = None
    secrets_in_file: bool = False
    named: str | None = None
    master_key: bool = False
    ours: bool = False
    practice: bool = False

    @property
    def incomplete(self) -> str | None:
        """The file that could not be read, so that not all is known; None where all is."""
        files = ("env-file-malformed", "env-file-unreadable")
        return next((problem.subject for problem in self.problems if problem.code in files), None)


@dataclass(frozen=True)
class VendorEvidence:
    """What a vendor said.

    Attributes:
        answer: to the configured key at the configured address.
        instead: another address at which it answers as it should, where the configured one is wrong.
        stored_answer: to the key that Letta holds, where that is another one.
    """

    answer: VendorAnswer
    instead: str | None = None
    stored_answer: VendorAnswer | None = None


@dataclass(frozen=True)
class ProviderEvidence:
    """A live provider in Letta.

    Attributes:
        stored: the record.
        reading: what its key was read as, compared with the configured one; None where there is none.
        opens: whether Letta itself can open the key; None where that was not asked or stayed open.
        accepted: whether the vendor took the key when Letta showed it; None as above.
    """

    stored: StoredProvider
    reading: KeyReading | None = None
    opens: bool | None = None
    accepted: bool | None = None


@dataclass(frozen=True)
class AgentEvidence:
    """An agent in Letta.

    Attributes:
        id: its id.
        name: its name.
        llm: what it speaks through.
    """

    id: str
    name: str
    llm: LlmConfig


@dataclass(frozen=True)
class LettaProcess:
    """The Letta process on this machine, as far as this user may look into it.

    Attributes:
        pid: its id.
        listens: the addresses it listens on.
        has_master_key: whether `LETTA_ENCRYPTION_KEY` is in its environment.
        same_master_key: whether it is the configured one; None where there is none to compare.
        base_keys: variables in its environment of which it makes base providers.
    """

    pid: int
    listens: tuple[str, ...] = ()
    has_master_key: bool = True
    same_master_key: bool | None = None
    base_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class LettaEvidence:
    """What was seen of Letta.

    Attributes:
        base_url: its address; None where none is named and none runs here.
        embedded: whether Isabella runs it.
        error: why it could not be looked at.
        abilities: its release, and what that can do.
        rows: its live providers.
        agents: its agents; None where they could not be listed.
        agents_error: why not.
        deleted: names of soft-deleted providers; None where its database is not known.
        bare: names of providers with a plaintext key that this release does not read (O4); only from the database.
        base: names of base providers that were seen.
        open: whether it shows providers without a password; None where that is not known.
        process: its process, where it runs on this machine and this user may look.
    """

    base_url: str | None = None
    embedded: bool = False
    error: IsabellaError | None = None
    abilities: Capabilities | None = None
    rows: tuple[ProviderEvidence, ...] | None = None
    agents: tuple[AgentEvidence, ...] | None = None
    agents_error: str | None = None
    deleted: frozenset[str] | None = None
    bare: frozenset[str] = frozenset()
    base: frozenset[str] = frozenset()
    open: bool | None = None
    process: LettaProcess | None = None

    def row(self, name: str) -> ProviderEvidence | None:
        """The live provider of this name."""
        return next((row for row in self.rows or () if row.stored.name == name), None)


@dataclass(frozen=True)
class Evidence:
    """Everything that was seen in one examination.

    Attributes:
        configured: what the configuration says.
        asked: what the vendors said, by provider.
        seen: what was seen of Letta.
        receipts: what completions through Letta have shown, by provider; None where none were asked for.
    """

    configured: ConfigurationEvidence
    asked: Mapping[str, VendorEvidence]
    seen: LettaEvidence
    receipts: Mapping[str, ProbeResult] | None = None
