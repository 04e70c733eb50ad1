"""Spectra of real layers: singular values, unfolding, the split of qkv, the randomised control, the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from starfish_lab.errors import LabError
from starfish_lab.models.network import Network, prunable
from starfish_lab.spectra.layers import hill_alpha, layer_spectrum, singular_values, spectra_table, stable_rank


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measures(row: dict[str, object]) -> list[float]:
    return [row[name] for name in ("sigma", "sigma_plus", "fit_error", "spike_energy", "stable_rank", "hill_alpha", "top")]


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (16, 4, 3, 3)])
def test_singular_values_are_those_of_the_svd(shape, device):
    weight = gaussian(*shape)
    expected = torch.linalg.svdvals(weight.reshape(shape[0], -1).double()).numpy()
    assert singular_values(weight, device=device) == pytest.approx(expected, rel=1e-9)


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        singular_values(gaussian(8, 8))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_convolution_is_unfolded_to_output_channels():
    weight = gaussian(32, 8, 3, 3)
    conv, matrix = layer_spectrum(weight), layer_spectrum(weight.reshape(32, 72))
    assert (conv["rows"], conv["cols"], conv["gamma"]) == (32, 72, 32 / 72)
    assert conv == matrix


def test_stable_rank_and_hill_alpha():
    assert stable_rank(np.array([2.0, 2.0, 2.0])) == 3
    assert stable_rank(np.zeros(3)) == 0
    # l_i = i^(−1/(α−1)) is a power law of exponent α by construction; the estimate must find it in a long tail
    eigenvalues = np.arange(1, 100_001) ** (-1 / 1.5)
    values = np.sqrt(eigenvalues)
    logs = np.log(eigenvalues[:20] / eigenvalues[20])
    assert hill_alpha(values) == pytest.approx(1 + 1 / logs.mean(), rel=1e-12)
    assert hill_alpha(values) == pytest.approx(2.5, abs=0.3)
    assert hill_alpha(3 * values) == pytest.approx(hill_alpha(values), rel=1e-12)
    assert hill_alpha(np.array([3.0, 1.0, 0.0])) == pytest.approx(1 + 1 / np.log(9.0))
    assert np.isnan([hill_alpha(np.ones(5)), hill_alpha(np.zeros(5)), hill_alpha(np.array([1.0]))]).all()


def test_the_histogram_counts_every_eigenvalue_once():
    weight = gaussian(64, 64)
    row = layer_spectrum(weight)
    values = singular_values(weight) ** 2 / 64
    edges = np.array(row["bin_edges"])
    assert len(edges) <= 61 and len(row["counts"]) == len(edges) - 1
    assert np.diff(np.log(edges)) == pytest.approx(np.log(edges[1] / edges[0]))
    for i in range(1, len(edges) - 1):
        assert row["counts"][i] == ((values >= edges[i]) & (values < edges[i + 1])).sum()
    assert sum(row["counts"]) == 64


def test_spikes_stand_in_units_of_the_histogram():
    weight = gaussian(64, 128) + 40 * torch.outer(torch.ones(64) / 8, torch.ones(128) / 128**0.5)
    row = layer_spectrum(weight)
    assert row["spikes"] == len(row["spike_values"]) == 1
    assert row["spike_values"] == pytest.approx([row["top"] ** 2 / 128])
    assert row["bin_edges"][-2] < row["spike_values"][0] < row["bin_edges"][-1]


def test_the_control_keeps_the_entries_and_loses_the_structure():
    left, right = torch.linalg.qr(gaussian(96, 5, seed=1))[0], torch.linalg.qr(gaussian(192, 5, seed=2))[0]
    weight = gaussian(96, 192) + 60 * left @ right.T
    row = layer_spectrum(weight, randomised=True, seed=3)
    assert row["spikes"] == 5 and row["control_spikes"] == 0
    assert row["control_top"] < 1.06 * row["control_sigma_plus"] < row["top"]
    assert sum(row["control_counts"]) == 96 and len(row["control_counts"]) == len(row["counts"])
    # same entries, same Frobenius norm: the control's noise holds the energy of the spikes too
    assert row["control_sigma_plus"] == pytest.approx(float(weight.square().mean().sqrt()) * (192**0.5 + 96**0.5), rel=0.05)
    assert layer_spectrum(weight, randomised=True, seed=3) == row
    assert layer_spectrum(weight, randomised=True, seed=4)["control_top"] != row["control_top"]


@pytest.mark.parametrize(
    ("value", "verdict"), [(float("nan"), "NaN or infinity"), (float("inf"), "NaN or infinity"), (0.0, "all its weights are zero")]
)
def test_odd_weights_get_a_verdict(value, verdict):
    row = layer_spectrum(torch.full((16, 4, 3, 3), value), randomised=True)
    assert not row["applies"] and verdict in row["verdict"]
    assert (row["spikes"], row["counts"], row["control_counts"], row["bin_edges"]) == (0, [], [], [])


def test_a_half_precision_weight_is_read_in_float64():
    weight = gaussian(32, 32)
    assert singular_values(weight.bfloat16()) == pytest.approx(singular_values(weight.bfloat16().double()), rel=1e-12)


def test_a_vector_is_refused():
    with pytest.raises(LabError, match="two or more dimensions"):
        layer_spectrum(torch.ones(8))


def test_the_table_of_a_vit(tiny_vit):
    before = {name: tensor.clone() for name, tensor in tiny_vit.module.state_dict().items()}
    table = spectra_table(tiny_vit)
    assert list(table.layer.unique()) == list(prunable(tiny_vit))
    assert list(table[table.layer == "blocks.1.attn.qkv"].part) == ["qkv", "q", "k", "v"]
    assert set(table[~table.layer.str.endswith("qkv")].part) == {""}
    assert len(table) == 2 * (4 + 3)
    assert list(table.depth) == sorted(table.depth) and set(table.kind) == {"attention", "mlp"}
    weight = tiny_vit.module.blocks[1].attn.qkv.weight
    for i, part in enumerate("qkv"):
        row = table[(table.layer == "blocks.1.attn.qkv") & (table.part == part)].iloc[0]
        assert measures(row) == measures(layer_spectrum(weight[32 * i : 32 * (i + 1)]))
        assert (row.rows, row.cols) == (32, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_vit.module.state_dict().items())
    assert list(spectra_table(tiny_vit, split_qkv=False).part.unique()) == [""]


def test_the_table_of_a_cnn_and_of_chosen_layers(tiny_resnet, tiny_convnext):
    table = spectra_table(tiny_resnet, layers=["conv1", "layer1.0.conv1", "fc"], randomised=True)
    assert list(table.layer) == ["conv1", "layer1.0.conv1", "fc"] and list(table.depth) == [-1, 0, -1]
    conv = tiny_resnet.module.layer1[0].conv1.weight
    assert table.cols[1] == conv[0].numel()
    assert {"control_sigma_plus", "control_top", "control_counts", "control_spikes"} <= set(table.columns)
    depthwise = spectra_table(tiny_convnext, layers=["stages.0.blocks.0.conv_dw"]).iloc[0]
    assert (depthwise.rows, depthwise.cols) == (8, 49)


def test_an_unknown_layer_is_named(tiny_vit):
    with pytest.raises(LabError, match=r"no layer with weights named 'blocks\.9'.*blocks\.0\.attn\.qkv"):
        spectra_table(tiny_vit, layers=["blocks.9"])


def test_a_layer_named_qkv_with_odd_rows_stays_whole():
    module = nn.ModuleDict({"qkv": nn.Linear(8, 10)})
    network = Network(module=module, name="odd", blocks=("qkv",))
    assert list(spectra_table(network).part) == [""]
