"""What the linked figure on Explore promises: how well predicted drift sorts, and how fast a slider is answered.

    python tests/bars.py predicted_drift [csv=assets/measured/predicted_drift.csv] [network=starter|vit]
    python tests/bars.py linked [moves=50]

`predicted_drift` prunes a network in every way of `choices`, measures the drift of all its blocks on 64 images, and
correlates it by rank (Spearman) with what `consequence.follow` makes of the profile alone: over all blocks under all choices, over the
means of the choices, and over the blocks of one choice (median). `linked` builds the profile of a DeiT-B whose weights have the quantiles of
a normal distribution and heavy tails, opens Explore on it, and moves its sliders in turn; times are those of the whole page on the
server. A browser asks for less: the sidebar, whose time is printed too, stays as it is.
"""

from __future__ import annotations

import csv as tables
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from starfish_lab import consequence, profile, settings, whatif
from starfish_lab.data import ImageSet, open_images
from starfish_lab.measure import drift
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import ImagesChoice, ModelChoice, PruningChoice

MEASURED = settings.ASSETS / "measured" / "predicted_drift.csv"
COLUMNS = ["network", "choices", "blocks", "images", "rank_all", "rank_choices", "rank_within", "ratio_low", "ratio", "ratio_high"]
DEIT = "deit_base_patch16_224.fb_in1k"
LINK = {"model": DEIT, "weights": "random", "budget": "mp_edge", "sparsity": "0.5", "layer": "blocks.5.mlp.fc1"}


def choices() -> Iterator[PruningChoice]:
    """Budgets, patterns, units, and parts of the network, each at several sparsities."""
    for budget, most in (("uniform", 0.9), ("global", 0.9), ("mp_edge", 0.8)):
        yield from (PruningChoice(budget=budget, sparsity=s) for s in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9) if s <= most)
    yield from (PruningChoice(pattern="n_m", keep=keep, group=group) for keep, group in ((2, 4), (4, 8), (6, 8), (1, 4)))
    yield from (PruningChoice(pattern="structured", sparsity=s, units=u) for s in (0.3, 0.5, 0.7) for u in (("mlp",), ("qk",), ("mlp", "qk")))
    yield from (PruningChoice(score="random", sparsity=s) for s in (0.3, 0.5, 0.7))
    spared = ("blocks.[0-2].*", "*.attn.*", "*.mlp.*", "blocks.[345].*")
    yield from (PruningChoice(sparsity=s, exclude=(layers,)) for s in (0.5, 0.7, 0.9) for layers in spared)


def predicted_drift(*, csv: str = str(MEASURED), network: str = "") -> None:
    """Print a row a network, and write them all to `csv`."""
    rows = []
    for name in [network] if network else ["starter", "vit"]:
        if (found := _opened(name)) is None:
            print(f"{name}: the kit is not here, so it is left out")
            continue
        rows.append({"network": name, **ranks(*found)})
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    with open(csv, "w", newline="", encoding="utf-8") as file:
        writer = tables.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} for row in rows)


def ranks(network: Network, known: whatif.Profile, images: torch.Tensor, asked: list[PruningChoice] | None = None) -> dict[str, object]:
    """Rank correlations of predicted with measured cosine distance, and their ratio (median, and from the 10th to the 90th percentile)."""
    dense, expected, found = drift.states(network, images), [], []
    for choice in asked or choices():
        student = pruned(network, make_masks(network, choice).masks)
        rows = drift.drift(network, student, images, known=dense)
        found.append([row["cosine_distance"] for row in rows if row["tokens"] in ("all", "image")])
        expected.append(consequence.follow(known, whatif.predict(known, choice), choice).blocks["drift"].to_numpy())
    expected, found = np.array(expected), np.array(found)  # (choices, blocks)
    within = [_spearman(a, b) for a, b in zip(expected, found) if np.ptp(a) > 0]
    moved = found > 1e-9  # a block before everything that is pruned stays where it was
    low, middle, high = np.quantile(expected[moved] / found[moved], (0.1, 0.5, 0.9))
    return {
        "choices": len(found), "blocks": found.shape[1], "images": len(images), "rank_all": _spearman(expected.ravel(), found.ravel()),
        "rank_choices": _spearman(expected.mean(1), found.mean(1)), "rank_within": float(np.median(within)),
        "ratio_low": float(low), "ratio": float(middle), "ratio_high": float(high),
    }  # fmt: skip


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(pd.Series(a).corr(pd.Series(b), method="spearman"))


