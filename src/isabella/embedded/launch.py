"""The launcher of a Letta release: `launch.py --instance FOLDER server …`.

This file runs in Letta's environment, not in Isabella's, and imports nothing of Isabella. It does the same as
`letta server`, and as `alembic upgrade head` before it if the environment has a URL for migrations, with these
differences:

- Letta is imported once for migrations and server. The migrations leave the configuration of logging as it is.

- The folder in the arguments identifies the process, in case Isabella was killed before it recorded the pid.
- Letta prints its server password when it starts, and its migrations print that of the database. The secrets of the
  environment are removed from the output and from Letta's own log file. So is the one in the URL of embeddings, which
  the client of OpenAI logs.
- Garbage collection is disabled while Letta is imported. The imports create about a million objects that all stay;
  examining them repeatedly takes a third of the time.
- Packages that Letta needs only for certain vendors, tools or files are imported when it first uses them.
- Pydantic and FastAPI build the validators of a model or a route when they are first used. Most of them never are.
  This and the deferred packages save almost half of the time of the imports, and of Letta's memory.
- Letta downloads data for a tokenizer that it does not use (`nltk`), without a timeout. The download is skipped, so
  that a machine without a network does not wait for it.
- `inflect`, which Letta imports, has `typeguard` rewrite its methods to check the types of arguments. This takes a
  quarter of the start, so the methods are left unchanged.
- Letta writes its OpenAPI description to a file at each start. The description is made on request.
- FastAPI analyses the parameters of a dependency again for each route. Letta's 500 routes have the same one, with a
  dozen headers; it is analysed once for each set of path parameters.
- Letta derives an AES key for each new value, with the OpenSSL that Python is linked with. The one in `cryptography`
  takes a third of the time on Debian 12.
- Letta makes an HTTP client for each request to a vendor, which loads the certificates of all authorities: an eighth
  of the time of a turn. They are loaded once; a change of them takes effect at the next start.
- OpenAI's client compares each request with all the types that its fields may have, to rename fields and to convert
  files; a conversation has neither. This takes a tenth of the time of a turn, and more in a long conversation.
  Requests of plain JSON are sent as they are.
- Letta's pool of database connections prepares every query again, so that the database parses and plans it each time,
  and asks the database three questions before each use of a connection. Connections keep their prepared queries, and
  whether one is closed is known without a question: both ends are on this machine. The connection that was used last
  is used next. A turn has dozens of queries.
- After that, a collection of garbage is started by 10,000 new objects instead of 700. A turn creates that many in
  passing; the usual collections take a twelfth of its time, with pauses of 0.2 s.
- SQLAlchemy loads the row that belongs to a key without the rows related to it. Letta reads single columns of such
  rows; for one column of an agent, ten more queries load its tools, blocks and so on.
- The process ends as soon as the server has shut down: freeing a million objects would take seconds.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.util
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Packages and modules of Letta whose exceptions it does not import by name, and that no model of it is made of.
DEFERRED = (
    "datamodel_code_generator",  # schemas of tools as classes
    "google.genai",  # the vendor
    "letta.services.mcp.fastmcp_client",  # servers of tools
    "letta.services.mcp.server_side_oauth",
    "markitdown",  # files of other formats as text
    "mistralai",  # text recognition in files
    "nltk",  # nothing
)
#: how many prepared statements each connection to the database keeps; a turn has about half as many different ones
STATEMENTS = 200
#: thresholds of the garbage collector for its three generations; Python's are 700, 10 and 10
COLLECTION = (10_000, 10, 20)
#: the URL with which the migrations connect; it is set if the database must be migrated
_MIGRATIONS_URL = "ISABELLA_MIGRATIONS_URL"
#: how these connections are protected: `sslmode` of libpq
_MIGRATIONS_TLS = "ISABELLA_MIGRATIONS_TLS"
#: the advisory lock of migrations; any number that no other program uses
_MIGRATIONS_LOCK = 0x15ABE11A
_EAGER = ("selectin", "joined", "subquery", "immediate")
_PLAIN = (str, int, float, bool, type(None))
_ASK_EVERY, _SECONDS_FOR_ROWS = 0.2, 60.0
_EMBEDDINGS = re.compile(r"(?<=/embeddings/)[^/\s]+(?=/v1)")


def redact(text: str, secrets: list[str]) -> str:
    """Return the text without the secrets, and without that of a URL of embeddings."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return _EMBEDDINGS.sub("…", text)


