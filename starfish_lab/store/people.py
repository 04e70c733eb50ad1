"""People in the store: who may do what, what each thinks of a run, and the record of who did what.

The roles are `ROLES`. Who has which comes from the table `people`; the setting STARFISH_LAB_ADMINS names the first admins, and
STARFISH_LAB_ROLE says what all others are. What a person may do is enforced by `store.service`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError
from starfish_lab.store.queue import unknown_run
from starfish_lab.store.schema import AUDIT, DECISIONS, PEOPLE, REMARKS, RUNS
from starfish_lab.store.sweeps import Sweeps

ROLES = ("none", "viewer", "runner", "admin")  # each may do what those before it may
VERDICTS = ("accepted", "rejected", "needs work")
WAITING = RUNS.c.status.in_(("queued", "running"))  # a sweep's own row is in neither state: its runs are


@dataclass(frozen=True)
class Person:
    """Who uses the lab: `who` is the address signed in with; `quota` is of jobs running and queued at once, 0 for as many as wanted."""

    who: str
    role: str
    quota: int = 0

    def may(self, role: str) -> bool:
        """True where this person has at least the role."""
        return ROLES.index(self.role) >= ROLES.index(role)


class People(Sweeps):
    """Roles and quotas, decisions and remarks on runs, and the audit trail."""

    def person(self, who: str) -> Person:
        """Role and quota of a signed-in person, by the table and the settings. Raises LabError where a setting makes no sense."""
        with self.transaction() as connection:
            return find(connection, who)

    def people(self) -> pd.DataFrame:
        """Everyone in the table, among the first admins, or with a job in the queue or running; one row each, by address.

        Columns who, role ('' of who does not sign in, such as the command line), quota (missing: the default), queued, running.
        """
        jobs = sa.select(RUNS.c.owner, RUNS.c.status, sa.func.count()).where(WAITING).group_by(RUNS.c.owner, RUNS.c.status)
        with self.transaction() as connection:
            known = {row.who: row for row in connection.execute(sa.select(PEOPLE))}
            counted = {(owner, status): count for owner, status, count in connection.execute(jobs)}
        rows = []
        for who in sorted({*known, *_admins(), *(owner for owner, _ in counted)}):
            signs_in = "@" in who or who in known
            role, quota = _role(who, known.get(who)) if signs_in else "", known[who].quota if who in known else None
            rows.append({"who": who, "role": role, "quota": quota, **{status: counted.get((who, status), 0) for status in ("queued", "running")}})
        columns = {"who": "object", "role": "object", "quota": "Int64", "queued": "int64", "running": "int64"}
        return pd.DataFrame(rows, columns=list(columns)).astype(columns)

    def set_role(self, who: str, role: str | None, quota: int | None = None) -> None:
        """Give a person a role and a quota (None: the default); with the role None the person leaves the table and is as everyone else."""
        who = address(who)
        if role is not None and role not in ROLES:
            raise StoreError(f"There is no role '{role}'. Choose one of: {', '.join(ROLES)}.")
        if quota is not None and quota < 0:
            raise StoreError(f"The quota of {who} is {quota}; expected was 0 for as many jobs as wanted, or a whole number above it.")
        with self.transaction() as connection:
            connection.execute(sa.delete(PEOPLE).where(PEOPLE.c.who == who))
            if role is not None:
                connection.execute(sa.insert(PEOPLE).values(who=who, role=role, quota=quota))

    def decide(self, run_id: int, decision: str, why: str, who: str) -> None:
        """Keep what a person decided about a run, one of VERDICTS, and why. The newest counts; the earlier ones stay."""
        if decision not in VERDICTS:
            raise StoreError(f"There is no decision '{decision}'. Choose one of: {', '.join(VERDICTS)}.")
        self._say(DECISIONS, run_id, who=who, decision=decision, why=why.strip())

    def decisions(self, run_ids: Iterable[int]) -> pd.DataFrame:
        """Columns run, decision, why, who, t; newest first."""
        return self._said(DECISIONS, ("decision", "why", "who", "t"), run_ids)

    def remark(self, run_id: int, text: str, who: str) -> None:
        """Keep what a person remarks on a run. Raises StoreError where the text is empty."""
        if not text.strip():
            raise StoreError("This note is empty, so it was not kept. Write what others should know about the run.")
        self._say(REMARKS, run_id, who=who, text=text.strip())

    def remarks(self, run_ids: Iterable[int]) -> pd.DataFrame:
        """Columns run, text, who, t; newest first. What a run itself says of its work are `notes`."""
        return self._said(REMARKS, ("text", "who", "t"), run_ids)

    def audit(self, limit: int = 1000) -> pd.DataFrame:
        """The newest rows of the record of who did what. Columns t, who, action, run, detail; newest first."""
        query = sa.select(AUDIT.c.t, AUDIT.c.who, AUDIT.c.action, AUDIT.c.run_id.label("run"), AUDIT.c.detail)
        with self.transaction() as connection:
            rows = connection.execute(query.order_by(AUDIT.c.id.desc()).limit(limit)).all()
        return pd.DataFrame(rows, columns=["t", "who", "action", "run", "detail"]).astype({"t": "float64", "run": "Int64"})

    def _say(self, table: sa.Table, run_id: int, **values: object) -> None:
        with self.transaction() as connection:
            if connection.scalar(sa.select(RUNS.c.id).where(RUNS.c.id == run_id)) is None:
                raise unknown_run(run_id)
            connection.execute(sa.insert(table).values(run_id=run_id, t=time.time(), **values))

    def _said(self, table: sa.Table, columns: tuple[str, ...], run_ids: Iterable[int]) -> pd.DataFrame:
        query = sa.select(table.c.run_id, *(table.c[name] for name in columns)).where(table.c.run_id.in_([int(run_id) for run_id in run_ids]))
        with self.transaction() as connection:
            rows = connection.execute(query.order_by(table.c.id.desc())).all()
        return pd.DataFrame(rows, columns=["run", *columns]).astype({"run": "int64", "t": "float64"})


def address(who: str) -> str:
    """A person's address as the store writes it. Raises StoreError where it is none.

    >>> address(" Ada@Example.org ")
    'ada@example.org'
    """
    found = who.strip().lower()
    if not found or len(found) > 254 or any(letter.isspace() or letter == "," for letter in found):
        raise StoreError(f"'{who[:40]}' is no address to sign in with; expected was an email address such as ada@example.org.")
    return found


def find(connection: sa.Connection, who: str) -> Person:
    """As `People.person`, as it stands inside a transaction."""
    row = connection.execute(sa.select(PEOPLE).where(PEOPLE.c.who == address(who))).first()
    return Person(address(who), _role(address(who), row), usual_quota() if row is None or row.quota is None else row.quota)


def jobs_of(connection: sa.Connection, who: str) -> dict[str, int]:
    """{status: how many of a person's jobs are in it} of what is queued or running; a sweep counts by its runs."""
    query = sa.select(RUNS.c.status, sa.func.count()).where(WAITING, RUNS.c.owner == who).group_by(RUNS.c.status)
    return {"queued": 0, "running": 0} | dict(connection.execute(query).all())


def record(connection: sa.Connection, who: str, action: str, run_id: int | None, detail: str) -> None:
    """Add a row to the audit trail, in the transaction of the act itself."""
    connection.execute(sa.insert(AUDIT).values(t=time.time(), who=who, action=action, run_id=run_id, detail=detail))


def usual_quota() -> int:
    """The quota of everyone whom the table gives no other. Raises LabError where the setting is no number."""
    return int(settings.number(settings.QUOTA))


def _admins() -> set[str]:
    return {address(who) for who in settings.ADMINS().split(",") if who.strip()}


def _role(who: str, row: sa.Row | None) -> str:
    """By the setting of the first admins, which no one can lose on a page; then by the table; then as everyone else."""
    if who in _admins():
        return "admin"
    role = row.role if row is not None else settings.ROLE()
    if role not in ROLES:
        raise LabError(f"{settings.ROLE.name} is '{role}': expected one of {', '.join(ROLES)}.")
    return role
