"""The evidence that the checks judge: frozen data, as collected."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isabella.agents.prompt_budget import PromptBudget
from isabella.errors import IsabellaError
from isabella.letta.encryption import KeyReading
from isabella.letta.llm_config import LlmConfig
from isabella.letta.releases import Capabilities, client_for
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Desired
from isabella.providers.report import GatewayStatus
from isabella.vendors.client import KeyVerdict, VendorAnswer

if TYPE_CHECKING:
    from isabella.gateway.client import GatewayProvider
    from isabella.turns.probe import ProbeResult


@dataclass(frozen=True)
class ConfigurationProblem:
    """A setting, or a file of settings, that cannot be used."""

    code: str  # the code of its finding
    subject: str  # the variable or the file
    what: str  # one sentence
    remedy: str | None = None
    origin: str | None = None  # where a variable is set; None for a file


@dataclass(frozen=True)
class ConflictingVariable:
    """A variable with different values in the environment and in `.env`, and the provider it configures."""

    variable: str
    file: str
    line: int
    provider: str | None = None


@dataclass(frozen=True)
class ConfigurationEvidence:
    """The configuration."""

    desired: tuple[Desired, ...] = ()
    problems: tuple[ConfigurationProblem, ...] = ()  # the settings and files that cannot be used
    #: the variables with different values in the environment and in `.env`
    conflicts: tuple[ConflictingVariable, ...] = ()
    env_file: Path | None = None  # the `.env` file; None if it does not exist
    env_mode: int | None = None
    secrets_in_file: bool = False  # whether it contains secrets
    env_file_option: str | None = None  # the path given with `--env-file`
    has_master_key: bool = False  # whether a master key is known, from the configuration or from the embedded Letta
    sets_master_key: bool = False  # whether the configuration itself sets it
    practice: bool = False  # whether practice vendors replace the real ones

    @property
    def unreadable_file(self) -> str | None:
        """The `.env` file, if it cannot be read, so that the configured keys are not known."""
        codes = ("env-file-malformed", "env-file-unreadable")
        return next((problem.subject for problem in self.problems if problem.code in codes), None)

    @property
    def usable(self) -> tuple[Desired, ...]:
        """The providers that can be registered as configured."""
        return tuple(desired for desired in self.desired if desired.configured and desired.obstacle is None)

    def provider(self, name: str | None) -> Desired | None:
        """Return the configured provider of this name."""
        return next((desired for desired in self.desired if desired.name == name), None)

    @property
    def env_option(self) -> str:
        """The option that makes another command read the same `.env`."""
        return "" if self.env_file_option is None else f" --env-file {shlex.quote(self.env_file_option)}"

    def sync_command(self, provider: str) -> str:
        """Return the command that brings a provider in sync."""
        if self.practice:
            # Other commands do not replace the real vendors by the practice vendors.
            return f"isabella doctor --fix{self.env_option}"
        return f"isabella providers sync --only {provider}{self.env_option}"


@dataclass(frozen=True)
class VendorEvidence:
    """The answers of a vendor."""

    answer: VendorAnswer  # to the configured key at the configured base URL
    working_url: str | None = None  # another base URL on the same host that works, if the configured one is wrong
    stored_answer: VendorAnswer | None = None  # to the key that Letta holds, if that is a different one


@dataclass(frozen=True)
class ProviderEvidence:
    """A live provider in Letta."""

    stored: StoredProvider
    #: the stored key, compared with the configured one; None if the provider is not configured
    reading: KeyReading | None = None
    opens: bool | None = None  # whether Letta can decrypt the key; None if not known
    accepted: bool | None = None  # whether the vendor accepted the key from Letta; None if not known


@dataclass(frozen=True)
class AgentEvidence:
    """An agent in Letta, with its `llm_config`."""

    id: str
    name: str
    llm: LlmConfig
    prompt: PromptBudget | None = None  # the parts of its prompt; None if they were not looked at


@dataclass(frozen=True)
class LettaProcess:
    """The Letta process on this machine, as far as this user may inspect it."""

    pid: int
    listens: tuple[str, ...] = ()  # the addresses it listens on
    has_master_key: bool = True  # whether `LETTA_ENCRYPTION_KEY` is in its environment
    same_master_key: bool | None = None  # whether that is the configured one; None if one of them is missing
    base_keys: tuple[str, ...] = ()  # variables in its environment from which Letta makes base providers


@dataclass(frozen=True)
class LettaEvidence:
    """The Letta server and its contents."""

    base_url: str | None = None  # its address; None if none is configured and none runs here
    embedded: bool = False  # whether Isabella runs it
    password_sent: bool = False  # whether requests to it carry a password
    error: IsabellaError | None = None  # why it could not be examined
    abilities: Capabilities | None = None  # its release, and what that can do
    rows: tuple[ProviderEvidence, ...] | None = None
    agents: tuple[AgentEvidence, ...] | None = None  # its agents; None if they could not be listed
    agents_error: str | None = None
    deleted: frozenset[str] | None = None  # names of soft-deleted providers; None if its database is not known
    #: names of providers whose key is only in the old plaintext column (O4); needs the database
    bare: frozenset[str] = frozenset()
    base: frozenset[str] = frozenset()
    open: bool | None = None  # whether it lists providers without a password; None if not known
    #: `bubblewrap` if tools of agents run in a sandbox, otherwise why not; None if that is not known
    tool_sandbox: str | None = None
    process: LettaProcess | None = None  # its process, if it runs on this machine and this user may inspect it

    def row(self, name: str | None) -> ProviderEvidence | None:
        """Return the live provider of this name."""
        return next((row for row in self.rows or () if row.stored.name == name), None)

    @property
    def client(self) -> str:
        """The client of Letta that agents are bound with on its release (fact M13)."""
        return client_for(None if self.abilities is None else self.abilities.release)

    def bound_to(self, provider: str) -> tuple[AgentEvidence, ...]:
        """Return the agents of a provider."""
        return tuple(agent for agent in self.agents or () if agent.llm.provider == provider)


@dataclass(frozen=True)
class GatewayEvidence:
    """The gateway through which Letta is to reach the vendors.

    Attributes:
        here: whether Isabella runs it, as opposed to one at a configured URL.
        providers: the providers that it has, by name; None if they could not be read.
        unread: why not.
    """

    status: GatewayStatus
    here: bool = True
    providers: Mapping[str, GatewayProvider] | None = None
    unread: str | None = None


@dataclass(frozen=True)
class Evidence:
    """All evidence of one run."""

    configuration: ConfigurationEvidence
    vendors: Mapping[str, VendorEvidence]  # by provider
    letta: LettaEvidence
    #: results of completions through Letta, by provider; None if none were requested
    probes: Mapping[str, ProbeResult] | None = None
    gateway: GatewayEvidence | None = None

    def vendor_accepts(self, provider: str) -> bool:
        """Whether the vendor accepts the configured key of this provider."""
        vendor = self.vendors.get(provider)
        return vendor is not None and vendor.answer.verdict is KeyVerdict.ACCEPTED
