"""Layers computed otherwise on an accelerator: the values of the plain formula, checked on a processor."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapters.networks import layers
from adapters.networks.group_norm import GroupNorm, keep_layout


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-6)])
def test_a_group_norm_in_channels_last_layout_is_torchs(dtype, tolerance):
    torch.manual_seed(0)
    x = (2 * torch.randn(3, 64, 9, 7) + 1).to(dtype).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(32, 64, eps=1e-6).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    norm.to(dtype)
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), 1e-6)
    found = norm.channels_last(x)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(norm(x), nn.GroupNorm.forward(norm, x)), "on a processor torch's own"


def test_a_librarys_group_norms_keep_their_weights_and_take_the_layout():
    module = nn.Sequential(nn.GroupNorm(2, 4), nn.Sequential(nn.GroupNorm(1, 4), nn.Linear(4, 4)))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    kept = keep_layout(module)
    assert [type(part) for part in kept.modules() if isinstance(part, nn.GroupNorm)] == [GroupNorm, GroupNorm]
    assert all(torch.equal(value, state[name]) for name, value in kept.state_dict().items())


@pytest.mark.parametrize("mlp", [layers.SwiGLU(16, 21), layers.GatedMlp(16, 21), layers.GatedMlp(16, 21, bias=True)])
def test_zeros_that_fill_a_hidden_width_change_nothing(mlp, monkeypatch):
    x = torch.randn(2, 5, 16)
    expected = mlp(x)
    widths = []
    linear = F.linear
    monkeypatch.setattr(layers, "filling", lambda hidden, x: -hidden % 8)
    monkeypatch.setattr(
        F, "linear", lambda x, weight, bias: widths.append(tuple(weight.shape)) or linear(x, weight, bias)
    )
    assert torch.allclose(mlp(x), expected, atol=1e-6)
    assert all(size % 8 == 0 for shape in widths for size in shape) and widths


def test_hidden_widths_are_filled_for_16_bits_on_cuda_alone():
    x = torch.zeros(1, dtype=torch.bfloat16)
    assert layers.filling(21, x) == 0
    assert layers.filling(21, x.to("meta")) == 0


def test_rotary_positions_by_a_complex_product_are_those_by_sines(monkeypatch):
    torch.manual_seed(1)
    q = torch.randn(2, 10, 3, 8).transpose(1, 2)  # as the heads of one projection lie in memory
    angles = torch.randn(10, 4)
    product = layers.turned(q, angles.cos(), angles.sin())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(layers.turned(q, angles.cos(), angles.sin()), product, atol=1e-6)
    assert product.shape == q.shape


def test_tokens_lie_row_by_row_in_memory():
    assert layers.PatchEmbed(2, 3, 8)(torch.randn(2, 3, 4, 4)).is_contiguous()
