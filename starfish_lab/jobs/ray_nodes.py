"""The nodes of a Ray cluster: what they have, what a run needs of them, and how one connects to them.

A node is what `ray.nodes()` says of it: NodeID, NodeManagerHostname, and under Resources how many CPUs, GPUs and, under
'accelerator_type:A40', what kind of GPU.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading

from starfish_lab import settings
from starfish_lab.jobs import accelerators

ANSWER_SECONDS = 3.0  # within which a cluster's head must be heard
ADVICE = f"Start it (`ray start --head`), or correct {settings.BACKEND.name}."


def connect(cluster: str) -> str:
    """Connect this process to Ray, once. Returns '' or, in a sentence, why that cannot be."""
    try:
        import ray
    except ImportError:
        return f'{settings.BACKEND.name} is {cluster}, but Ray is not installed here, so runs wait. Install it: pip install "ray[client]".'
    if ray.is_initialized():
        return ""
    try:
        if cluster != "auto":
            host, _, port = cluster.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()  # Ray would end this process where nobody answers
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(cluster, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own in its place
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        return f"Ray at {cluster} cannot be reached, so runs wait: {reason}. {ADVICE}"
    return ""


def living() -> list[dict]:
    """Nodes that could do a run."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))]


def needs(wants: str, nodes: list[dict]) -> dict[str, object]:
    """What Ray must have free for a run, as options of its task: CPUs, a GPU, and the name of a GPU as these nodes spell it.

    'auto' is a GPU where the cluster has one.

    >>> needs("gpu:a100", [{"Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0}}])
    {'num_cpus': 1, 'num_gpus': 1, 'accelerator_type': 'A100'}
    >>> needs("auto", [{"Resources": {"CPU": 8.0}}])
    {'num_cpus': 1, 'num_gpus': 0}
    """
    gpu = wants.startswith(("cuda", accelerators.GPU)) or (wants == "auto" and any(node["Resources"].get("GPU") for node in nodes))
    found = {"num_cpus": max(1, int(settings.number(settings.THREADS))), "num_gpus": int(gpu)}
    if wants.startswith(accelerators.GPU):
        there = (name for name in names(nodes) if accelerators.matches(wants, name))
        found["accelerator_type"] = next(there, wants.removeprefix(accelerators.GPU).upper())
    return found


def names(nodes: list[dict]) -> list[str]:
    """Names of the cluster's GPUs, as Ray spells them."""
    return sorted({resource.partition(":")[2] for node in nodes for resource in node["Resources"] if resource.startswith("accelerator_type:")})


def device(node: dict) -> str:
    """The kind of device that a run gets there: cuda or cpu."""
    return "cuda" if node["Resources"].get("GPU") else "cpu"


def title(node: dict) -> str:
    """A node as people read it, and as a GPU's name is matched with it.

    >>> title({"NodeManagerHostname": "lab-3", "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A40": 1.0}})
    'A40 (node lab-3, 2 GPUs, 8 CPUs)'
    """
    host, cpus, gpus = node["NodeManagerHostname"], int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))
    if not gpus:
        return f"Ray node {host} (cpu, {cpus} threads)"
    return f"{' '.join(names([node])) or 'GPU'} (node {host}, {gpus} GPU{'s' * (gpus > 1)}, {cpus} CPUs)"
