"""Workers and the launcher: what a run leaves behind however it ends, and that no process outlives its starter."""

from __future__ import annotations

import errno
import os
import runpy
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import until

from starfish_lab import settings
from starfish_lab.errors import ImagesError, LabError, StoreError
from starfish_lab.jobs import launcher, worker
from starfish_lab.jobs.reporter import StoreReporter
from starfish_lab.progress import Reporter
from starfish_lab.recipe import Recipe
from starfish_lab.report import Report
from starfish_lab.store import Store, folder_of

posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@pytest.fixture
def store():
    return Store(stale_seconds=1.0)


@pytest.fixture
def kind(monkeypatch):
    """Puts a function in the place of the experiment."""
    monkeypatch.setattr(worker, "_title", lambda device: device)

    def put(function: Callable) -> None:
        monkeypatch.setitem(worker.KINDS, "experiment", function)

    return put


@pytest.fixture
def processes():
    """Processes that are killed at the end of the test, whatever happens."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not yet collected does not count."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return not Path("/proc").exists()


def test_a_run_from_claim_to_report(store, kind):
    def function(run, *, store, reporter, folder, device):
        reporter.stage("heal")
        for step in range(1, 4):
            reporter.metric("loss", step, 1 / step)
            reporter.progress(step, 3)
        reporter.note("one image skipped")
        (folder / "healed").mkdir()
        (folder / "healed" / "recipe.json").write_text("{}")
        return Report({"seconds": [{"stage": device, "seconds": 1.0}]})

    kind(function)
    run_id = store.submit(Recipe())
    worker.work(store, "cpu", once=True)
    run = store.run(run_id)
    assert (run.status, run.stage, run.step, run.steps, run.device) == ("done", "heal", 3, 3, "cpu")
    assert run.artefact == str(folder_of(run_id) / "healed")
    assert list(store.events(run_id, "loss")["value"]) == [1.0, 0.5, pytest.approx(1 / 3)]
    assert store.notes(run_id) == ["one image skipped"]
    assert store.report(run_id).tables["seconds"][0]["stage"] == "cpu"
    assert store.workers().empty  # it took its leave


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImagesError("The folder is empty."), "The folder is empty."),
        (MemoryError(), "Memory ran out in the stage 'load'"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "Memory ran out in the stage 'load'"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk was full in the stage 'load'"),
        (
            ZeroDivisionError("division by zero\nsecond line"),
            "The run stopped in the stage 'load': ZeroDivisionError: division by zero. The details are",
        ),
    ],
)
def test_errors_become_words_and_the_traceback_a_log(store, kind, error, words):
    def function(run, *, store, reporter, folder, device):
        reporter.stage("load")
        raise error

    kind(function)
    run_id = store.submit(Recipe())
    worker.work(store, "cpu", once=True)
    run = store.run(run_id)
    assert run.status == "failed" and run.error.startswith(words) and "Traceback" not in run.error and "second line" not in run.error
    log = (folder_of(run_id) / "log.txt").read_text()
    assert "Traceback" in log and type(error).__name__ in log


def endless(run, *, store, reporter, folder, device):
    reporter.stage("heal")
    step = 0
    while True:
        step += 1
        reporter.progress(step % 1000, 1000)
        reporter.check()
        time.sleep(0.005)


def in_thread(store: Store, **options) -> tuple[threading.Thread, threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.work, args=(store, "cpu"), kwargs={"stop": stop, **options})
    thread.start()
    return thread, stop


def test_cancel_takes_less_than_two_seconds_and_the_worker_goes_on(store, kind):
    kind(endless)
    first, second = store.submit(Recipe()), store.submit(Recipe())
    thread, stop = in_thread(store)
    for run_id in (first, second):
        until(lambda run_id=run_id: store.run(run_id).status == "running")
        until(lambda run_id=run_id: (store.workers()["run"] == run_id).any())
        store.request_cancel(run_id)
        assert until(lambda run_id=run_id: store.run(run_id).status == "cancelled") < 2
    stop.set()
    thread.join()


def test_a_worker_that_is_stopped_hands_its_run_back(store, kind):
    kind(endless)
    run_id = store.submit(Recipe())
    thread, stop = in_thread(store)
    until(lambda: store.run(run_id).stage == "heal")
    stop.set()
    thread.join()
    run = store.run(run_id)
    assert (run.status, run.attempt, run.device) == ("queued", 0, None)


def test_the_heart_beats_through_a_long_computation(store, kind):
    kind(lambda run, **_: time.sleep(2.5 * store.stale_seconds) or Report())
    run_id = store.submit(Recipe())
    thread, stop = in_thread(store, once=True)
    until(lambda: store.run(run_id).status == "running")
    while thread.is_alive():
        assert store.claim("other", "cpu") is None
        time.sleep(0.05)
    assert store.run(run_id).status == "done" and store.run(run_id).attempt == 1


def test_a_worker_that_lost_its_run_stops_and_writes_nothing(store, kind):
    kind(endless)
    run_id = store.submit(Recipe())
    thread, _ = in_thread(store, once=True)
    until(lambda: store.run(run_id).stage == "heal")
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE runs SET worker = 'other'")
    thread.join(5)
    assert not thread.is_alive()
    assert (store.run(run_id).status, store.run(run_id).worker) == ("running", "other")


def test_a_result_waits_for_a_store_that_is_locked(store, kind, monkeypatch, capfd):
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.01)
    refusals = iter([StoreError("The store is locked."), StoreError("The disk is full.")])

    def refusing(*arguments, finish=store.finish, **options):
        for refusal in refusals:
            raise refusal
        return finish(*arguments, **options)

    monkeypatch.setattr(store, "finish", refusing)
    kind(lambda run, **_: Report({"seconds": [{"stage": "heal", "seconds": 1.0}]}))
    run_id = store.submit(Recipe())
    worker.work(store, "cpu", once=True)
    assert store.run(run_id).status == "done" and store.report(run_id).tables["seconds"]
    assert capfd.readouterr().err.count(f"The result of run {run_id} waits") == 2


def test_a_folder_from_another_store_is_not_continued(store, kind):
    seen = []
    kind(lambda run, folder, **_: seen.append((folder / "healing.ckpt").exists()) or Report())
    run_id = store.submit(Recipe())
    folder_of(run_id).mkdir(parents=True)
    (folder_of(run_id) / "healing.ckpt").write_text("of another run")
    worker.work(store, "cpu", once=True)
    assert seen == [False]


class Watch(Reporter):
    def __init__(self):
        self.heard = []

    def stage(self, name):
        self.heard.append(name)

    def progress(self, step, steps):
        self.heard.append((step, steps))


def test_reporter_keeps_quiet_between_writes_and_loses_no_figure(store, monkeypatch):
    run_id = store.submit(Recipe(), claimed_by=("w", "cpu"))
    written = []
    monkeypatch.setattr(store, "set_progress", lambda *a, set_progress=store.set_progress, **o: written.append(o) or set_progress(*a, **o))
    monkeypatch.setattr(store, "cancel_requested", lambda *a, ask=store.cancel_requested, **o: written.append("asked") or ask(*a, **o))
    watch = Watch()
    reporter = StoreReporter(store, run_id, "w", watch=watch)
    reporter.stage("heal")
    started = time.monotonic()
    for step in range(300):
        reporter.progress(step, 1000)
        reporter.metric("loss", step, 0.5)
        assert not reporter.cancel_requested()
        time.sleep(0.002)
    took = time.monotonic() - started
    reporter.stage("measure")
    assert watch.heard[0] == "heal" and len(watch.heard) == 302
    assert len(store.events(run_id)) == 300
    assert 2 <= sum(isinstance(w, dict) for w in written) <= 3 + took / 0.25
    assert 2 <= written.count("asked") <= 1 + took / 0.2
    last = [w for w in written if isinstance(w, dict) and w.get("seconds_left")][-1]
    assert last["seconds_left"] == pytest.approx(took / 300 * (1000 - last["step"]), rel=0.35)


def test_time_left_counts_from_where_the_stage_was_taken_up(store):
    run_id = store.submit(Recipe(), claimed_by=("w", "cpu"))
    reporter = StoreReporter(store, run_id, "w")
    reporter.stage("heal")
    reporter.progress(900, 1000)  # taken up from a checkpoint
    time.sleep(0.5)
    reporter.progress(950, 1000)
    assert store.run(run_id).seconds_left == pytest.approx(0.5, rel=0.3)


def test_figures_wait_while_the_store_is_locked(store, monkeypatch, capfd):
    run_id = store.submit(Recipe(), claimed_by=("w", "cpu"))
    reporter = StoreReporter(store, run_id, "w")

    def refuse(*_, **__):
        raise StoreError("The store is locked.")

    with monkeypatch.context() as locked:
        for name in ("add_events", "set_progress", "note", "cancel_requested"):
            locked.setattr(store, name, refuse)
        reporter.stage("heal")
        reporter.metric("loss", 0, 0.5)
        reporter.flush()
        assert not reporter.cancel_requested()
    reporter.flush()
    assert len(store.events(run_id)) == 1


def test_run_here(store, kind, monkeypatch):
    monkeypatch.setattr(worker, "_prepare", lambda: None)
    monkeypatch.setattr(worker, "_choose", lambda device: "cpu")
    watch = Watch()
    kind(lambda run, *, reporter, **_: reporter.stage("heal") or Report())
    run = worker.run_here(store, Recipe(name="here"), watch=watch)
    assert (run.status, run.name, run.device, watch.heard) == ("done", "here", "cpu", ["heal"])

    def interrupted(run, **_):
        raise KeyboardInterrupt

    kind(interrupted)
    assert worker.run_here(store, Recipe()).status == "cancelled"


def test_threads_are_set_or_refused_in_words(monkeypatch):
    import torch

    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("STARFISH_LAB_THREADS", "3")
        worker._prepare()
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("STARFISH_LAB_THREADS", "many")
        with pytest.raises(LabError, match="THREADS is 'many'"):
            worker._prepare()
    finally:
        torch.set_num_threads(before)


STEPS = """
    import json, sys, time
    from starfish_lab.jobs import worker
    from starfish_lab.report import Report
    from starfish_lab.store import Store

    def steps(run, *, store, reporter, folder, device):
        # x <- 3x + step (mod 2^31): the result shows every step that was left out or done twice
        checkpoint = folder / "steps.json"
        step, x = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 1)
        first = step
        reporter.stage("heal")
        while step < 60:
            reporter.check()
            step, x = step + 1, (3 * x + step) % 2**31
            part = folder / "part"
            part.write_text(json.dumps([step, x]))
            part.replace(checkpoint)
            reporter.metric("x", step, x)
            reporter.progress(step, 60)
            time.sleep(0.02)
        return Report({"provenance": [{"name": "x", "value": x}, {"name": "first", "value": first}]})

    worker.KINDS["experiment"] = steps
    worker._prepare = lambda: None
    worker._title = worker._choose = lambda device: device
    worker.Store = lambda: Store(stale_seconds=1.0)
    worker.main(sys.argv[1:])
