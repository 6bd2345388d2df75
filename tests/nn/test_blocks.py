import math

import pytest
import torch
import torch.nn.functional as F

from gmtool.nn.blocks import (
    Attention,
    Block,
    FourierTimeEmbedding,
    RMSNorm,
    RotaryEmbedding,
    SwiGLU,
    TimeEmbedding,
    patches,
    position_table,
    positions,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_patches_are_the_windows_of_a_convolution(side):
    x, weight = torch.randn(2, 3, 4, 8), torch.randn(5, 3, side, side)
    expected = F.conv2d(x, weight, stride=side).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(x, side) @ weight.flatten(1).T, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_positions_undo_patches(side):
    x = torch.randn(2, 3, 4, 8)
    tokens = patches(x, side).unflatten(2, (3, side**2)).transpose(2, 3).flatten(2)  # channels innermost
    rearranged = positions(tokens, side, (4 // side, 8 // side))
    assert torch.equal(rearranged, x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (2, 5), (1, 1)])
def test_positions_are_distinct(height: int, width: int) -> None:
    table = position_table(height, width, 64)
    assert table.shape == (height * width, 64)
    torch.testing.assert_close(table.square().sum(1), torch.full((height * width,), 32.0))
    assert (torch.cdist(table, table) + 10 * torch.eye(height * width)).min() > 0.1
    # a row's embedding is in the first half, a column's in the second
    grid = table.reshape(height, width, 64)
    assert torch.equal(grid[:, :1, :32].expand(-1, width, -1), grid[:, :, :32])
    assert torch.equal(grid[:1, :, 32:].expand(height, -1, -1), grid[:, :, 32:])


def test_times_that_differ_by_a_thousandth_are_told_apart() -> None:
    torch.manual_seed(0)
    embed = TimeEmbedding(32)
    embed.mlp = torch.nn.Sequential()  # the features alone
    features = embed(torch.tensor([0.0, 0.5, 0.501, 1.0]))
    torch.testing.assert_close(features[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert (torch.cdist(features, features) + 100 * torch.eye(4)).min() > 1


def test_columns_first_swaps_the_halves_of_the_position_table():
    rows_first, columns_first = position_table(2, 3, 16), position_table(2, 3, 16, columns_first=True)
    assert torch.equal(columns_first, rows_first.roll(8, dims=1))


def test_fourier_features_of_time_have_the_period_of_their_frequency():
    embed = FourierTimeEmbedding(8, frequencies=3)
    embed.W.copy_(torch.tensor([0.5, 1.0, 4.0]))
    embed.mlp = torch.nn.Sequential()  # the features alone
    features = embed(torch.tensor([0.0, 0.25, 1.0]))
    angles = 2 * math.pi * torch.tensor([[0.0], [0.25], [1.0]]) * torch.tensor([0.5, 1.0, 4.0])
    torch.testing.assert_close(features, torch.cat([angles.sin(), angles.cos()], 1))


def test_attention_of_rotated_heads_knows_offsets_alone():
    """<R(p) q, R(p') k> is a function of p' - p, in rows and in columns; R keeps lengths and turns nothing at 0."""
    height, width, head_width = 5, 4, 12
    rotation = RotaryEmbedding((height, width), head_width)()
    query, key = torch.randn(2, 1, 1, 1, head_width).expand(2, 1, 1, height * width, head_width)
    turned = rotation.turn(query)
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1))
    assert torch.equal(turned[0, 0, 0], query[0, 0, 0])
    scores = (turned @ rotation.turn(key).mT).reshape(height, width, height, width)
    for row, column in ((0, 0), (2, 1), (4, 3)):
        torch.testing.assert_close(
            scores[row:, column:, row, column],
            scores[: height - row, : width - column, 0, 0],
            atol=1e-5,
            rtol=1e-5,
        )
    assert scores[0, 0].flatten().unique().numel() == height * width


def test_rms_norm_is_float32_under_autocast_and_divides_by_the_root_mean_square():
    x = 3 * torch.randn(2, 5, 64)
    layer = RMSNorm(64)
    torch.testing.assert_close(layer(x).square().mean(-1), torch.ones(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x) * x.square().mean(-1, keepdim=True).sqrt(), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32


def test_swiglu_has_the_weights_of_the_mlp_that_it_replaces():
    width = 96
    mlp = Block(width, 2).mlp
    gated = Block(width, 2, swiglu=True).mlp
    sizes = [
        sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() == 2) for layer in (mlp, gated)
    ]
    assert sizes[0] == sizes[1]
    layer = SwiGLU(4, 3)
    x = torch.randn(2, 4)
    first, second = layer.w12(x).split(3, dim=1)
    torch.testing.assert_close(layer(x), layer.w3(first * first.sigmoid() * second))


def test_attention_is_the_softmax_of_scaled_products():
    attention, x = Attention(16, 2), torch.randn(3, 6, 16)
    query, key, value = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=2))
    mixed = (query @ key.mT / math.sqrt(8)).softmax(-1) @ value
    expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rms_norm", [False, True])
def test_normalised_queries_and_keys_have_no_scale(rms_norm):
    attention = Attention(16, 2, qk_norm=True, rms_norm=rms_norm)
    x = torch.randn(2, 6, 16)
    attended = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:32] *= 7
    torch.testing.assert_close(attention(x), attended, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("modern", [False, True])
def test_a_block_begins_as_the_identity_and_takes_a_condition_a_token(modern):
    block = Block(16, 2, rms_norm=modern, swiglu=modern, qk_norm=modern)
    x = torch.randn(2, 6, 16)
    assert torch.equal(block(x, torch.randn(2, 1, 16)), x)
    torch.nn.init.normal_(block.adaLN_modulation[1].weight, std=0.3)
    condition = torch.randn(2, 1, 16)
    output = block(x, condition)
    torch.testing.assert_close(block(x, condition.expand(2, 6, 16)), output)
    # a token's condition reaches its own MLP, and the others by attention
    changed = torch.cat([condition.expand(2, 5, 16), -condition], dim=1)
    assert ((block(x, changed) - output).abs().amax(-1) > 1e-4).all()
