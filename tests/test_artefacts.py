"""Healed networks on a shared place: whole or not there, read back as they were, and no run lost where the place is away."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
from test_cli import QUICK, _call, _sets

from starfish_lab import artefacts, settings
from starfish_lab.errors import StoreError
from starfish_lab.export import load_pruned
from starfish_lab.jobs import worker
from starfish_lab.models.checkpoints import state_dict_from
from starfish_lab.progress import Reporter
from starfish_lab.recipe import Recipe, edit
from starfish_lab.store import Store, folder_of


@pytest.fixture
def healed(tmp_path) -> Path:
    """What a run leaves: two files, here of no network."""
    folder = tmp_path / "run" / "healed"
    folder.mkdir(parents=True)
    (folder / "network.safetensors").write_bytes(b"weights" * 100)
    (folder / "recipe.json").write_text('{"of": "this run"}')
    return folder


@pytest.fixture(params=["directory", "file://", "memory://"])
def place(request, tmp_path, monkeypatch) -> str:
    """STARFISH_LAB_ARTEFACTS as a directory, as a file address, and as an address that is no directory."""
    fsspec.filesystem("memory").store.clear()
    root = {"directory": str(tmp_path / "shared"), "file://": f"file://{tmp_path}/shared", "memory://": "memory://team/networks"}[request.param]
    monkeypatch.setenv("STARFISH_LAB_ARTEFACTS", root)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(place: str) -> list[str]:
    files, root = fsspec.core.url_to_fs(place)
    return sorted(path.rpartition("/")[2] for path in files.find(root))


class Heard(Reporter):
    def __init__(self):
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_without_a_setting_networks_stay_where_they_are(healed):
    assert artefacts.publish(healed, 3) == str(healed) and artefacts.fetch(str(healed)) == healed
    assert artefacts.keep(healed, 3, Heard()) == str(healed) and artefacts.keep(healed / "nothing", 3, Heard()) is None
    artefacts.remove(str(healed))
    assert contents(healed)


def test_what_is_published_comes_back_as_it_was(healed, place):
    kept = artefacts.publish(healed, 3)
    assert ("://" in kept) == place.startswith("memory") and kept.rpartition("/")[2].startswith("3-")
    found = artefacts.fetch(kept)
    assert contents(found) == contents(healed) and found != healed
    assert artefacts.fetch(kept) == found  # a second time it is there
    assert everything(place) == ["network.safetensors", "recipe.json"]  # nothing partial is left
    assert artefacts.weights(kept) == artefacts.weights(f"{kept}/network.safetensors") == found / "network.safetensors"


def test_two_labs_may_share_a_place(healed, place, tmp_path):
    first = artefacts.publish(healed, 3)
    (healed / "recipe.json").write_text('{"of": "the other lab"}')
    second = artefacts.publish(healed, 3)
    assert first != second and json.loads((artefacts.fetch(first) / "recipe.json").read_text()) == {"of": "this run"}
    assert artefacts.publish(healed, 3) == second and len(everything(place)) == 4


def test_a_copy_that_breaks_off_never_looks_whole(healed, place, monkeypatch):
    files, _ = fsspec.core.url_to_fs(place)
    put_file, copied = type(files).put_file, []

    def breaks(self, source, target, **options):
        if copied:
            raise OSError("the network cable")
        copied.append(source)
        return put_file(self, source, target, **options)

    monkeypatch.setattr(type(files), "put_file", breaks)
    heard = Heard()
    assert artefacts.keep(healed, 3, heard) == str(healed)  # the run keeps what it made
    assert "network cable" in heard.notes[0] and str(healed) in heard.notes[0]
    assert copied == [str(healed / "network.safetensors")] and "recipe.json" not in everything(place)
    monkeypatch.undo()
    monkeypatch.setenv("STARFISH_LAB_ARTEFACTS", place)
    assert contents(artefacts.fetch(artefacts.publish(healed, 3))) == contents(healed)  # and a second try completes it


@pytest.mark.parametrize("root", ["nothing://here", "/proc/nowhere"])
def test_an_unreachable_place_is_said_in_one_sentence(healed, root, monkeypatch):
    monkeypatch.setenv("STARFISH_LAB_ARTEFACTS", root)
    with pytest.raises(StoreError, match=f"^{root}.* cannot be written .*STARFISH_LAB_ARTEFACTS is right.$"):
        artefacts.publish(healed, 3)


def test_copies_of_two_addresses_with_one_last_name_stay_apart(healed):
    for team in ("a", "b"):
        (healed / "recipe.json").write_text(team)
        for path in healed.iterdir():
            fsspec.filesystem("memory").pipe(f"/{team}/healed/{path.name}", path.read_bytes())
    assert [(artefacts.fetch(f"memory://{team}/healed") / "recipe.json").read_text() for team in "ab"] == ["a", "b"]


def test_what_is_gone_is_said_in_one_sentence(place):
    if place.startswith("memory"):
        with pytest.raises(StoreError, match="cannot be read"):
            artefacts.fetch(f"{place}/3-abc")
        assert not list((settings.home() / "artefacts").iterdir())  # no half copy stays


def test_removing_touches_nothing_elsewhere(healed, place, tmp_path):
    kept = artefacts.publish(healed, 3)
    copy = artefacts.fetch(kept)
    artefacts.remove(str(healed))
    artefacts.remove(str(tmp_path))
    assert contents(healed) and len(everything(place)) == 2
    artefacts.remove(kept)
    assert everything(place) == [] and not copy.exists()
    artefacts.remove(kept)  # gone already


@pytest.mark.parametrize("place", ["memory://"], indirect=True)
def test_a_run_is_exported_evaluated_and_started_from_where_it_was_kept(place, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_title", lambda device: device)
    store = Store()
    recipe = edit(Recipe(device="cpu"), [*QUICK, "measure.certificates=false", "measure.snapshots=0"])
    number = store.submit(recipe)
    worker.work(store, "cpu", once=True)
    run = store.run(number)
    assert run.status == "done" and run.artefact != str(folder_of(number) / "healed") and len(everything(place)) == 2
    before = load_pruned(folder_of(number) / "healed").module.state_dict()
    (folder_of(number) / "healed").rename(tmp_path / "of another machine")
    status, _, _ = _call(capsys, "export", str(number), "--to", str(tmp_path / "out"))
    after = load_pruned(tmp_path / "out" / "network").module.state_dict()
    assert status == 0 and all(torch.equal(before[name], after[name]) for name in before)
    status, rows, _ = _call(capsys, "evaluate", "--network", run.artefact, *_sets())
    assert status == 0 and rows[0]["top1"] == store.runs().iloc[0]["top1_healed"]
    started = edit(recipe, ["start.method=file", f"start.path={run.artefact}", "pruning.pattern=kept", "healing.method=none"])
    again = store.submit(started)
    worker.work(store, "cpu", once=True)
    assert store.run(again).status == "done", store.run(again).error
    kept = state_dict_from(artefacts.weights(store.run(again).artefact))
    assert all(torch.equal(before[name], kept[name]) for name in before)
    store.delete(number)
    assert len(everything(place)) == 2  # those of the second run
