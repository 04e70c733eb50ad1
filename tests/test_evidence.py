"""The evidence pack: what it holds, that its tables reproduce its charts number by number, and that it opens offline."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile

import pandas as pd
import pytest
import synthetic
from conftest import ROOT
from plotly.offline import get_plotlyjs
from synthetic import _decoded, traces

from app.review import evidence, page
from starfish_lab import __main__ as command_line
from starfish_lab.errors import LabError, StoreError
from starfish_lab.evidence import archive, summary
from starfish_lab.store import Store

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def store(lab_home):
    return Store()


def _runs(store, count: int = 3, **options) -> list[int]:
    """Finished runs that differ in their sparsity alone."""
    return [synthetic.done(store, sparsity=0.9 - i / 40, healed=0.97 - i / 100, parent=i or None, **options) for i in range(count)]


def _opened(data: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archived:
        return {name: archived.read(name).decode() for name in archived.namelist()}


def _tables(files: dict[str, str]) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(io.StringIO(text)) for name, text in files.items() if name.endswith(".csv")}


def _figures(html: str) -> dict[str, dict]:
    """{name: figure} as the file's own script reads them."""
    found = re.findall(r'<figure id="(\w+)"><script type="application/json">(.*?)</script>', html, re.DOTALL)
    return {name: _decoded(json.loads(text)) for name, text in found}


def test_the_pack_holds_tables_recipes_charts_and_the_hash_of_every_file(store):
    ids = _runs(store)
    store.decide(ids[0], "accepted", "holds", "Ada")
    store.remark(ids[1], "look again", "Bob")
    files = _opened(evidence.zipped(store, ids))
    assert {"evidence.html", "summary.md", "runs.csv", "stages.csv", "decisions.csv", "remarks.csv", "fingerprints.csv", "manifest.json"} <= set(
        files
    )
    assert {"tables/accuracy.csv", "tables/drift.csv", "tables/latency.csv", "charts/drift.csv", "charts/lineage.csv"} <= set(files)
    manifest = json.loads(files["manifest.json"])
    assert manifest["runs"] == ids and set(manifest["files"]) == set(files) - {"manifest.json", "SHA256SUMS"}
    for name, facts in manifest["files"].items():
        assert facts == {"sha256": hashlib.sha256(files[name].encode()).hexdigest(), "bytes": len(files[name].encode())}
        assert f"{facts['sha256']}  {name}\n" in files["SHA256SUMS"]
    recipe = store.run(ids[1]).recipe
    assert type(recipe).from_json(files[f"recipes/run-{ids[1]}.json"]) == recipe
    tables = _tables(files)
    assert tables["fingerprints.csv"].set_index("run").loc[ids[1], "recipe"] == recipe.fingerprint()
    assert tables["decisions.csv"].loc[0, ["run", "decision", "why", "who"]].tolist() == [ids[0], "accepted", "holds", "Ada"]
    assert tables["remarks.csv"].loc[0, ["run", "text", "who"]].tolist() == [ids[1], "look again", "Bob"]
    for text in ("accepted", "holds", "Ada", "look again", "Bob"):
        assert text in files["evidence.html"]


