"""The pack as a .zip: every file with its SHA-256 in a manifest, the same bytes for the same runs but for the stated time."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from starfish_lab import evidence
from starfish_lab.errors import LabError
from starfish_lab.evidence import summary

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
KEY, VERSION = "starfish_lab_evidence", 1
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file inside, so that the same content is the same archive


def now() -> str:
    """This moment, as a pack states it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def files(pack: evidence.Evidence) -> dict[str, str]:
    """{name: text} of all that a pack holds without charts: summary, tables, recipes, fingerprints, decisions and remarks."""
    found = {"summary.md": summary.markdown(rows(pack), title="Runs"), "runs.csv": _csv(pack.runs), "stages.csv": _csv(pack.stages())}
    found |= {f"tables/{name}.csv": _csv(table) for name, table in pack.tables.items()}
    found |= {f"recipes/run-{run}.json": recipe.to_json() + "\n" for run, recipe in pack.recipes.items()}
    found["fingerprints.csv"] = _csv(fingerprints(pack))
    found |= {f"{name}.csv": _csv(dated(table)) for name, table in (("decisions", pack.decisions), ("remarks", pack.remarks))}
    return found


def rows(pack: evidence.Evidence) -> list[dict[str, str]]:
    """The summary's rows of a pack."""
    tables = {name: pack.table(name) for name in ("latency", "seconds", "comparisons")}
    return summary.rows(pack.runs, **tables, decisions=pack.decisions)


def fingerprints(pack: evidence.Evidence) -> pd.DataFrame:
    """What must be equal for two figures to be comparable: a row a run; the recipe's fingerprint, and what the run noted of weights and hardware."""
    facts = pack.table("provenance")
    noted = {run: dict(zip(of_run["name"], of_run["value"])) for run, of_run in facts.groupby("run")} if len(facts) else {}
    return pd.DataFrame([{"run": run, "recipe": recipe.fingerprint(), **noted.get(run, {})} for run, recipe in pack.recipes.items()])


def packed(contents: dict[str, str], *, runs: list[int], made_at: str = "") -> bytes:
    """The .zip of these files, with a manifest of their hashes and the same list as `sha256sum -c` reads it."""
    data = {name: text.encode() for name, text in sorted(contents.items())}
    hashes = {name: {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)} for name, body in data.items()}
    manifest = {KEY: VERSION, "made_at": made_at or now(), "runs": runs, "files": hashes}
    data[SUMS] = "".join(f"{facts['sha256']}  {name}\n" for name, facts in hashes.items()).encode()
    data[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, body in data.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            zipped.writestr(entry, body, zipfile.ZIP_DEFLATED, 9)
    return archive.getvalue()


def check(path: str | Path) -> pd.DataFrame:
    """Whether a pack is as it was made: file, bytes, sha256 and what was found ('as made', 'changed', 'missing', 'not listed').

    Raises LabError where the file is no pack.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(there[MANIFEST])
        listed = manifest["files"] if manifest[KEY] == VERSION else None
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError):
        listed = None
    if not isinstance(listed, dict):
        raise LabError(f"{path} is no evidence pack: expected was a .zip with a {MANIFEST}, as the command evidence or the page Compare writes it.")
    found = []
    for name in sorted({*listed, *there} - {MANIFEST, SUMS}):
        body, facts = there.get(name), listed.get(name)
        digest = "" if body is None else hashlib.sha256(body).hexdigest()
        state = "not listed" if facts is None else "missing" if body is None else "as made" if digest == facts["sha256"] else "changed"
        found.append({"file": name, "bytes": len(body or b""), "sha256": digest, "found": state})
    return pd.DataFrame(found, columns=["file", "bytes", "sha256", "found"])


def _csv(table: pd.DataFrame) -> str:
    """Full precision: what is read back is the very number. Lists become space-separated numbers."""
    return table.map(lambda value: " ".join(map(str, value)) if isinstance(value, list) else value).to_csv(index=False, lineterminator="\n")


def dated(table: pd.DataFrame) -> pd.DataFrame:
    """Times as dates (UTC) instead of seconds since 1970."""
    return table.assign(t=pd.to_datetime(table["t"], unit="s", utc=True).dt.strftime("%Y-%m-%d %H:%M:%S UTC")) if len(table) else table
