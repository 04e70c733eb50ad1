"""A latency run as one JSON file: written where a GPU is, read where the store is. Checked in both directions; no torch here.

    {"starfish_lab_latency_results": 2, "plan": the plan, "tables": {table: [row, …]}}

Files of version 1 are read too: all they hold was timed in one process.

Every number is finite, every column holds what its readers expect, and the fingerprint is the hash of the facts in the table 'hardware',
so that a file cannot claim another machine by accident.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import replace
from pathlib import Path

from starfish_lab.errors import LabError, RecipeError
from starfish_lab.execution.choice import Execution
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.measure.fingerprint import HASH, digest
from starfish_lab.report import Report

KEY, VERSION, READ = "starfish_lab_latency_results", 2, (1, 2)
# Columns of the table 'latency' that every file has, and what they hold; figures are None in the rows of what was refused.
TEXTS = ("stage", "execution", "backend", "precision", "scenario", "dtype", "device", "device_name", "fingerprint", "note")
RATIOS = ("speedup", "speedup_low", "speedup_high", "speedup_best", "speedup_best_low", "speedup_best_high")  # None without a dense network
FIGURES = (
    "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "images_per_s", "images_per_s_low", "images_per_s_high", *RATIOS, "iterations",
)  # fmt: skip
BOUNDED = ("images_per_s", "speedup", "speedup_best")
# Columns that may be missing or None.
FURTHER_TEXTS = ("best_dense", "energy_method", "tokens", "throttle", "model")
FURTHER_NUMBERS = (
    "tflops", "peak_share", "macs_g", "joules_per_image", "memory_bytes", "largest_difference", "tolerance", "top1_agreement", "threads",
)  # fmt: skip
SAID = {"backend": "backend", "precision": "precision", "compiled": "compile", "merged": "merged", "channels_last": "channels_last"}
# The other tables that a file may have: columns of every row that are texts, and that are numbers.
TOTALS = ("parameters_m", "nonzero_parameters_m", "sparsity_prunable", "sparsity_all", "macs_g", "macs_g_effective")
OTHERS = {
    "latency_layers": (("execution", "layer", "kind"), ("batch", "ms", "share")), "sensors": (("when",), ("batch",)),
    "peak": (("precision",), ("tflops", "gb_per_s")), "hardware": (("name",), ()), "totals": (("stage",), TOTALS),
    "seconds": (("stage",), ("seconds",)), "notes": (("note",), ()), "provenance": (("name", "value"), ()), "layers": (("layer",), ()),
    "ledger": (("layer",), ()), "permutation": (("layer",), ()), "solver": (("layer",), ()), "cycles": ((), ()),
}  # fmt: skip
AGAIN = "Write it again with `python -m starfish_lab latency --out`."


def write(path: Path, report: Report, plan: LatencyPlan) -> None:
    """Write the file as a whole or not at all. Raises LabError where it cannot be written, or would not be read again."""
    content = {KEY: VERSION, "plan": plan.to_dict(), "tables": report.tables}
    text = json.dumps(content, allow_nan=False, default=lambda number: number.tolist())  # numpy's become Python's
    parse(text, name=path.name)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise LabError(f"The results cannot be written to {path}: {error.strerror}. Give another file with --out.") from None


def read(path: Path) -> tuple[Report, LatencyPlan]:
    """What `write` wrote. Raises LabError saying what is wrong with the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"The results file {path} cannot be read: {error.strerror}. Give the path of a file that `latency --out` wrote.") from None
    except UnicodeDecodeError:
        raise LabError(f"{path.name} is no results file: it is not text. {AGAIN}") from None
    return parse(text, name=path.name)


def parse(text: str, *, name: str = "The file") -> tuple[Report, LatencyPlan]:
    """The same from the file's text; `name` is what messages call it."""
    try:
        data = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise LabError(f"{name} is not valid JSON: {error}. {AGAIN}") from None
    if not isinstance(data, dict) or data.get(KEY) not in READ:
        raise LabError(f'{name} is no results file: expected a JSON object with "{KEY}": {VERSION}. {AGAIN}')
    try:
        plan = LatencyPlan.from_dict(data.get("plan"))
    except RecipeError as error:
        raise LabError(f"The plan in {name} is broken: {error}") from None
    if data[KEY] == 1:
        plan = replace(plan, starts=1)
    report = Report(_tables(data.get("tables"), name))
    _check_rows(report, name)
    _check_fingerprint(report, name)
    return report, plan


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number that JSON has")


