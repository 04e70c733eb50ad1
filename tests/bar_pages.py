"""How pages keep up: with 10,000 runs in the store, and with ten browsers at once. Called by tests/bars.py; asserts little, prints what it finds."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa
import synthetic
from browsing import CHROMIUM, DRAWN, PAGES, Lab, chromium, started

from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.report import Report
from starfish_lab.store import Store
from starfish_lab.store.schema import RUNS

# Streamlit has run since the click and rests, the page of this path is there, and nothing on it is from before.
WATCH = """() => {
  window.ran = false
  const app = document.querySelector('.stApp')
  window.watcher?.disconnect()
  window.watcher = new MutationObserver(() => { window.ran ||= app.dataset.testScriptState === 'running' })
  window.watcher.observe(app, {attributeFilter: ['data-test-script-state']})
}"""
SETTLED = """path => window.ran && location.pathname === path && document.querySelector('.stApp').dataset.testScriptState === 'notRunning'
  && !document.querySelector('[data-stale=true], [data-testid=stSkeleton]')"""
MENU, LINK = "[data-testid=stTopNavSection]", "[data-testid=stTopNavDropdownLink]"
METHODS = ("starfish", "logit_distillation", "cross_entropy")


def fill(store: Store, *, runs: int, reports: int, seed: int = 0) -> list[int]:
    """A store of `runs` plausible runs, the newest `reports` of them with their tables; returns the numbers of these."""
    rng = random.Random(seed)
    synthetic.done(store, name="the first")
    with store.transaction() as connection:
        model = dict(connection.execute(sa.select(RUNS)).one()._mapping)
        del model["id"]
        now, rows = time.time(), []
        for i in range(runs - reports - 1):
            status = rng.choices(("done", "failed", "cancelled"), (94, 4, 2))[0]
            sparsity, method = round(rng.uniform(0.3, 0.97), 2), rng.choice(METHODS)
            plan = synthetic.recipe(sparsity=sparsity, method=method, seed=i)
            rows.append(model | {
                "name": rng.choice(("", "", f"try {i}")), "owner": rng.choice(("", "ada", "bob")), "status": status, "sparsity": sparsity,
                "method": method, "recipe": plan.to_json(), "recipe_hash": plan.fingerprint(), "created_at": now - 600 * (runs - i),
                "parent": rng.choice((None, None, None, max(1, i))), "summary": model["summary"] if status == "done" else None,
            })  # fmt: skip
        connection.execute(sa.insert(RUNS), rows)
    for number in range(8):
        store.finish(store.submit(BakeOff(healers=("starfish", "none"), sparsities=(0.5, 0.55 + number / 20)), "bakeoff"), Report())
        synthetic.latency_run(store)
    return [
        synthetic.done(store, healed=rng.uniform(0.8, 0.98), name=f"run {i}", sparsity=round(0.5 + 0.0015 * i, 4), seed=i) for i in range(reports)
    ]


def thousands(runs: int | str = 10_000, reports: int | str = 300, times: int | str = 9) -> None:
    """Milliseconds of a rerun of every page with 10,000 runs in the store, and of the first paint of Compare with 50 chosen."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["STARFISH_LAB_HOME"] = home
        begun = time.perf_counter()
        known = fill(Store(), runs=int(runs), reports=int(reports))
        print(f"{len(Store().runs(kind=None, limit=2 * int(runs))):,} runs written in {time.perf_counter() - begun:.0f} s", flush=True)
        fifty = ",".join(map(str, known[-50:]))
        asked = {"compare": {"runs": fifty}, "prune_and_heal": {"run": known[-1]}}
        looks = [*((page, asked.get(page, {})) for page in PAGES), ("compare", {"runs": f"2,3,{fifty}"}), ("runs", {"find": "ada"})]
        for page, query in looks:
            first, app = _timed(lambda page=page, query=query: synthetic.open_page(page, **query))
            again = [_timed(app.run) for _ in range(int(times))]
            assert synthetic.unharmed(app), page
            wall, processor = (statistics.median(found[0][i] for found in again) for i in (0, 1))
            chosen = page + "".join(f" {name}={str(value)[:12]}" for name, value in query.items())
            print(f"{chosen:32s} first {first[0]:5.0f} ms, again {wall:5.0f} ms, of these {processor:.0f} of processor", flush=True)


