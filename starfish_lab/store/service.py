"""The store as one person may use it: what the pages hold. Workers and commands at the server use the store itself.

Reads pass through. Every act checks the person's role as it stands in the store at that moment, keeps the quota and leaves a row
in the audit trail, in one transaction with the act itself, so that neither a second tab nor a forged request comes between. What is
neither a read nor an act here is for workers alone, and refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from starfish_lab.errors import Forbidden
from starfish_lab.plain_data import Plan
from starfish_lab.report import Report
from starfish_lab.store import people, tasks
from starfish_lab.store.database import one_at_a_time
from starfish_lab.store.people import Person
from starfish_lab.store.queue import unknown_run
from starfish_lab.store.schema import AUDIT, RUNS

if TYPE_CHECKING:
    from starfish_lab.store import Store
    from starfish_lab.whatif import Profile

LOCAL = "local"  # who did it, in the audit trail of a lab without sign-in
READS = (
    "active", "audit", "cancel_requested", "decisions", "events", "followed", "notes", "numbers", "people", "profile", "recipes", "remarks",
    "report", "run", "runs", "stale_seconds", "sweep_runs", "table", "url", "workers",
)  # fmt: skip
MAY = {  # what a person of a role …
    "none": "may not use this lab",
    "viewer": "may look but change nothing",
    "runner": "may launch runs and change their own",
    "admin": "may do everything",
}
REPEATED_SECONDS = 60.0  # the same refusal again within this time adds no row: a page that polls would fill the table


class Service:
    """What `Store.acting_as` returns. Its acts are those of Store, with the same arguments.

    Who owns a run or said something is the signed-in person, whatever an argument says; the one local person of a lab without
    sign-in is an admin and may give any name. Raises Forbidden, in a sentence, where the person may not do what was asked.
    """

    def __init__(self, store: Store, who: str | None):
        self._store = store
        self.who = None if who is None else people.address(who)

    @property
    def signs_in(self) -> bool:
        """False of the one local person."""
        return self.who is not None

    def __getattr__(self, name: str) -> object:
        if name in READS:
            return getattr(self._store, name)
        if not name.startswith("_") and hasattr(type(self._store), name):
            raise Forbidden(f"'{name}' of the store is for workers, not for people: nobody who uses the pages may call it.")
        raise AttributeError(name)

    def person(self) -> Person:
        """The person this store acts for, with the role and quota as they are now. Of the local person this asks no database."""
        if not self.signs_in:
            return self._person(None)
        with self._store.transaction() as connection:
            return self._person(connection)

    def submit(self, task: Plan, kind: str = "experiment", *, parent: int | None = None, owner: str = "") -> int:
        """Launch a run or a sweep. The number of a profile that somebody else waits for already costs nobody's quota."""
        with self._acting("launch", queues=True, detail=_told(task, kind)) as entry:
            entry["run_id"] = self._store.submit(task, kind, parent=parent, owner=self._name(owner))
        return entry["run_id"]

    def record(self, task: Plan, kind: str, report: Report, *, owner: str = "", device: str) -> int:
        """Keep what was found elsewhere."""
        with self._acting("import", detail=_told(task, kind)) as entry:
            entry["run_id"] = self._store.record(task, kind, report, owner=self._name(owner), device=device)
        return entry["run_id"]

    def request_cancel(self, run_id: int) -> None:
        with self._acting("cancel", run_id, own=True):
            self._store.request_cancel(run_id)

    def pause(self, run_id: int) -> None:
        with self._acting("pause", run_id, own=True):
            self._store.pause(run_id)

    def resume(self, run_id: int) -> None:
        with self._acting("resume", run_id, own=True, queues=True):
            self._store.resume(run_id)

    def retry(self, run_id: int) -> list[int]:
        with self._acting("retry", run_id, own=True, queues=True) as entry:
            ids = self._store.retry(run_id)
            entry["detail"] = f"runs {', '.join(map(str, ids))}"
        return ids

    def rename(self, run_id: int, name: str) -> None:
        with self._acting("rename", run_id, own=True, detail=name):
            self._store.rename(run_id, name)

    def delete(self, run_id: int) -> None:
        with self._acting("delete", run_id, own=True) as entry:
            entry["detail"] = self._store.run(run_id).name
            self._store.delete(run_id)

    def decide(self, run_id: int, decision: str, why: str, who: str = "") -> None:
        with self._acting("decide", run_id, detail=f"{decision}: {why}"):
            self._store.decide(run_id, decision, why, self._name(who) or LOCAL)

    def remark(self, run_id: int, text: str, who: str = "") -> None:
        with self._acting("remark", run_id, detail=text):
            self._store.remark(run_id, text, self._name(who) or LOCAL)

    def set_role(self, who: str, role: str | None, quota: int | None = None) -> None:
        limit = "" if quota is None else f", quota {quota}"
        with self._acting("set role", needs="admin", detail=f"{who}: {role or 'as everyone else'}{limit}"):
            self._store.set_role(who, role, quota)

    def save_profile(self, key: str, profile: Profile) -> None:
        with self._acting("save profile", needs="admin", detail=key):
            self._store.save_profile(key, profile)

    def _name(self, given: str) -> str:
        return given if self.who is None else self.who

    def _person(self, connection: sa.Connection | None) -> Person:
        return Person("", "admin", people.usual_quota()) if self.who is None else people.find(connection, self.who)

    @contextmanager
    def _acting(
        self, action: str, run_id: int | None = None, *, needs: str = "runner", own: bool = False, queues: bool = False, detail: str = ""
    ) -> Iterator[dict[str, object]]:  # fmt: skip
        """One act, all or nothing. Yields what the audit trail will say of it, for what is known only afterwards.

        needs : the least role
        own : a runner may do it with own runs only
        queues : it may add to the queue, so the quota is kept
        """
        entry: dict[str, object] = {"action": action, "run_id": run_id, "detail": detail}
        try:
            with self._store.transaction() as connection:
                one_at_a_time(connection)  # from here on, no other act changes roles, owners or the number of this person's jobs
                person = self._person(connection)
                _check_role(person, action, needs)
                if own and not person.may("admin"):
                    _check_owner(connection, person, action, run_id)
                before = sum(people.jobs_of(connection, person.who).values()) if queues and person.quota else 0
                yield entry
                if queues and person.quota:
                    _check_quota(people.jobs_of(connection, person.who), before, person.quota)
                people.record(connection, self.who or LOCAL, **entry)
        except Forbidden as refusal:
            self._record_refusal(f"{action} refused", run_id, str(refusal))
            raise

    def _record_refusal(self, action: str, run_id: int | None, why: str) -> None:
        """In a transaction of its own: that of the act was rolled back."""
        who = self.who or LOCAL
        newest = sa.select(AUDIT.c.t, AUDIT.c.action, AUDIT.c.run_id, AUDIT.c.detail).where(AUDIT.c.who == who).order_by(AUDIT.c.id.desc()).limit(1)
        with self._store.transaction() as connection:
            one_at_a_time(connection)
            at, *last = connection.execute(newest).first() or (0.0,)
            if last != [action, run_id, why] or time.time() - at > REPEATED_SECONDS:
                people.record(connection, who, action, run_id, why)