class RedactedStream:
    """A text stream that removes secrets."""

    def __init__(self, stream: Any, secrets: list[str]) -> None:
        self._stream = stream
        self._secrets = secrets

    def write(self, text: str) -> int:
        """Write the text without the secrets."""
        return int(self._stream.write(redact(text, self._secrets)))

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secrets() -> list[str]:
    """Return the secrets in this process's environment."""
    environ = os.environ
    database = urlsplit(environ.get("LETTA_PG_URI", "")).password
    values = [environ.get("LETTA_SERVER_PASSWORD"), environ.get("LETTA_ENCRYPTION_KEY"), database]
    values += [value for name, value in environ.items() if name.endswith("_API_KEY")]
    return [secret for secret in values if secret]


def redact_logs(secrets: list[str]) -> None:
    """Remove the secrets from every log record, whatever handler writes it."""
    build = logging.Handler.format

    def build_redacted(handler: logging.Handler, record: logging.LogRecord) -> str:
        return redact(build(handler, record), secrets)

    logging.Handler.format = build_redacted  # type: ignore[method-assign, assignment]


def defer_imports() -> Any:
    """Defer the import of some packages; `finish()` of the returned object ends the phase of imports."""
    path = Path(__file__).with_name("deferred_imports.py")
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DeferredImports(DEFERRED)


class LazyAdapter:
    """A `pydantic.TypeAdapter` that is built when it is first used."""

    adapter: Any = None  # the class

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._arguments, self._options = arguments, options

    def __class_getitem__(cls, _item: Any) -> Any:
        return cls

    @functools.cached_property
    def _built(self) -> Any:
        return self.adapter(*self._arguments, **self._options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._built, name)


def build_validators_lazily() -> None:
    """Make Pydantic build the validator of each model, and FastAPI that of each route, on first use."""
    importlib.import_module("pydantic").BaseModel.model_config["defer_build"] = True
    for name in ("fastapi._compat.v2", "fastapi._compat"):
        with contextlib.suppress(ImportError, AttributeError):
            module: Any = importlib.import_module(name)
            LazyAdapter.adapter, module.TypeAdapter = module.TypeAdapter, LazyAdapter
            return


def shorten_imports() -> None:
    """Skip the download of `nltk` and the decorator of `typeguard`, where they are installed."""
    with contextlib.suppress(ImportError):
        vars(importlib.import_module("nltk"))["download"] = lambda *_arguments, **_options: True
    with contextlib.suppress(ImportError):
        vars(importlib.import_module("typeguard"))["typechecked"] = unchecked


def unchecked(target: Any = None, **_options: Any) -> Any:
    """Decorate nothing: stands in for `typeguard.typechecked`, with and without options."""
    return unchecked if target is None else target


def share_dependencies() -> None:
    """Make FastAPI analyse each dependency of a parameter once for each set of path parameters."""
    utils: Any = importlib.import_module("fastapi.dependencies.utils")
    build = utils.get_dependant
    shared: dict[Any, Any] = {}

    def get_dependant(*, path: str, call: Any, name: str | None = None, **options: Any) -> Any:
        if name is None:  # of a route itself, which changes it later
            return build(path=path, call=call, **options)
        key = (call, name, frozenset(utils.get_path_param_names(path)), repr(sorted(options.items())))
        if key not in shared:
            shared[key] = build(path=path, call=call, name=name, **options)
        return shared[key]

    utils.get_dependant = get_dependant


def derive_faster() -> None:
    """Make `hashlib.pbkdf2_hmac` use the OpenSSL of `cryptography` for the hash that Letta uses."""
    hashes: Any = importlib.import_module("cryptography.hazmat.primitives.hashes")
    pbkdf2: Any = importlib.import_module("cryptography.hazmat.primitives.kdf.pbkdf2")
    derive = hashlib.pbkdf2_hmac

    def pbkdf2_hmac(hash_name: str, password: Any, salt: Any, iterations: int, dklen: int | None = None) -> bytes:
        if hash_name != "sha256":
            return derive(hash_name, password, salt, iterations, dklen)
        key: bytes = pbkdf2.PBKDF2HMAC(hashes.SHA256(), dklen or 32, bytes(salt), iterations).derive(bytes(password))
        return key

    vars(hashlib)["pbkdf2_hmac"] = pbkdf2_hmac