def crowd(minutes: float | str = 2, browsers: int | str = 10) -> None:
    """Browsers at once clicking through all pages: milliseconds from click to settled page, errors, memory and processor time.

    Browsers and server share this machine's cores, which people's do not: what either took of them is printed beside. So the same
    again twice: one browser with these cores to itself and the app, while the other visitors come without one; and all without
    browsers, from the request until the app has sent the whole page.
    """
    for visit in (_crowd, _one_of_all, _answers):
        with tempfile.TemporaryDirectory() as home, started(Path(home)) as lab:
            numbers = fill(lab.store, runs=1000, reports=60)
            asyncio.run(visit(lab, f"run={numbers[-1]}&runs={','.join(map(str, numbers[-5:]))}", 60 * float(minutes), int(browsers)))


async def _crowd(lab: Lab, query: str, seconds: float, browsers: int) -> None:
    from playwright.async_api import async_playwright

    clicks: list[tuple[str, float, float]] = []  # page, when in seconds from the start, milliseconds
    errors: list[str] = []
    async with async_playwright() as api:
        browser = await api.chromium.launch(executable_path=chromium(), args=CHROMIUM)
        views = [await _visitor(browser, f"{lab.url}/?{query}", errors) for _ in range(browsers)]
        await asyncio.sleep(10)  # until the last of them is drawn and nothing happens any more
        begun, memory, before = time.monotonic(), asyncio.create_task(_memory(lab, seconds)), _processor(lab)
        await asyncio.gather(*(_click_about(view, random.Random(i), begun, seconds, clicks, errors) for i, view in enumerate(views)))
        whole = os.cpu_count() * (time.monotonic() - begun)
        held, taken = await memory, _processor(lab)
        await browser.close()
    _report(clicks, errors, held, [(after - first) / whole for after, first in zip(taken, before)])


async def _one_of_all(lab: Lab, query: str, seconds: float, visitors: int) -> None:
    """What one of them sees, whose machine draws for one alone."""
    print("one browser, the others' requests without:")
    errors: list[str] = []
    others = (_session(lab, query, random.Random(i), time.monotonic(), seconds + 15, [], errors) for i in range(visitors - 1))
    await asyncio.gather(_crowd(lab, query, seconds, 1), *others)
    print(f"{len(errors)} errors of the others{''.join(f'; {error}' for error in sorted(set(errors)))}")


async def _answers(lab: Lab, query: str, seconds: float, visitors: int) -> None:
    """The same without browsers: sessions that ask for page after page and take in what the app sends, as a browser's script does first."""
    clicks: list[tuple[str, float, float]] = []
    errors: list[str] = []
    await _session(lab, query, random.Random(visitors), time.monotonic(), 1, [], errors)  # the app has been opened before
    begun, memory, before = time.monotonic(), asyncio.create_task(_memory(lab, seconds)), _processor(lab)
    await asyncio.gather(*(_session(lab, query, random.Random(i), begun, seconds, clicks, errors) for i in range(visitors)))
    whole = os.cpu_count() * (time.monotonic() - begun)
    held, taken = await memory, _processor(lab)[0]
    print("without browsers, until the page is sent:")
    _report(clicks, errors, held, [(taken - before[0]) / whole])


async def _session(lab: Lab, query: str, rng: random.Random, begun: float, seconds: float, clicks: list, errors: list[str]) -> None:
    """All pages in a new order again and again over one websocket, each looked at for 5 to 11 seconds."""
    import websockets
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    async with websockets.connect(f"{lab.url.replace('http', 'ws')}/_stcore/stream", max_size=None) as line:

        async def ask(page: str) -> None:
            message = BackMsg()
            message.rerun_script.query_string, message.rerun_script.page_name = query, page
            await line.send(message.SerializeToString())
            while True:
                told = ForwardMsg.FromString(await asyncio.wait_for(line.recv(), 30))
                if told.WhichOneof("type") == "delta" and told.delta.new_element.HasField("alert") and told.delta.new_element.alert.format == 1:
                    errors.append(f"{page}: {told.delta.new_element.alert.body}")
                if told.WhichOneof("type") == "page_not_found":
                    errors.append(f"{page}: no such page")
                if told.WhichOneof("type") == "script_finished":
                    return

        await ask("")
        ahead: list[str] = []
        while time.monotonic() - begun < seconds:
            await asyncio.sleep(rng.uniform(5, 11))
            ahead = ahead or rng.sample(list(PAGES), len(PAGES))
            page, at = ahead.pop(), time.monotonic()
            await ask(PAGES[page])
            clicks.append((page, at - begun, 1e3 * (time.monotonic() - at)))


