"""The figures promised for reviewing runs: first paint and rerun of Compare with 50 chosen, reruns with 10,000 runs, the pack of 20 runs."""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import sqlalchemy as sa
import synthetic


def main(**options: str) -> None:
    """chosen=50 known=10000 packed=20 times=5."""
    chosen, known, packed, times = (int(options.get(name, usual)) for name, usual in (("chosen", 50), ("known", 10000), ("packed", 20), ("times", 5)))
    with tempfile.TemporaryDirectory() as home:
        os.environ["STARFISH_LAB_HOME"] = home
        from starfish_lab.store import Store

        store = Store()
        ids = [synthetic.done(store, sparsity=0.3 + 0.6 * i / chosen, healed=0.9 + 0.09 * i / chosen) for i in range(chosen)]
        _many(store, ids[0], known)
        synthetic.open_page("runs")  # what a process imports once is no page's own time
        for show in ("differs", "lineage", "decisions", "clone", "accuracy"):
            _page(f"Compare with {chosen} of {known:,} chosen, showing {show}", "compare", times, runs=",".join(map(str, ids)), show=show)
        for page in ("runs", "compare"):
            _page(f"{page} with {known:,} runs in the store", page, times)
        _pack(store, ids[:packed])


def _page(what: str, page: str, times: int, **query: str) -> None:
    started = time.perf_counter()
    app = synthetic.open_page(page, **query)
    first = time.perf_counter() - started
    assert synthetic.unharmed(app)
    again = []
    for _ in range(times):
        started = time.perf_counter()
        app.run()
        again.append(time.perf_counter() - started)
    print(f"{what}: first paint {first:.2f} s, rerun median {1000 * statistics.median(again):.0f} ms, worst {1000 * max(again):.0f} ms", flush=True)


def _many(store, run: int, count: int) -> None:
    """So many rows like this run's own, without tables."""
    from starfish_lab.store.schema import RUNS

    with store.transaction() as connection:
        row = dict(connection.execute(sa.select(RUNS).where(RUNS.c.id == run)).mappings().one())
        last = connection.scalar(sa.select(sa.func.max(RUNS.c.id)))
        rows = [row | {"id": last + i, "name": f"run {last + i}", "recipe_hash": f"{i:012x}"} for i in range(1, count - last + 1)]
        connection.execute(sa.insert(RUNS), rows)


def _pack(store, ids: list[int]) -> None:
    from app.review import evidence

    started = time.perf_counter()
    data = evidence.zipped(store, ids)
    print(f"evidence pack of {len(ids)} runs: {len(data) / 1e6:.2f} MB in {time.perf_counter() - started:.1f} s", flush=True)
