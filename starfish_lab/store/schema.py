"""Tables of the store, and the one door to the database through which every statement goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError

from starfish_lab import settings
from starfish_lab.errors import StoreError

VERSION = 1
OPENING_ATTEMPTS = 40  # two processes may create the same store at once; the loser looks again
# How long a server that vanished without a word is waited for: seconds to connect; then, on a connection, of silence (by keepalives) and
# for what was sent (milliseconds). Without them a worker would hang for as long as the system's TCP does, which is hours.
PATIENCE = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20000}

METADATA = sa.MetaData()

META = sa.Table("meta", METADATA, sa.Column("name", sa.String(40), primary_key=True), sa.Column("value", sa.Text, nullable=False))

# Times are seconds since 1970 (UTC).
RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.String(12), nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("parent", sa.Integer),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("recipe_hash", sa.String(12), nullable=False),
    # What a list of runs shows of the recipe, so that it parses none.
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("weights", sa.String(20), nullable=False),
    sa.Column("pattern", sa.String(40), nullable=False),
    sa.Column("sparsity", sa.Double, nullable=False),
    sa.Column("score", sa.String(40), nullable=False),
    sa.Column("budget", sa.String(40), nullable=False),
    sa.Column("method", sa.String(40), nullable=False),
    # Who may run it, who does, and since when.
    sa.Column("wants", sa.String(20), nullable=False),
    sa.Column("device", sa.String(20)),
    sa.Column("worker", sa.String(120)),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("cancel", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("heartbeat_at", sa.Double),
    # How far it is, and what came of it.
    sa.Column("stage", sa.String(40)),
    sa.Column("step", sa.Integer),
    sa.Column("steps", sa.Integer),
    sa.Column("seconds_left", sa.Double),
    sa.Column("error", sa.Text),
    sa.Column("artefact", sa.Text),
    sa.Column("summary", sa.Text),
    sa.Index("runs_by_status", "status", "id"),
    sa.Index("runs_by_kind", "kind", "id"),
    sqlite_autoincrement=True,  # the number of a deleted run is never given again: its folder might still exist
)

TABLES = sa.Table(
    "report_tables",
    METADATA,
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("rows", sa.Text, nullable=False),
)

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("t", sa.Double, nullable=False),
    sa.Column("name", sa.String(80), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("value", sa.Double),  # SQLite keeps NaN as NULL
    sa.Index("events_by_run", "run_id", "id"),
)

NOTES = sa.Table(
    "notes",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("t", sa.Double, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("worker", sa.String(120), primary_key=True),
    sa.Column("device", sa.String(20), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("run_id", sa.Integer),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("heartbeat_at", sa.Double, nullable=False),
)

PROFILES = sa.Table(
    "profiles",
    METADATA,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)


class Database:
    """An open store: its tables exist and have this version.

    Parameters
    ----------
    url : SQLAlchemy URL; None asks `settings.database_url()`
    timeout : seconds to wait for another process's lock before giving up
    stale_seconds : a worker silent for so long counts as dead, and its run may be claimed again

    Raises StoreError where the database cannot be opened or has another version. Safe to share between threads.
    """

    def __init__(self, url: str | None = None, *, timeout: float = 30.0, stale_seconds: float = 15.0):
        self.url = url or settings.database_url()
        self.stale_seconds = stale_seconds
        self.unreachable_at = 0.0  # when the database last refused or did not answer
        try:
            self._engine = sa.create_engine(self.url, **_engine_options(self.url, timeout))
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(
                f"{settings.DATABASE_URL.name} is no usable database address: {error}. Expected a SQLAlchemy URL such as "
                "sqlite:////folder/lab.db or postgresql+psycopg://user@host/lab, with the driver it names installed."
            ) from None
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
        self._prepare()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing: commits at the end, rolls back on any error, turns the database's errors into StoreError."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            self.unreachable_at = time.time()
            raise StoreError(self._explain(error)) from error

    @property
    def clock(self) -> sa.ColumnElement[float]:
        """Now, in seconds since 1970, by the clock that all share who judge whether a worker lives: the server's; of a file, this machine's."""
        if self._engine.dialect.name != "postgresql":
            return sa.literal(time.time())
        return sa.cast(sa.extract("epoch", sa.func.statement_timestamp()), sa.Double)

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    def _prepare(self) -> None:
        """Create missing tables and check the version."""
        for attempt in range(OPENING_ATTEMPTS):
            try:
                with self._engine.connect() as connection:
                    if self._engine.dialect.name == "sqlite":
                        connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # readers and the writer do not block each other
                with self._engine.begin() as connection:
                    found = _version(connection)
                if found is None:
                    with self._engine.begin() as connection:
                        found = _create(connection)
                break
            except (IntegrityError, OperationalError, ProgrammingError) as error:
                text = str(error.orig)
                if attempt + 1 == OPENING_ATTEMPTS or not any(clue in text for clue in ("exist", "locked", "UNIQUE", "duplicate")):
                    raise StoreError(self._explain(error)) from error
                time.sleep(0.05)
            except SQLAlchemyError as error:
                raise StoreError(self._explain(error)) from error
        if found != str(VERSION):
            raise StoreError(
                f"The store at {self._place()} has version {found}, this lab reads version {VERSION}. Open it with the lab that made it, "
                f"or point {settings.HOME.name} to a new folder."
            )

    def _place(self) -> str:
        return self._engine.url.database if self._engine.dialect.name == "sqlite" else self._engine.url.render_as_string(hide_password=True)

    def _explain(self, error: SQLAlchemyError) -> str:
        """One sentence for what happened, one for what to do."""
        text = str(getattr(error, "orig", None) or error)
        place = self._place()
        if "locked" in text or "busy" in text:
            return f"The store at {place} is locked by another program; nothing was written. Try again, and if it stays locked, stop that program."
        if "full" in text or "No space left" in text:
            return f"The disk that holds the store at {place} is full; nothing was written. Free some space and try again."
        if "readonly" in text:
            return f"The store at {place} may only be read; nothing was written. Allow writing to it, or set {settings.HOME.name} to another folder."
        if "not a database" in text or "malformed" in text:
            return f"The file {place} is no store of this lab, or is damaged. Move it away, or set {settings.HOME.name} to another folder."
        reason = " ".join(text.strip().partition("\n")[0].rpartition(" failed: ")[2].split())
        if not isinstance(error, OperationalError | InterfaceError):
            return f"The store at {place} refused: {reason}. Nothing was written."
        return f"The store at {place} cannot be reached: {reason}. Check that it exists and answers, and that {settings.DATABASE_URL.name} is right."


def _version(connection: sa.Connection) -> str | None:
    """Version of the store's tables, None where there are none."""
    if not sa.inspect(connection).has_table(META.name):
        return None
    return connection.scalar(sa.select(META.c.value).where(META.c.name == "schema"))


def _create(connection: sa.Connection) -> str | None:
    """All tables and their version in one transaction, unless another process was quicker."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver begins none by itself before CREATE TABLE
    if not sa.inspect(connection).has_table(META.name):
        METADATA.create_all(connection)
        connection.execute(sa.insert(META).values(name="schema", value=str(VERSION)))
    return _version(connection)


def _engine_options(url: str, timeout: float) -> dict[str, object]:
    if not url.startswith("sqlite"):
        libpq = sa.make_url(url).get_driver_name() in ("psycopg", "psycopg2")
        return {"pool_pre_ping": True, "connect_args": PATIENCE if libpq else {}}
    # A transaction that writes takes the write lock at its start, so none fails half-way because another was quicker.
    return {"connect_args": {"timeout": timeout, "isolation_level": "IMMEDIATE"}}


def _configure_sqlite(connection, _record) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")  # safe with WAL: a crash of the machine may lose the last commits, never the file


def folder_of(run_id: int) -> Path:
    """Where a run keeps its checkpoint, log and healed network."""
    return settings.home() / "runs" / str(run_id)
