"""The HTML file of an evidence pack: it asks for nothing outside itself, and what a person typed stays text.

Figures stand in it as JSON beside the charts that draw them. The page's own policy lets no script run but the two that it was made with,
and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from plotly.offline import get_plotlyjs

from app.charts import theme
from app.review import differs
from starfish_lab.evidence import Evidence, archive, summary

if TYPE_CHECKING:
    from app.review.evidence import Chart

DRAW = """
for (const figure of document.querySelectorAll("figure")) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  Plotly.newPlot(figure.querySelector("div"), spec.data, spec.layout, {displaylogo: false, responsive: true});
}
"""
STYLE = """
body {font: 15px/1.5 -apple-system, "Segoe UI", "Source Sans", sans-serif; color: #1e293b; background: #fff; margin: 2rem auto; max-width: 1100px;
  padding: 0 1rem}
h1 {font-size: 1.6rem} h2 {font-size: 1.2rem; margin-top: 2.5rem}
.wide {overflow-x: auto} table {border-collapse: collapse; font-variant-numeric: tabular-nums}
th, td {border-bottom: 1px solid #dbe1e8; padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top} th {color: #5b6878; font-weight: 600}
.prints td {white-space: nowrap}
figure {margin: 1.5rem 0} figcaption, .quiet {color: #5b6878; font-size: .9rem} pre {background: #f4f6f8; padding: .75rem; overflow-x: auto}
"""


def page(pack: Evidence, charts: Iterable[Chart], *, made_at: str, link: str = "") -> str:
    """The whole file. `link` reopens the comparison for those with access."""
    title = f"Evidence on run{'s' if len(pack.ids) > 1 else ''} {', '.join(map(str, pack.ids))}"
    scripts = [get_plotlyjs(), DRAW]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {' '.join(map(_hash, scripts))}"
    parts = [
        f"<h1>{title}</h1><p>STARFISH Lab, made {escape(made_at)}.{_link(link)} Figures were measured by the runs themselves; "
        f"{archive.MANIFEST} holds the SHA-256 of every file of the pack.</p>",
        "<h2>Summary</h2>", _summary(pack), "<h2>What differs</h2>", _differences(pack),
        "<h2>Charts</h2>", *(_figure(chart) for chart in charts),
        "<h2>Decisions and notes</h2>", _said(pack), "<h2>Fingerprints</h2>", f'<div class="prints">{_fingerprints(pack)}</div>',
        "<h2>Recipes</h2>", *_recipes(pack),
    ]  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n{chr(10).join(parts)}\n<script>{scripts[0]}</script>\n<script>{scripts[1]}</script>\n</body>\n</html>\n"
    )


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _link(link: str) -> str:
    return f' <a href="{escape(link)}">The comparison in the lab</a>.' if link.startswith(("http://", "https://")) else ""


def _figure(chart: Chart) -> str:
    """A chart: its JSON, in which no tag can end the element, the place it is drawn in, and how to read it."""
    spec = theme.wrapped(chart.fig).to_json().replace("<", "\\u003c")
    height = int(chart.fig.layout.height)
    return (
        f'<figure id="{chart.name}"><script type="application/json">{spec}</script><div style="height:{height}px"></div>'
        f"<figcaption>{escape(chart.caption)} Numbers: charts/{chart.name}.csv.</figcaption></figure>"
    )


def _summary(pack: Evidence) -> str:
    rows = archive.rows(pack)
    note = "± is the larger half of the 95 % Wilson interval on n images; overlapping intervals do not tell two runs apart."
    return _table(list(summary.COLUMNS.values()), [list(row.values()) for row in rows]) + f'<p class="quiet">{note}</p>'


def _differences(pack: Evidence) -> str:
    found = differs.table({run: recipe.to_dict() for run, recipe in pack.recipes.items()})
    if found.empty:
        return "<p>The recipes are alike in every field.</p>" if len(pack.ids) > 1 else "<p>One run alone: there is nothing to compare.</p>"
    columns = differs.columns(found)
    return _table(["Run", *columns], [[run, *values] for run, *values in zip(pack.ids, *columns.values())])


def _said(pack: Evidence) -> str:
    dated = [archive.dated(table) for table in (pack.decisions, pack.remarks)]
    decided = [[row.run, row.decision, row.why, row.who, row.t] for row in dated[0].itertuples()]
    remarked = [[row.run, row.text, row.who, row.t] for row in dated[1].itertuples()]
    notes = [[row.run, row.note] for row in pack.table("notes").itertuples()]
    return (
        (_table(["Run", "Decision", "Why", "Who", "When"], decided) if decided else "<p>Nothing was decided yet.</p>")
        + (_table(["Run", "Note", "Who", "When"], remarked) if remarked else "<p>Nobody left a note.</p>")
        + (_table(["Run", "The run itself noted"], notes) if notes else "")
    )


def _fingerprints(pack: Evidence) -> str:
    found = archive.fingerprints(pack)
    return _table(list(found.columns), found.fillna("–").to_numpy().tolist())


def _recipes(pack: Evidence) -> list[str]:
    return [f"<details><summary>Recipe of run {run}</summary><pre>{escape(recipe.to_json())}</pre></details>" for run, recipe in pack.recipes.items()]


def _table(heads: list[str], rows: list[list[object]]) -> str:
    cells = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{escape(str(name))}</th>" for name in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(f"<tr>{row}</tr>" for row in cells)}</tbody></table></div>'