def share_certificates() -> None:
    """Share the usual certificates among all `httpx` clients that verify servers with them."""
    with contextlib.suppress(ImportError, AttributeError):
        module: Any = importlib.import_module("httpx._transports.default")
        create = module.create_ssl_context
        usual = functools.cache(lambda trust_env: create(verify=True, cert=None, trust_env=trust_env))

        def create_ssl_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
            if verify is True and cert is None:
                return usual(trust_env)
            return create(verify=verify, cert=cert, trust_env=trust_env)

        module.create_ssl_context = create_ssl_context


def send_plain_requests() -> None:
    """Make the asynchronous client of `openai` send requests of plain JSON unchanged."""
    with contextlib.suppress(ImportError, AttributeError):
        module: Any = importlib.import_module("openai.resources.chat.completions.completions")
        is_given: Any = importlib.import_module("openai._utils").is_given
        transform = module.async_maybe_transform

        async def async_maybe_transform(data: Any, expected_type: Any) -> Any:
            if type(data) is dict:
                given = {name: value for name, value in data.items() if is_given(value)}
                if is_plain(given):
                    return given
            return await transform(data, expected_type)

        module.async_maybe_transform = async_maybe_transform


def is_plain(value: Any) -> bool:
    """Return whether a value consists of JSON's own types, or tuples, which become lists: Letta's tools have one."""
    kind = type(value)
    if kind is dict:
        return all(map(is_plain, value.values()))
    if kind is list or kind is tuple:
        return all(map(is_plain, value))
    return kind in _PLAIN


def parse_docstrings_once() -> None:
    """Make `docstring_parser` remember its results: Letta parses the docstrings of an agent's tools in each turn."""
    with contextlib.suppress(ImportError, AttributeError):
        module: Any = importlib.import_module("docstring_parser")
        module.parse = functools.lru_cache(maxsize=512)(module.parse)


def keep_statements() -> None:
    """Make a pool of database connections keep their prepared statements and use the latest connection next."""
    with contextlib.suppress(ImportError, AttributeError):
        module: Any = importlib.import_module("sqlalchemy.ext.asyncio")
        create = module.create_async_engine

        def create_async_engine(url: Any, **options: Any) -> Any:
            # Without a pool, connections are used once.
            if "pool_size" in options:
                statements = {"prepared_statement_cache_size": STATEMENTS}
                options |= {"pool_use_lifo": True, "connect_args": {**options.get("connect_args", {}), **statements}}
            return create(url, **options)

        module.create_async_engine = create_async_engine


def ping_without_question() -> None:
    """Make the pool detect a closed connection by its state, which asyncpg knows as soon as the socket is closed."""
    with contextlib.suppress(ImportError, AttributeError):
        closed: Any = importlib.import_module("asyncpg").InterfaceError("the connection is closed")
        module: Any = importlib.import_module("sqlalchemy.dialects.postgresql.asyncpg")

        def ping(connection: Any) -> None:
            if connection._connection.is_closed():
                connection._handle_exception(closed)

        module.AsyncAdapt_asyncpg_connection.ping = ping


def get_rows_alone() -> None:
    """Make `AsyncSession.get` of SQLAlchemy load no relationships: Letta uses columns of these rows only.

    To use a relationship of such a row is an error.
    """
    with contextlib.suppress(ImportError, AttributeError):
        session: Any = importlib.import_module("sqlalchemy.ext.asyncio").AsyncSession
        orm: Any = importlib.import_module("sqlalchemy.orm")
        get = session.get

        @functools.cache
        def alone(entity: Any) -> Any:
            eager = [item for item in orm.class_mapper(entity).relationships if item.lazy in _EAGER]
            return [orm.lazyload(getattr(entity, item.key)) for item in eager]

        async def get_alone(self: Any, entity: Any, ident: Any, *, options: Any = None, **rest: Any) -> Any:
            return await get(self, entity, ident, options=[*(options or ()), *alone(entity)], **rest)

        session.get = get_alone