"""


@pytest.fixture
def stepping(tmp_path) -> list[str]:
    """Command of a worker process whose experiment is 60 short steps with a checkpoint after each."""
    script = tmp_path / "stepping.py"
    script.write_text(textwrap.dedent(STEPS))
    return [sys.executable, str(script), "--device", "cpu"]


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(settings.ROOT)})


def kill_owner(store: Store, run_id: int) -> None:
    """kill -9 the worker process that does the run."""
    workers = store.workers().set_index("worker")
    os.kill(int(workers.loc[store.run(run_id).worker, "pid"]), signal.SIGKILL)


def provenance(store: Store, run_id: int) -> dict[str, object]:
    return {row["name"]: row["value"] for row in store.report(run_id).tables["provenance"]}


@posix
def test_a_killed_worker_costs_nothing_but_time(store, stepping, processes):
    expected = 1
    for step in range(60):
        expected = (3 * expected + step) % 2**31
    run_id = store.submit(Recipe())
    processes += [start(stepping), start(stepping)]
    until(lambda: (store.run(run_id).step or 0) >= 5 and len(store.workers()) == 2)
    kill_owner(store, run_id)
    assert store.run(run_id).status == "running"  # nobody said otherwise
    until(lambda: store.run(run_id).status == "done")
    found = provenance(store, run_id)
    assert found["x"] == expected and found["first"] >= 5 and store.run(run_id).attempt == 2
    events = store.events(run_id, "x")
    assert sorted(events["step"]) == sorted(set(events["step"])) and events["step"].max() == 60


@posix
def test_a_terminated_worker_hands_over_at_once(store, stepping, processes):
    run_id = store.submit(Recipe())
    processes.append(start(stepping))
    until(lambda: (store.run(run_id).step or 0) >= 5)
    processes[0].terminate()
    assert processes[0].wait(10) == 0
    assert store.run(run_id).status == "queued" and store.workers().empty
    processes.append(start([*stepping, "--once"]))
    assert processes[1].wait(30) == 0
    assert store.run(run_id).status == "done" and provenance(store, run_id)["first"] >= 5


@posix
def test_healing_goes_on_after_kill(tmp_path, processes):
    """The real thing: a worker process heals a tiny network, is killed with -9, and another heals it on to the same weights."""
    import torch

    script = tmp_path / "healing.py"
    script.write_text(textwrap.dedent(HEALING))
    store = Store(stale_seconds=1.0)
    run_id = store.submit(Recipe())
    processes += [start([sys.executable, str(script)]), start([sys.executable, str(script)])]
    threads = torch.get_num_threads()
    expected = runpy.run_path(str(script))["healed"](None, None)
    torch.set_num_threads(threads)
    checkpoint = folder_of(run_id) / "healing.ckpt"
    until(lambda: checkpoint.exists() and len(store.workers()) == 2, 120)
    kill_owner(store, run_id)
    until(lambda: not store.run(run_id).active, 120)
    assert store.run(run_id).status == "done", store.run(run_id).error
    found = provenance(store, run_id)
    assert found["resumed_from"] > 0 == expected["resumed_from"] and store.run(run_id).attempt == 2
    assert found["digest"] == expected["digest"]


HEALING = """
    import hashlib, time
    import torch
    from timm.models.vision_transformer import VisionTransformer
    from starfish_lab.healing.heal import heal
    from starfish_lab.jobs import worker
    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing
    from starfish_lab.pruning.prune import make_masks, pruned
    from starfish_lab.recipe import HealingChoice, PruningChoice
    from starfish_lab.report import Report
    from starfish_lab.store import Store

    def healed(reporter, checkpoint):
        torch.set_num_threads(1)  # the order of sums depends on it
        torch.manual_seed(0)
        module = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10).eval()
        dense = wrap(module, name="tiny", num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)))
        masks = make_masks(dense, PruningChoice(sparsity=0.7)).masks
        student = pruned(dense, masks)
        images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        result = heal(dense, student, masks, images, HealingChoice(steps=60, batch_size=8), reporter=reporter,
                      checkpoint=checkpoint, checkpoint_seconds=0.2)
        digest = hashlib.sha256()
        for tensor in student.module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return {"digest": digest.hexdigest(), "resumed_from": result.resumed_from or 0}

    def run(run, *, store, reporter, folder, device):
        reporter.stage("heal")
        check = reporter.check
        reporter.check = lambda: (time.sleep(0.03), check())
        found = healed(reporter, folder / "healing.ckpt")
        return Report({"provenance": [{"name": k, "value": v} for k, v in found.items()]})

    if __name__ == "__main__":
        worker.KINDS["experiment"] = run
        worker._title = lambda device: device
        worker.Store = lambda: Store(stale_seconds=1.0)
        worker.main(["--device", "cpu"])
