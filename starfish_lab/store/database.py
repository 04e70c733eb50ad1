"""The one door to the database, through which every statement goes; opening it creates or upgrades the tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError

from starfish_lab import settings
from starfish_lab.errors import StoreError
from starfish_lab.store.schema import META, METADATA, VERSION

OPENING_ATTEMPTS = 40  # two processes may create the same store at once; the loser looks again
# How long a server that vanished without a word is waited for: seconds to connect; then, on a connection, of silence (by keepalives) and
# for what was sent (milliseconds). Without them a worker would hang for as long as the system's TCP does, which is hours.
PATIENCE = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20000}


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
        self._open = threading.local()  # the transaction that this thread is in, and what follows it
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
        """All or nothing: commits at the end, rolls back on any error, turns the database's errors into StoreError.

        Inside another transaction of the same thread it is a part of that one, so that several calls happen together or not at all.
        """
        if (joined := getattr(self._open, "connection", None)) is not None:
            yield joined
            return
        after: list[Callable[[], None]] = []
        try:
            with self._engine.begin() as connection:
                self._open.connection, self._open.after = connection, after
                try:
                    yield connection
                finally:
                    self._open.connection = None
        except SQLAlchemyError as error:
            self.unreachable_at = time.time()
            raise StoreError(self._explain(error)) from error
        for call in after:
            call()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Call this once the transaction that this thread is in is safely over: for what no database can roll back."""
        self._open.after.append(call)

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
        """Create the tables where there are none, add those that an older store lacks, and check the version."""
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
                if found == "1":
                    with self._engine.begin() as connection:
                        found = _upgrade(connection)
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


def _upgrade(connection: sa.Connection) -> str | None:
    """Add the tables that version 1 lacked, in one transaction, unless another process was quicker. All that the store holds stays as it is."""
    older = sa.and_(META.c.name == "schema", META.c.value == "1")
    if connection.execute(sa.update(META).where(older).values(value=str(VERSION))).rowcount:  # of two at once, the second waits here
        METADATA.create_all(connection)
    return _version(connection)


def one_at_a_time(connection: sa.Connection) -> None:
    """Let one transaction in after the other, here: what is read from now on, no other that asked the same can change before this one ends."""
    connection.execute(sa.update(META).where(META.c.name == "schema").values(value=META.c.value))  # the one row that every store has


def _engine_options(url: str, timeout: float) -> dict[str, object]:
    if not url.startswith("sqlite"):
        libpq = sa.make_url(url).get_driver_name() in ("psycopg", "psycopg2")
        return {"pool_pre_ping": True, "connect_args": PATIENCE if libpq else {}}
    # A transaction that writes takes the write lock at its start, so none fails half-way because another was quicker.
    return {"connect_args": {"timeout": timeout, "isolation_level": "IMMEDIATE"}}


def _configure_sqlite(connection, _record) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")  # safe with WAL: a crash of the machine may lose the last commits, never the file
