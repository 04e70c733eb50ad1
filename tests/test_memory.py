"""Peak memory of a stretch of work: what it counts and what it leaves out."""

from __future__ import annotations

import pytest

from starfish_lab.measure import memory

MB = 2**20


def test_the_peak_counts_what_came_and_went_and_not_what_happened_aside():
    with memory.Peak("cpu") as small:
        pass
    if small.bytes is None:
        pytest.skip("this system does not tell")
    with memory.Peak("cpu") as peak:
        held = bytearray(80 * MB)
        del held
        with peak.aside():
            more = bytearray(300 * MB)
            del more
    assert 75 * MB < peak.bytes - peak.before < 200 * MB and peak.counts == memory.PROCESS
    assert small.bytes - small.before < 20 * MB


def test_a_system_that_does_not_tell_gives_none(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CLEAR", tmp_path)  # a folder cannot be written
    with memory.Peak("cpu") as peak:
        pass
    assert (peak.bytes, peak.before, peak.counts) == (None, None, "")
    with memory.Peak("mps") as other:
        pass
    assert other.bytes is None