"""


SERVER = """
    import http.server, os, pathlib, sys
    pathlib.Path(sys.argv[2]).write_text(str(os.getpid()))
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""

QUICK = """
    import sys
    from starfish_lab.jobs import worker
    worker._prepare = lambda: None  # spares four tests the import of torch
    worker._title = worker._choose = lambda device: device
    worker.main(sys.argv[1:])
"""

LAUNCH = """
    import sys
    from starfish_lab.jobs import launcher

    def start(module, start=launcher.start, **options):
        process = start(["quick" if name == "starfish_lab.jobs.worker" else name for name in module], **options)
        print("started", module[0], process.pid, flush=True)
        return process

    launcher.start = start
    port, pid_file = int(sys.argv[1]), sys.argv[2]
    sys.exit(launcher.launch(port=port, devices="cpu", open_browser=False, app=["served", str(port), pid_file]))
"""


@pytest.fixture
def launched(tmp_path, processes):
    """A launcher with a small web server in the place of Streamlit: (its process, pid of the server, what it said)."""
    for name, text in (("served", SERVER), ("quick", QUICK), ("launch", LAUNCH)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, str(tmp_path / "launch.py"), str(port), str(tmp_path / "pid")]
    paths = os.pathsep.join((str(settings.ROOT), str(tmp_path)))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True).start()
    until(lambda: any(f"STARFISH Lab is at http://localhost:{port}" in line for line in lines))
    server = int((tmp_path / "pid").read_text())
    yield process, server, lines
    for pid in (int(line.split()[2]) for line in lines if line.startswith("started ")):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, "app"])