def _tables(tables: object, name: str) -> dict[str, list[dict[str, object]]]:
    """Tables of flat rows with finite numbers."""
    if not isinstance(tables, dict) or not tables.get("latency") or not tables.get("hardware"):
        raise LabError(f"{name} lacks the tables latency and hardware, with at least one row each. {AGAIN}")
    for table, rows in tables.items():
        if table not in ("latency", *OTHERS):
            raise LabError(f"{name} has a table '{table}', which no timing has. Import it with the version of the lab that wrote it, or a later one.")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LabError(f"The table {table} of {name} is no list of rows. {AGAIN}")
        for i, row in enumerate(rows, start=1):
            bad = next((column for column, value in row.items() if not _plain(value)), None)
            if bad is not None:
                found = f"{reprlib.repr(row[bad])} as {bad}"
                raise LabError(f"Row {i} of the table {table} of {name} has {found}: expected a text or a finite number. {AGAIN}")
    return tables


def _plain(value: object) -> bool:
    if isinstance(value, list):  # of numbers, such as the counts of a histogram
        return all(not isinstance(item, list) and _plain(item) for item in value)
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _check_rows(report: Report, name: str) -> None:
    """Every column of every row holds what those who read it expect."""
    for table, rows in report.tables.items():
        for i, row in enumerate(rows, start=1):
            for column, (fits, expected) in (_latency_row(row) if table == "latency" else _other_row(table, row)).items():
                if not fits:
                    found = f"{reprlib.repr(row.get(column))} as {column}"
                    raise LabError(f"Row {i} of the table {table} of {name} has {found}: expected {expected}. {AGAIN}")


def _latency_row(row: dict[str, object]) -> dict[str, tuple[bool, str]]:
    """{column: whether it is right, what was expected}."""
    refused = row.get("images_per_s") is None
    right = {column: (isinstance(row.get(column), str), "a text") for column in TEXTS}
    for column in FIGURES:
        missing = row.get(column) is None and (refused or column in RATIOS)
        right[column] = (missing or _positive(row.get(column)), "a number above 0")
    right |= {column: (isinstance(row.get(column), str | None), "a text or nothing") for column in FURTHER_TEXTS}
    right |= {column: (row.get(column) is None or _number(row[column]), "a number or nothing") for column in FURTHER_NUMBERS}
    for column in ("batch", "starts"):
        value = row.get(column, 1 if column == "starts" else None)  # which rows of version 1 do not tell
        right[column] = (_positive(value) and isinstance(value, int), "a whole number above 0")
    if all(fits for fits, _ in right.values()):
        execution = _execution(row["execution"])
        right["execution"] = (execution is not None, "an execution of this lab")
        for column, said in SAID.items() if execution else ():
            expected = getattr(execution, said)
            right[column] = (row.get(column, expected) == expected, f"{expected}, as '{row['execution']}' says")
        scenario = "single" if row["batch"] == 1 else "offline"
        right["scenario"] = (row["scenario"] == scenario, f"{scenario} at batch {row['batch']}")
        for column in BOUNDED if not refused else ():
            low, value, high = (row.get(f"{column}{bound}") for bound in ("_low", "", "_high"))
            right[column] = (None in (low, value, high) or low <= value <= high, f"a number from {low} to {high}, its interval")
    return right


def _other_row(table: str, row: dict[str, object]) -> dict[str, tuple[bool, str]]:
    texts, numbers = OTHERS[table]
    return {column: (isinstance(row.get(column), str), "a text") for column in texts} | {
        column: (_number(row.get(column)), "a number") for column in numbers
    }


def _execution(label: str) -> Execution | None:
    try:
        return Execution.of(label)
    except RecipeError:
        return None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: object) -> bool:
    return _number(value) and value > 0


def _check_fingerprint(report: Report, name: str) -> None:
    """The hash is that of the facts, and that of every row."""
    facts = {row["name"]: row.get("value") for row in report.tables["hardware"]}
    if len(facts) < len(report.tables["hardware"]):
        raise LabError(f"{name} tells a fact about the machine twice: expected each once. {AGAIN}")
    found, said = digest(facts), facts.get(HASH)
    if said != found:
        raise LabError(f"The facts about the machine in {name} hash to {found}, and its fingerprint is {said}: one was changed. {AGAIN}")
    for row in report.tables["latency"]:
        for key in (HASH, "device_name"):
            if row[key] != facts.get(key):
                raise LabError(f"{name} has a row timed on {row[key]} beside the facts of {facts.get(key)}: a file holds one machine. {AGAIN}")
