"""Runs in a few lines: a row each, and as Markdown for a pull request."""

from __future__ import annotations

import re

import pandas as pd

from starfish_lab.evidence.figures import last, stages

COLUMNS = {
    "run": "Run", "accuracy": "Top-1, 95 % interval", "sparsity": "Sparsity (prunable, all)", "macs": "MACs", "latency": "Latency, batch 1",
    "verdict": "Against dense", "decision": "Decision",
}  # fmt: skip


def rows(
    runs: pd.DataFrame, *, latency: pd.DataFrame, seconds: pd.DataFrame, comparisons: pd.DataFrame, decisions: pd.DataFrame
) -> list[dict[str, str]]:
    """A row a run, in words: the keys of COLUMNS, figures with their unit, interval and n; '–' for what was not measured.

    The tables are the store's, with the column run; `decisions` newest first.
    """
    final = last(stages(runs, latency, seconds)).set_index("run")
    verdicts = _verdicts(comparisons)
    decided = {row.run: row for row in decisions[::-1].itertuples()} if len(decisions) else {}  # the newest stays
    found = []
    for run in runs.to_dict("records"):
        number, name = run["id"], run["name"]
        row = final.loc[number] if number in final.index else pd.Series(dtype=float)
        known = decided.get(number)
        found.append({
            "run": f"{number} {name}".strip(), "accuracy": _accuracy(row), "sparsity": _sparsity(run),
            "macs": _macs(row.get("macs_g")), "latency": _latency(row), "verdict": verdicts.get((number, row.get("stage")), "–"),
            "decision": "–" if known is None else f"{known.decision} ({known.who}){f': {known.why}' if known.why else ''}",
        })  # fmt: skip
    return found


def markdown(summary: list[dict[str, str]], *, title: str = "", link: str = "") -> str:
    """The rows as a Markdown table; what a person typed cannot end a cell or become a tag."""
    lines = [f"### {escaped(title)}", ""] if title else []
    lines += [f"| {' | '.join(COLUMNS.values())} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(escaped(row[name]) for name in COLUMNS)} |" for row in summary]
    lines += ["", "± is the larger half of the 95 % Wilson interval on n images; overlapping intervals do not tell two runs apart."]
    return "\n".join([*lines, *(["", f"[The comparison]({link})"] if link else [])]) + "\n"


def escaped(text: str) -> str:
    r"""Text as it stands, whatever Markdown or HTML would make of it.

    >>> print(escaped("a|b <i>*c*</i>"))
    a\|b \<i\>\*c\*\</i\>
    """
    return re.sub(r"([\\`*_{}\[\]<>|#~@])", r"\\\1", " ".join(text.split()))


def _verdicts(comparisons: pd.DataFrame) -> dict[tuple[int, str], str]:
    """{(run, stage): what the paired test against dense says}."""
    against_dense = comparisons[comparisons["first"] == "dense"] if len(comparisons) else comparisons
    return {(row.run, row.second): row.verdict for row in against_dense.itertuples()}


def _accuracy(row: pd.Series) -> str:
    if pd.isna(row.get("top1")):
        return "–"
    half = max(row["high"] - row["top1"], row["top1"] - row["low"])
    return f"{100 * row['top1']:.1f} ± {100 * half:.1f} % (n = {row['images']:,.0f})"


def _sparsity(run: dict[str, object]) -> str:
    if pd.isna(run["sparsity_prunable"]):
        return "–"
    return f"{100 * run['sparsity_prunable']:.1f} %, {100 * run['sparsity_all']:.1f} %"


def _macs(macs_g: float | None) -> str:
    if pd.isna(macs_g):
        return "–"
    return f"{macs_g:.3g} G" if macs_g >= 0.1 else f"{1e3 * macs_g:.3g} M"


def _latency(row: pd.Series) -> str:
    return "–" if pd.isna(row.get("latency_ms")) else f"{row['latency_ms']:.3g} ms ({row['device']})"