def test_the_launcher_leaves_no_orphan(launched, how):
    process, server, _ = launched
    store = Store()
    until(lambda: store.workers()["alive"].any())
    worker_pid = int(store.workers()["pid"][0])
    assert alive(server) and alive(worker_pid)
    if how == "app":
        os.kill(server, signal.SIGTERM)
    else:
        process.send_signal(how)
    process.wait(15)
    until(lambda: not alive(server) and not alive(worker_pid), 15)
    if how != signal.SIGKILL:
        assert store.workers().empty  # the worker took its leave
    if how in (signal.SIGINT, signal.SIGTERM):
        assert process.returncode == 0


@posix
def test_the_launcher_starts_a_dead_worker_again(launched):
    _, _, lines = launched

    def workers() -> list[int]:
        return [int(line.split()[2]) for line in lines if line.startswith("started starfish_lab.jobs.worker")]

    os.kill(workers()[0], signal.SIGKILL)
    until(lambda: len(workers()) == 2)
    assert "The worker on cpu ended (exit code -9). It starts again in 1 s.\n" in lines
    assert alive(workers()[1]) and not alive(workers()[0])


def test_a_taken_port_is_said_in_words():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LabError, match=f"Port {port} cannot be used.*--port"):
            launcher.launch(port=port, devices="cpu", open_browser=False)