def migrate(url: str) -> None:
    """Apply the migrations that the database has not had yet; they run in one transaction."""
    command: Any = importlib.import_module("alembic.command")
    config: Any = importlib.import_module("alembic.config").Config()
    program = Path(str(importlib.import_module("letta").__file__)).parents[1]
    config.set_main_option("script_location", str(program / "alembic"))
    settings: Any = importlib.import_module("letta.settings").settings
    protect_migrations(os.environ.pop(_MIGRATIONS_TLS, "disable"))
    of_server, settings.pg_uri = settings.pg_uri, url
    with migrations_lock(url):
        command.upgrade(config, "head")
    settings.pg_uri = of_server


def protect_migrations(mode: str) -> None:
    """Make the driver of the migrations use TLS as `sslmode` says, with the authorities in PGSSLROOTCERT."""
    if mode == "disable":
        return
    ssl: Any = importlib.import_module("ssl")
    driver: Any = importlib.import_module("pg8000")
    context = ssl.create_default_context(cafile=os.environ.get("PGSSLROOTCERT"))
    context.check_hostname = mode == "verify-full"
    if mode == "require":
        context.verify_mode = ssl.CERT_NONE
    driver.connect = functools.partial(driver.connect, ssl_context=context)


@contextlib.contextmanager
def migrations_lock(url: str) -> Iterator[None]:
    """Hold a lock of the database, so that of several servers that start at once only one migrates at a time.

    It is requested repeatedly: the migrations create indexes concurrently, which waits for every statement that
    is under way, and so would for one that waits for this lock.
    """
    alchemy: Any = importlib.import_module("sqlalchemy")
    engine = alchemy.create_engine(
        url.replace("postgresql://", "postgresql+pg8000://", 1), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        ask = alchemy.text(f"SELECT pg_try_advisory_lock({_MIGRATIONS_LOCK})")
        waited = False
        while not connection.execute(ask).scalar():
            waited = True
            time.sleep(_ASK_EVERY)
        yield
        if waited:
            # The server that has migrated a new database makes Letta's user, tools and sandbox next; two would
            # fail on each other. The sandbox is the last of these rows.
            made = alchemy.text("SELECT true FROM sandbox_configs LIMIT 1")
            deadline = time.monotonic() + _SECONDS_FOR_ROWS
            while not connection.execute(made).scalar() and time.monotonic() < deadline:
                time.sleep(_ASK_EVERY)
    engine.dispose()


def main(arguments: list[str]) -> None:
    """Run the migrations, if any, and the server; the arguments are those after the script's name."""
    os.umask(0o077)
    option, _folder, role, *rest = arguments
    if (option, role) != ("--instance", "server"):
        sys.exit("launch.py is started by Isabella.")
    hidden = secrets()
    sys.stdout = RedactedStream(sys.stdout, hidden)
    sys.stderr = RedactedStream(sys.stderr, hidden)
    redact_logs(hidden)
    gc.disable()
    imports = defer_imports()
    build_validators_lazily()
    shorten_imports()
    share_dependencies()
    derive_faster()
    share_certificates()
    send_plain_requests()
    parse_docstrings_once()
    keep_statements()
    ping_without_question()
    get_rows_alone()
    migrations_url = os.environ.pop(_MIGRATIONS_URL, None)
    # Several modules of Letta read sys.argv when they are imported.
    sys.argv = ["letta", "server", *rest, "--no-generation"]
    importlib.import_module("letta.server.rest_api.app")
    program: Any = importlib.import_module("letta.main")
    imports.finish()
    sys.argv.pop()
    if migrations_url is not None:
        try:
            migrate(migrations_url)
        except Exception:  # noqa: BLE001 - Python would wait for threads of the imports before it ends
            traceback.print_exc()
            os._exit(1)
    # To collect first would free 1.5 MB and take a tenth of the start.
    gc.freeze()
    gc.set_threshold(*COLLECTION)
    gc.enable()
    code: Any = 0
    try:
        program.app()
    except SystemExit as exit_:
        code = exit_.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    main(sys.argv[1:])