def _check_role(person: Person, action: str, needs: str) -> None:
    if not person.may(needs):
        raise Forbidden(
            f"You are signed in as {person.who} with the role {person.role}, which {MAY[person.role]}, so '{action}' was refused. "
            f"Ask an admin of this lab for the role {needs}."
        )


def _check_owner(connection: sa.Connection, person: Person, action: str, run_id: int) -> None:
    row = connection.execute(sa.select(RUNS.c.owner).where(RUNS.c.id == run_id)).first()
    if row is None:
        raise unknown_run(run_id)
    if row.owner != person.who:
        raise Forbidden(
            f"Run {run_id} belongs to {row.owner or 'nobody who signed in'}, so '{action}' was refused: a runner may do that with own runs. "
            "Ask its owner or an admin of this lab."
        )


def _check_quota(jobs: dict[str, int], before: int, quota: int) -> None:
    """`jobs` as they would be, `before` how many they were."""
    asked = sum(jobs.values()) - before
    if asked > 0 and before + asked > quota:
        raise Forbidden(
            f"You have {before} of your {quota} jobs running or queued, and this would add {asked}, so nothing was queued. "
            "Wait until some end, cancel some on the page Runs, or ask an admin of this lab for a larger quota."
        )


def _told(task: Plan, kind: str) -> str:
    """A plan in the audit trail: what is known of it before it has a number."""
    tasks.check(task, kind)
    listed = tasks.listed(task)
    return f"{kind} {listed['name'] or listed['model']}, {listed['pattern']} {listed['sparsity']:g}, {listed['method']}, recipe {task.fingerprint()}"