def test_devices_to_start_workers_for(monkeypatch):
    assert launcher._devices("cuda:0,cuda:1") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(launcher.shutil, "which", lambda name: None)
    monkeypatch.setattr(launcher, "ACCELERATOR_TRACES", ())
    monkeypatch.setattr(launcher.sys, "platform", "linux")
    assert launcher._devices("auto") == ["cpu"]
    monkeypatch.setattr(launcher, "ACCELERATOR_TRACES", ("/",))
    for found, expected in (("cuda:0 cuda:1 cpu", ["cuda:0", "cuda:1"]), ("mps cpu", ["mps"]), ("cpu", ["cpu"]), ("", ["cpu"])):
        monkeypatch.setattr(launcher.subprocess, "run", lambda *_, found=found, **__: subprocess.CompletedProcess([], 0, stdout=found))
        assert launcher._devices("auto") == expected


def test_beside_ray_the_launcher_starts_workers_only_for_named_devices(monkeypatch):
    monkeypatch.setattr(launcher, "start", lambda module, **_: module)

    def started(*choice: str | None) -> list[tuple[str, str]]:
        return [(worker.title, worker.process[-1]) for worker in launcher._workers(*choice)]

    assert started(None, "cpu") == [("cpu", "cpu")]
    ray = ("Ray at ray://head:10001", "starfish_lab.jobs.ray_dispatcher")
    assert started("ray://head:10001", "auto") == [ray]
    assert started("ray://head:10001", "cuda:0") == [ray, ("cuda:0", "cuda:0")]
    monkeypatch.setenv("STARFISH_LAB_BACKEND", "somewhere")
    with pytest.raises(LabError, match="STARFISH_LAB_BACKEND is 'somewhere': expected local, auto, ray://host:port or host:port"):
        launcher.launch(port=1, open_browser=False)