def _report(clicks: list, errors: list[str], held: list[tuple[float, float]], shares: list[float]) -> None:
    for page in sorted({page for page, *_ in clicks}):
        found = [ms for name, _, ms in clicks if name == page]
        print(f"{page:16s} {len(found):4d} clicks, median {statistics.median(found):5.0f} ms, 95 % within {_p95(found):5.0f} ms")
    every = [ms for *_, ms in clicks]
    print(f"{len(clicks)} clicks, median {statistics.median(every):.0f} ms, 95 % within {_p95(every):.0f} ms, {len(errors)} errors")
    print(f"of {os.cpu_count()} cores " + ", ".join(f"{name} took {share:.0%}" for name, share in zip(("the app", "Chromium"), shares)))
    half = [mb for second, mb in held if second >= held[-1][0] / 2]
    grown = max(half) / half[0] - 1
    print(f"web process {held[0][1]:.0f} MB at first, {half[0]:.0f} MB half-way, {max(half):.0f} MB at most after that ({grown:+.1%})")
    for error in sorted(set(errors)):
        print(f"error, {errors.count(error)} times: {error}")


async def _visitor(browser, url: str, errors: list[str]):
    """A visitor on the first page."""
    view = await (await browser.new_context(viewport={"width": 1440, "height": 1000})).new_page()
    view.on("pageerror", lambda error: errors.append(str(error)))
    await view.goto(url)
    await view.locator(DRAWN).first.wait_for(timeout=120_000)
    return view


async def _click_about(view, rng: random.Random, begun: float, seconds: float, clicks: list, errors: list[str]) -> None:
    """All pages in a new order again and again, by the menus at the top, each looked at for 5 to 11 seconds: thirteen in two minutes."""
    menus, links, places = view.locator(MENU), view.locator(LINK), []
    for menu in range(await menus.count()):
        await menus.nth(menu).click()
        await links.first.wait_for()
        places += [(menu, place) for place in range(await links.count())]
        await view.keyboard.press("Escape")
    ahead: list[tuple[int, int]] = []
    while time.monotonic() - begun < seconds:
        await asyncio.sleep(rng.uniform(5, 11))
        ahead = ahead or rng.sample(places, len(places))
        menu, place = ahead.pop()
        try:
            await menus.nth(menu).click()
            name, path = (await links.nth(place).inner_text()).strip(), urlsplit(await links.nth(place).get_attribute("href")).path
            await view.evaluate(WATCH)
            at = time.monotonic()
            await links.nth(place).click()
            await view.wait_for_function(SETTLED, arg=path, polling=50, timeout=30_000)  # 'raf' would have every page draw frames as it waits
            clicks.append((name, at - begun, 1e3 * (time.monotonic() - at)))
            if await view.locator("[data-testid=stException], [data-testid=stAlertContentError]").count():
                errors.append(f"{name}: {await view.locator('[data-testid=stAlertContentError]').all_inner_texts()}")
        except Exception as error:  # it counts, and the visitor goes on
            errors.append(str(error).partition("\n")[0])


async def _memory(lab: Lab, seconds: float) -> list[tuple[float, float]]:
    """(second, MB) of the process that serves pages, once a second."""
    import psutil

    web = next(child for child in psutil.Process(lab.process.pid).children(recursive=True) if "streamlit" in child.cmdline())
    begun, found = time.monotonic(), []
    while time.monotonic() - begun < seconds:
        found.append((time.monotonic() - begun, web.memory_info().rss / 2**20))
        await asyncio.sleep(1)
    return found


def _processor(lab: Lab) -> tuple[float, float]:
    """Seconds of processor that the app's processes, and the browsers', have had so far."""
    import psutil

    app = {lab.process.pid, *(child.pid for child in psutil.Process(lab.process.pid).children(recursive=True))}
    taken = [0.0, 0.0]
    for process in psutil.process_iter(["pid", "name", "cpu_times"]):
        if process.info["pid"] in app or "chrom" in process.info["name"]:
            taken[process.info["pid"] not in app] += sum(process.info["cpu_times"][:2])
    return taken[0], taken[1]


def _p95(found: list[float]) -> float:
    return statistics.quantiles(found, n=20)[-1] if len(found) > 1 else found[0]


def _timed(do) -> tuple[tuple[float, float], object]:
    """(milliseconds on the clock, milliseconds of processor), and what it returned."""
    wall, processor = time.perf_counter(), time.process_time()
    found = do()
    return (1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)), found
