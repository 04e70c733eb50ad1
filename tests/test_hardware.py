"""Devices, versions and the fingerprint."""

from __future__ import annotations

import json
import platform
import socket

import pytest
import torch

from starfish_lab.errors import LabError
from starfish_lab.measure import hardware


def test_the_cpu_is_always_there_and_last():
    devices = hardware.devices()
    assert devices[-1]["name"] == "cpu" and devices[-1]["title"]
    assert hardware.choose_device("auto") == devices[0]["name"]
    assert hardware.choose_device("cpu") == "cpu"


def test_gpus_come_first_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    assert [device["name"] for device in hardware.devices()][:2] == ["cuda:0", "cuda:1"]
    assert hardware.devices()[1]["title"] == "Card 1 (cuda:1)"
    assert hardware.choose_device("auto") == hardware.choose_device("cuda") == "cuda:0"
    assert hardware.choose_device("cuda:1") == "cuda:1"


def test_an_absent_device_is_named_with_those_there_are():
    with pytest.raises(LabError, match=r"'cuda:97'.*cpu"):
        hardware.choose_device("cuda:97")


def test_fingerprint_is_stable_and_depends_on_the_threads():
    first = hardware.fingerprint("cpu")
    assert first == hardware.fingerprint("cpu")
    assert len(first["fingerprint"]) == 12 and int(first["fingerprint"], 16) >= 0
    assert first["threads"] == torch.get_num_threads() and first["torch"] == torch.__version__ and first["kind"] == "cpu"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert hardware.fingerprint("cpu")["fingerprint"] != first["fingerprint"]
    finally:
        torch.set_num_threads(threads)


def test_fingerprint_names_no_host():
    assert len(socket.gethostname()) < 3 or socket.gethostname() not in json.dumps(hardware.fingerprint("cpu"))


def test_versions_name_what_decides_a_figure():
    versions = hardware.versions()
    assert set(versions) == {"python", "torch", "timm", "numpy", "scipy", "starfish_lab"} and all(versions.values())
    assert versions["python"] == platform.python_version()
