"""What the app sees of a Ray cluster: rows in the store, and sentences. No Ray is asked here."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
from synthetic import open_page, said, unharmed

from starfish_lab import jobs
from starfish_lab.errors import LabError
from starfish_lab.jobs import ray_nodes
from starfish_lab.jobs.protocol import LocalBackend
from starfish_lab.jobs.ray_backend import RayBackend
from starfish_lab.recipe import Recipe
from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def node(host: str, cpus: int, gpus: int = 0, kind: str = "") -> dict:
    resources = {"CPU": float(cpus), "memory": 1e9} | ({"GPU": float(gpus)} if gpus else {}) | ({f"accelerator_type:{kind}": 1.0} if kind else {})
    return {"NodeID": host * 10, "NodeManagerHostname": host, "Alive": True, "Resources": resources}


CLUSTER = [node("a", 8, 2, "A40"), node("b", 16, 1, "A100"), node("c", 4)]


def show(store: Store, dispatcher: str = "x", problem: str = "") -> None:
    """Rows as a dispatcher keeps them."""
    store.announce(f"ray/{dispatcher}", "ray", problem)
    for found in CLUSTER:
        store.announce(f"ray-node/{found['NodeID']}/{dispatcher}", ray_nodes.device(found), ray_nodes.title(found))


def test_capacity_has_a_row_for_each_run_of_a_node_and_one_for_an_idle_node(store):
    show(store)
    show(store, "of another lab")  # the same nodes, not twice
    store.announce("by hand", "cuda:0", "NVIDIA T4 (cuda:0)")
    for run_id, process in ((store.submit(Recipe()), 11), (store.submit(Recipe()), 12)):
        store.announce(f"ray-task/{'a' * 10}/0123/{process}", "cuda:0", "NVIDIA A40 (cuda:0)")
        store.heartbeat(f"ray-task/{'a' * 10}/0123/{process}", run_id)
    found = RayBackend(store).capacity()
    assert list(found.columns) == list(LocalBackend(store).capacity().columns) and found["alive"].all()
    rows = [(row.device, row.title, None if pd.isna(row.run) else row.run) for row in found.itertuples()]
    assert sorted(rows, key=str) == [
        ("cpu", "Ray node c (cpu, 4 threads)", None),
        ("cuda", "A100 (node b, 1 GPU, 16 CPUs)", None),
        ("cuda", "A40 (node a, 2 GPUs, 8 CPUs)", 1),
        ("cuda", "A40 (node a, 2 GPUs, 8 CPUs)", 2),
        ("cuda:0", "NVIDIA T4 (cuda:0)", None),
    ]


def test_what_is_wrong_with_ray_is_one_sentence_on_a_page_that_stays_up(store, monkeypatch):
    monkeypatch.setenv("STARFISH_LAB_BACKEND", "ray://head:10001")
    backend = jobs.backend(store)
    assert type(backend) is RayBackend
    with pytest.raises(LabError, match="^Nobody hands runs to Ray just now, so they wait"):
        backend.capacity()
    app = open_page("runs")
    assert unharmed(app) and "Nobody hands runs to Ray just now, so they wait" in said(app)
    show(store, problem="Ray at ray://head:10001 cannot be reached, so runs wait: no route.")
    with pytest.raises(LabError, match="^Ray at ray://head:10001 cannot be reached, so runs wait: no route.$"):
        backend.capacity()
    run_id = backend.submit(Recipe(device="gpu:A40"))
    assert store.run(run_id).status == "queued"
    show(store, "begun anew")
    assert len(backend.capacity()) == len(CLUSTER)
    backend.cancel(run_id)
    assert store.run(run_id).status == "cancelled"


@pytest.mark.parametrize(
    ("wants", "nodes", "expected"),
    [
        ("auto", CLUSTER, {"num_gpus": 1}),
        ("auto", CLUSTER[2:], {"num_gpus": 0}),
        ("auto", [], {"num_gpus": 0}),
        ("cpu", CLUSTER, {"num_gpus": 0}),
        ("cuda:1", CLUSTER, {"num_gpus": 1}),
        ("gpu:a40", CLUSTER, {"num_gpus": 1, "accelerator_type": "A40"}),
        ("gpu:A100", [node("d", 8, 1, "A100-80GB")], {"num_gpus": 1, "accelerator_type": "A100-80GB"}),  # as that cluster spells it
        ("gpu:A100-80GB", [node("d", 8, 1, "A100-40G"), node("e", 8, 1, "A100-80G")], {"num_gpus": 1, "accelerator_type": "A100-80G"}),
        ("gpu:h100", CLUSTER, {"num_gpus": 1, "accelerator_type": "H100"}),
    ],
)
def test_what_a_run_needs_of_a_cluster(wants, nodes, expected, monkeypatch):
    assert ray_nodes.needs(wants, nodes) == {"num_cpus": 1, **expected}
    monkeypatch.setenv("STARFISH_LAB_THREADS", "6")
    assert ray_nodes.needs(wants, nodes) == {"num_cpus": 6, **expected}


def test_without_ray_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert ray_nodes.connect("auto") == (
        'STARFISH_LAB_BACKEND is auto, but Ray is not installed here, so runs wait. Install it: pip install "ray[client]".'
    )


def test_the_backend_by_its_setting(store, monkeypatch):
    assert type(jobs.backend(store)) is LocalBackend
    for wanted in ("auto", "ray://head:10001", "10.0.0.7:6379"):
        monkeypatch.setenv("STARFISH_LAB_BACKEND", wanted)
        assert type(jobs.backend(store)) is RayBackend and jobs.address() == wanted
    for wanted in ("dask", "ray://head", "http://head:80"):
        monkeypatch.setenv("STARFISH_LAB_BACKEND", wanted)
        with pytest.raises(LabError, match=f"STARFISH_LAB_BACKEND is '{wanted}': expected local, auto, ray://"):
            jobs.backend(store)
