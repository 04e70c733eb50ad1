"""The Ray backend on a cluster of three pretended nodes: an A40, an A100, a CPU. Every run is done once, where it asked to be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import conftest
import pytest
import ray_stub

from starfish_lab import settings
from starfish_lab.errors import LabError
from starfish_lab.jobs.ray_backend import RayBackend
from starfish_lab.jobs.ray_dispatcher import Dispatcher
from starfish_lab.recipe import Recipe
from starfish_lab.store import Store

pytestmark = pytest.mark.alone
STALE_SECONDS = 5.0
MEMORY = 80_000_000  # bytes of each node's object store, the least that Ray takes
ray = pytest.importorskip("ray", reason="Ray is not installed")
until = partial(conftest.until, seconds=240.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """A head without processors, and three nodes."""
    from ray.cluster_utils import Cluster

    paths = os.pathsep.join((str(settings.ROOT), os.path.dirname(__file__)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # processes that nobody asked for would only slow the others down
        patch.setenv("RAY_enable_worker_prestart", "0")
        patch.setenv("RAY_worker_niceness", "0")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False})
        found.ids = {name: add(found, name).node_id[:12] for name in ("A40", "A100", "")}
        yield found
        ray.shutdown()
        found.shutdown()


def add(cluster, gpu: str):
    """A node joins, with one GPU of that name or, for '', none."""
    options = {"num_gpus": 1, "resources": {f"accelerator_type:{gpu}": 1}} if gpu else {}
    return cluster.add_node(num_cpus=2, object_store_memory=MEMORY, **options)


@pytest.fixture
def store():
    return Store(stale_seconds=STALE_SECONDS)


@contextmanager
def dispatching(store: Store, cluster, do: Callable = ray_stub.do) -> Iterator[Dispatcher]:
    """A dispatcher at work."""
    dispatcher, stop = Dispatcher(store, cluster.address, do=do), threading.Event()
    thread = threading.Thread(target=dispatcher.run, args=(stop,))
    thread.start()
    try:
        yield dispatcher
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def wanting(device: str, name: str = "") -> Recipe:
    return Recipe(name=name, device=device)


def node_of(store: Store, run_id: int) -> str:
    return store.run(run_id).worker.split("/")[1]


def release() -> None:
    """Let runs named 'held' end."""
    (settings.home() / "go").touch()


def test_twenty_runs_over_three_nodes_each_once_and_where_it_asked_to_be(cluster, store):
    backend = RayBackend(store)
    asked = ["gpu:A40"] * 5 + ["gpu:A100"] * 5 + ["cuda"] * 3 + ["auto"] * 3 + ["cpu"] * 4
    ids = [store.submit(wanting(device)) for device in asked[:10]]  # not by the backend: a sweep, or the command line
    with dispatching(store, cluster):
        ids += [backend.submit(wanting(device)) for device in asked[10:]]
        until(lambda: all(not store.run(run_id).active for run_id in ids))
    runs = [store.run(run_id) for run_id in ids]
    assert Counter((run.status, run.attempt) for run in runs) == {("done", 1): 20}
    assert all(list(store.events(run_id, "done")["value"]) == [1.0] for run_id in ids)  # each was done, and once
    where = {device: {node_of(store, run_id) for run_id, wanted in zip(ids, asked, strict=True) if wanted == device} for device in asked}
    assert where["gpu:A40"] == {cluster.ids["A40"]} and where["gpu:A100"] == {cluster.ids["A100"]}
    assert where["cuda"] | where["auto"] <= {cluster.ids["A40"], cluster.ids["A100"]}  # 'auto' is a GPU where there is one
    assert [run.device for run in runs] == ["cuda"] * 16 + ["cpu"] * 4
    processes = [store.table([run_id], "provenance").set_index("name").loc["pid", "value"] for run_id in ids]
    assert len(set(processes)) == 20  # a fresh one each
    assert store.workers().empty  # all took their leave


def test_pending_and_running_runs_stop_within_two_seconds(cluster, store):
    backend = RayBackend(store)
    with dispatching(store, cluster) as dispatcher:
        running = [backend.submit(wanting(*what)) for what in (("gpu:A40", "polite"), ("gpu:A100", "busy"), ("cpu", "asleep"))]
        until(lambda: all(store.run(run_id).stage == "pretend" for run_id in running))
        pending = backend.submit(wanting("gpu:A40"))
        until(lambda: pending in dispatcher.tasks)
        until(lambda: set(backend.capacity()["run"].dropna()) == set(running))
        for run_id in (pending, *running):
            backend.cancel(run_id)
            assert until(lambda run_id=run_id: store.run(run_id).status == "cancelled") < 2
        until(lambda: not dispatcher.tasks and backend.capacity()["run"].isna().all())
        after = backend.submit(wanting("gpu:A40"))  # the node is free again
        until(lambda: store.run(after).status == "done")
    assert store.run(pending).attempt == 0 and store.events(running[0]).empty


def test_runs_of_a_node_that_dies_end_on_another(cluster, store):
    doomed = add(cluster, "A40")
    with dispatching(store, cluster):
        ids = [store.submit(wanting("gpu:A40", "held")) for _ in range(3)]
        until(lambda: sum(store.run(run_id).stage == "pretend" for run_id in ids) == 2)
        begun = [run_id for run_id in ids if store.run(run_id).worker]
        (lost,) = (run_id for run_id in begun if node_of(store, run_id) == doomed.node_id[:12])
        process = Path("/proc", store.run(lost).worker.rpartition("/")[2])
        assert process.exists()
        cluster.remove_node(doomed, allow_graceful=False)
        until(lambda: not process.exists())
        release()
        until(lambda: all(store.run(run_id).status == "done" for run_id in ids))
    assert {node_of(store, run_id) for run_id in ids} == {cluster.ids["A40"]}
    assert {run_id: store.run(run_id).attempt for run_id in ids} == {run_id: 1 + (run_id == lost) for run_id in ids}
    assert all(len(store.events(run_id, "done")) == 1 for run_id in ids)


def test_a_dispatcher_that_ends_hands_its_runs_back_and_the_next_takes_them(cluster, store):
    with dispatching(store, cluster):
        run_id = store.submit(wanting("cpu", "held"))
        until(lambda: store.run(run_id).stage == "pretend")
    until(lambda: store.run(run_id).status == "queued", seconds=20)
    assert store.run(run_id).attempt == 0
    release()
    with dispatching(store, cluster):
        until(lambda: store.run(run_id).status == "done")


def test_a_run_for_a_gpu_that_nobody_has_says_so_and_waits_for_one(cluster, store):
    with dispatching(store, cluster) as dispatcher:
        run_id = store.submit(wanting("gpu:H100"))
        until(lambda: run_id in dispatcher.tasks)
        assert store.notes(run_id) == ["The Ray cluster has no H100 now (there are: A100, A40). The run waits for one to join."]
        time.sleep(1.0)
        assert store.run(run_id).status == "queued"
        capacity = RayBackend(store).capacity()
        assert sorted(capacity["title"].str.partition(" ")[0]) == ["A100", "A40", "Ray"] and sorted(capacity["device"]) == ["cpu", "cuda", "cuda"]
        joined = add(cluster, "H100-80GB")
        until(lambda: store.run(run_id).status == "done")
        assert node_of(store, run_id) == joined.node_id[:12]
    cluster.remove_node(joined, allow_graceful=False)


def test_logs_come_back_and_a_node_that_cannot_begin_is_named(cluster, store, monkeypatch):
    with dispatching(store, cluster):
        run_id = store.submit(wanting("cpu", "fails"))
        until(lambda: store.run(run_id).status == "failed" and store.notes(run_id))
    assert store.run(run_id).error.startswith("The run stopped in the stage 'pretend': ValueError: nothing fits.")
    assert "the last words" in store.notes(run_id)[0] and "Traceback" in store.notes(run_id)[0]
    monkeypatch.setattr("starfish_lab.jobs.ray_dispatcher.HOLD_SECONDS", 0.05)
    with dispatching(store, cluster, ray_stub.broken):
        run_id = store.submit(wanting("cpu"))
        until(lambda: store.run(run_id).status == "failed")
    assert "could not begin this run. ModuleNotFoundError: No module named 'starfish_lab'. Each node needs the lab" in store.run(run_id).error


def test_a_cluster_that_goes_or_is_not_there_leaves_the_runs_queued_and_the_lab_up(store, monkeypatch):
    from ray.cluster_utils import Cluster

    run_id = store.submit(wanting("cpu"))
    assert "Nobody hands runs to Ray just now" in problem(store)
    other = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False})
    monkeypatch.setenv("STARFISH_LAB_BACKEND", other.address)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")  # Ray waits a minute
    try:
        with dispatcher_process() as process:
            until(lambda: not problem(store))
            process.terminate()
            assert process.wait(60) == 0 and store.workers().empty
        with dispatcher_process() as process:
            until(lambda: not problem(store))
            other.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
            assert process.wait(60)  # Ray ends it; the launcher starts another:
        with dispatcher_process() as process:
            until(lambda: "Connection refused" in problem(store))
            assert problem(store) == (
                f"Ray at {other.address} cannot be reached, so runs wait: [Errno 111] Connection refused. "
                "Start it (`ray start --head`), or correct STARFISH_LAB_BACKEND."
            )
            assert process.poll() is None
            process.terminate()
            assert process.wait(60) == 0
    finally:
        other.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    assert store.run(run_id).status == "queued"


@contextmanager
def dispatcher_process() -> Iterator[subprocess.Popen]:
    """The process beside the app, killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(settings.ROOT)}
    with subprocess.Popen([sys.executable, "-m", "starfish_lab.jobs.ray_dispatcher"], env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def problem(store: Store) -> str:
    """Why nothing can be done; '' where it can."""
    try:
        RayBackend(store).capacity()
    except LabError as error:
        return str(error)
    return ""