def _opened(name: str) -> tuple[Network, whatif.Profile, torch.Tensor] | None:
    if name == "starter":
        network = load(ModelChoice())
        known = whatif.Profile.from_json((settings.ASSETS / "starter" / "profile.json").read_text())
        return network, known, _all(open_images(ImagesChoice(), network).drift)
    import bar_masks

    if not bar_masks.KIT.is_dir():
        return None
    network = bar_masks.vit()
    known = whatif.Profile.from_json(profile.compute(network).to_json())
    return network, known, _all(bar_masks.splits(network, calibration=64).calibration)


def _all(images: ImageSet) -> torch.Tensor:
    return torch.cat([batch for _, batch in images.batches(32)])


def linked(*, moves: str = "50") -> None:
    """Milliseconds that the server needs for a move of a slider, for the 48 layers of DeiT-B."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["STARFISH_LAB_HOME"] = home
        import synthetic

        from app import sidebar
        from starfish_lab.store import Store

        Store().save_profile(whatif.profile_key(ModelChoice(name=DEIT, weights="random")), deit_base())
        app = synthetic.open_page("explore", **LINK)
        assert not app.exception and not app.error and len(app.get("plotly_chart")) == 4
        sliders = cycle(("choice.sparsity", "choice.beta", "edge.blocks.5.mlp.fc1"))
        times, parts = [], {"sidebar": [], "predict": [], "consequence": []}
        draw = sidebar.draw

        def timed_sidebar() -> str:
            parts["sidebar"].append(_timed(draw))
            return ""

        sidebar.draw = timed_sidebar
        for number, key in enumerate(islice(sliders, int(moves))):
            _move(app, key, number)
            times.append(_timed(app.run))
            assert not app.exception
        known = deit_base()
        for number in range(int(moves)):
            choice = PruningChoice(budget="mp_edge", sparsity=0.4 + 0.004 * number)
            answer = whatif.predict(known, choice)
            parts["predict"].append(_timed(partial(whatif.predict, known, choice)))
            parts["consequence"].append(_timed(partial(consequence.follow, known, answer, choice)))
        print(f"page with its sidebar: median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms of {len(times)} moves")
        print("of which " + ", ".join(f"{name} {statistics.median(found):.1f} ms" for name, found in parts.items()))


def _move(app, key: str, number: int) -> None:
    if key == "choice.beta":
        app.select_slider(key=key).set_value(("0.5", "1", "1.5", "2")[number % 4])
    else:
        slider = app.slider(key=key)
        low, high = (0.4, 0.6) if key == "choice.sparsity" else (slider.min, slider.max)
        slider.set_value(low + (high - low) * (1 + number % 18) / 20)


def _timed(call) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def deit_base() -> whatif.Profile:
    """A profile of DeiT-B with drawn weights, its spectra fitted to smaller matrices of the same shape ratio: made in seconds."""
    import timm

    from starfish_lab.models.loading import wrap

    module = timm.create_model(DEIT.partition(".")[0]).eval()
    small = timm.create_model(DEIT.partition(".")[0], embed_dim=96, num_heads=12).eval()
    for network in (module, small):
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator) * (1 + torch.rand((), generator=generator))
    fitted = profile.compute(wrap(small, name=DEIT))
    whole = _without_spectra(wrap(module, name=DEIT), fitted.spectra)
    return whatif.Profile.from_json(whole.to_json())


def _without_spectra(network: Network, spectra: pd.DataFrame) -> whatif.Profile:
    from unittest import mock

    with mock.patch.object(profile, "spectra_table", lambda *_, **__: spectra):
        return profile.compute(network)


if __name__ == "__main__":
    Path(MEASURED).parent.mkdir(exist_ok=True)
    predicted_drift()