def test_the_tables_reproduce_the_numbers_of_every_chart(store):
    """Each figure is read back from the HTML as a browser does, and every number found in the CSVs, to the last digit."""
    ids = _runs(store)
    files = _opened(evidence.zipped(store, ids))
    figures, tables = _figures(files["evidence.html"]), _tables(files)
    costs = ("macs_g", "parameters_m", "latency_ms", "healing_s")
    assert set(figures) == {f"accuracy_by_{cost}" for cost in costs} | {"what_differs", "drift", "lineage"}
    assert {f"charts/{name}.csv" for name in figures} <= set(tables)
    stages = tables["stages.csv"].set_index(["run", "stage"])
    for cost in costs:
        drawn = traces(figures[f"accuracy_by_{cost}"])
        for stage, rows in tables[f"charts/accuracy_by_{cost}.csv"].groupby("stage"):
            rows, trace = rows.sort_values("cost", kind="stable"), drawn[stage]
            points = sorted(zip(trace["x"], trace["y"], trace["error_y"]["array"], trace["error_y"]["arrayminus"]))
            wanted = sorted((row.cost, 100 * row.top1, 100 * (row.high - row.top1), 100 * (row.top1 - row.low)) for row in rows.itertuples())
            assert points == wanted
            for row in rows.itertuples():
                assert stages.loc[(row.run, stage), ["top1", "low", "high", cost]].tolist() == [row.top1, row.low, row.high, row.cost]
    bars = traces(figures["what_differs"])
    by_run = tables["charts/what_differs.csv"].set_index(["stage", "run"])
    for stage in ("dense", "pruned", "healed"):
        for [run], height in zip(bars[stage]["customdata"], bars[stage]["y"]):
            assert height == 100 * by_run.loc[(stage, run), "top1"]
        assert {run for [run] in bars[stage]["customdata"]} == set(ids)
    for stage, rows in tables["charts/drift.csv"].groupby("stage"):
        grid = traces(figures["drift"])[stage]
        assert [f"run {run}" for run in ids] == grid["y"]
        for row in rows.itertuples():
            assert grid["z"][ids.index(row.run)][row.depth] == row.distance
        assert len(rows) == len(ids) * synthetic.DEPTH
    raw = tables["tables/drift.csv"]
    merged = raw[raw["tokens"] == "all"].merge(tables["charts/drift.csv"], on=["run", "stage", "depth"])
    assert len(merged) == 2 * len(ids) * synthetic.DEPTH and (merged["cosine_distance"] == merged["distance"]).all()
    marks = {
        (run, t["name"]): (x, y) for t in figures["lineage"]["data"] if "customdata" in t for [run], x, y in zip(t["customdata"], t["x"], t["y"])
    }
    assert marks == {(row.run, row.stage): (row.x, row.y) for row in tables["charts/lineage.csv"].itertuples()}
    accuracy = tables["tables/accuracy.csv"].set_index(["run", "stage"])["top1"]
    assert accuracy.to_dict() == stages["top1"].to_dict()


def test_the_same_runs_give_the_same_bytes_but_for_the_stated_time(store):
    ids = _runs(store)
    first, again, later = (evidence.zipped(store, ids, made_at=time) for time in ("2030-01-01", "2030-01-01", "2031-07-07"))
    assert first == again
    one, other = _opened(first), _opened(later)
    assert {name for name in one if one[name] != other[name]} == {"evidence.html", "manifest.json", "SHA256SUMS"}
    assert one["evidence.html"].replace("2030-01-01", "2031-07-07") == other["evidence.html"]


def test_what_a_person_typed_stays_text(store):
    run = synthetic.done(store, name=NASTY)
    store.decide(run, "accepted", NASTY, NASTY)
    store.remark(run, NASTY, NASTY)
    files = _opened(evidence.zipped(store, [run, synthetic.done(store, sparsity=0.5)], link=f'https://lab/"><script>{NASTY}'))
    html = files["evidence.html"].replace(get_plotlyjs(), "").replace(page.DRAW, "")
    assert html.count("<script>") == 2 and html.count("<script></script>") == 2  # the two that the page was made with, and no other
    assert "<img" not in html and "&lt;script&gt;alert(1)" in html
    assert r"\<script\>" in files["summary.md"] and "<script>" not in files["summary.md"]
    assert not re.search(r'(src|href)="(?!data:|https://lab/)', html)


def test_twenty_runs_stay_far_below_fifteen_megabytes(store):
    data = evidence.zipped(store, _runs(store, 20))
    print(f"evidence pack of 20 runs: {len(data) / 1e6:.1f} MB")
    assert len(data) < 15e6


def test_runs_that_are_not_finished_are_named(store):
    run, waiting = synthetic.done(store), store.submit(synthetic.recipe(sparsity=0.5))
    with pytest.raises(StoreError, match=f"No finished experiment has the number {waiting}, 99"):
        evidence.zipped(store, [run, waiting, 99])
    with pytest.raises(StoreError, match="1 to 50 runs, and 0 were asked for"):
        evidence.zipped(store, [])


