"""Tables of the store. Times are seconds since 1970 (UTC)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from starfish_lab import settings

VERSION = 2  # 2 added people, audit, decisions and remarks; a store of version 1 gets them when it is opened

METADATA = sa.MetaData()

META = sa.Table("meta", METADATA, sa.Column("name", sa.String(40), primary_key=True), sa.Column("value", sa.Text, nullable=False))

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

PEOPLE = sa.Table(
    "people",
    METADATA,
    sa.Column("who", sa.String(254), primary_key=True),  # the address that a person signs in with, in small letters
    sa.Column("role", sa.String(12), nullable=False),
    sa.Column("quota", sa.Integer),  # jobs running and queued at once; 0: as many as wanted; NULL: as the setting says
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("t", sa.Double, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("run_id", sa.Integer),  # no foreign key: the row outlives its run
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("audit_by_who", "who", "id"),
)

DECISIONS = sa.Table(
    "decisions",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("t", sa.Double, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("decision", sa.String(12), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

REMARKS = sa.Table(
    "remarks",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("t", sa.Double, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)


def folder_of(run_id: int) -> Path:
    """Where a run keeps its checkpoint, log and healed network."""
    return settings.home() / "runs" / str(run_id)