def test_a_pack_that_was_changed_is_told_file_by_file(store, tmp_path):
    path = tmp_path / "pack.zip"
    path.write_bytes(evidence.zipped(store, _runs(store, 1)))
    assert set(archive.check(path)["found"]) == {"as made"}
    files = _opened(path.read_bytes())
    files["stages.csv"] = files["stages.csv"].replace("0.97", "0.99")
    del files["runs.csv"]
    with zipfile.ZipFile(path, "w") as changed:
        for name, text in {**files, "extra.txt": "x"}.items():
            changed.writestr(name, text)
    found = archive.check(path).set_index("file")["found"]
    assert found[found != "as made"].to_dict() == {"stages.csv": "changed", "runs.csv": "missing", "extra.txt": "not listed"}
    (tmp_path / "no.zip").write_text("no")
    with pytest.raises(LabError, match="is no evidence pack"):
        archive.check(tmp_path / "no.zip")


def test_the_command_writes_and_checks_a_pack(store, tmp_path, capsys):
    ids = _runs(store, 2)
    out = tmp_path / "pack.zip"
    assert command_line.main(["evidence", "--runs", ",".join(map(str, ids)), "--out", str(out), "--json"]) == 0
    listed = {row["file"]: row["sha256"] for row in json.loads(capsys.readouterr().out)}
    assert listed["evidence.html"] == hashlib.sha256(_opened(out.read_bytes())["evidence.html"].encode()).hexdigest()
    assert command_line.main(["evidence", "--check", str(out)]) == 0
    assert command_line.main(["evidence", "--runs", "1,77", "--out", str(tmp_path / "none.zip")]) == 1
    assert "number 77" in capsys.readouterr().err and not (tmp_path / "none.zip").exists()
    assert command_line.main(["evidence"]) == 1 and "--runs 3,4,5" in capsys.readouterr().err


def test_the_library_side_needs_no_charts():
    code = "import sys\nsys.modules |= dict.fromkeys(['plotly', 'streamlit', 'torch'])\n"
    code += "import starfish_lab.evidence.archive, starfish_lab.evidence.flags"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_markdown_says_accuracy_with_its_interval_both_sparsities_and_the_decision(store):
    run = synthetic.done(store)
    store.decide(run, "needs work", "slow | big", "Ada")
    tables = {name: store.table([run], name) for name in ("latency", "seconds", "comparisons")}
    rows = summary.rows(store.runs(), **tables, decisions=store.decisions([run]))
    assert summary.markdown(rows, link="https://lab/compare?runs=1").splitlines() == [
        "| Run | Top-1, 95 % interval | Sparsity (prunable, all) | MACs | Latency, batch 1 | Against dense | Decision |",
        "|---|---|---|---|---|---|---|",
        r"| 1 | 97.0 ± 1.8 % (n = 540) | 90.0 %, 85.0 % | 6 M | 3.92 ms (Test CPU) | not resolved with n = 540 | needs work (Ada): slow \| big |",
        "", "± is the larger half of the 95 % Wilson interval on n images; overlapping intervals do not tell two runs apart.",
        "", "[The comparison](https://lab/compare?runs=1)",
    ]  # fmt: skip


def test_the_html_opens_from_disk_without_a_network(store, browser, tmp_path):
    """In a real browser that is offline: every chart is drawn, nothing is asked for, nothing complains, no typed script runs."""
    files = _opened(evidence.zipped(store, _runs(store, name=NASTY)))
    (tmp_path / "evidence.html").write_text(files["evidence.html"])
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    view, asked, complaints = context.new_page(), [], []
    view.on("request", lambda request: asked.append(request.url))
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    view.goto((tmp_path / "evidence.html").as_uri())
    view.locator("figure .js-plotly-plot").nth(len(_figures(files["evidence.html"])) - 1).wait_for()
    drawn = view.evaluate("[...document.querySelectorAll('figure')].map(f => [f.id, f.querySelectorAll('.main-svg .trace, .main-svg .hm').length])")
    read = view.evaluate("document.querySelector('#drift div.js-plotly-plot').data[0].y[0]")
    wide = view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert dict(drawn).keys() == _figures(files["evidence.html"]).keys()
    assert all(count > 0 for _, count in drawn) and read == "run 1"
    assert asked == [(tmp_path / "evidence.html").as_uri()] and complaints == [] and wide <= 0
