"""The kernels' references, by which they are judged on a GPU, against the network's and criterion's own operations."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists for Linux only")

from mask2former_mcp.engine.criterion import Criterion, Divisors, Padded
from mask2former_mcp.engine.kernels import deformable, mask_sums, matching, window
from mask2former_mcp.engine.model.pixel_decoder import DeformableAttention, Geometry
from mask2former_mcp.engine.model.swin import WindowAttention, shift_mask


@pytest.mark.parametrize(("size", "shift"), [((9, 8), 3), ((14, 7), 3), ((5, 16), 0)])
def test_window_reference_is_what_swin_computes(size: tuple[int, int], shift: int) -> None:
    torch.manual_seed(0)
    plain = WindowAttention(32, 2, 7, True, None, 0.0, 0.0).double()
    torch.nn.init.normal_(plain.qkv.bias)
    x = torch.randn(2, *size, 32, dtype=torch.float64)
    wanted = plain(x, shift, shift_mask(x, 7, shift) if shift else None)
    plain.fused = lambda qkv, padding, table, index, *how: window.reference(
        qkv, padding, window.tile_bias(table, index), *how
    )
    torch.testing.assert_close(plain(x, shift, None), wanted)


def test_deformable_reference_is_what_the_pixel_decoder_computes() -> None:
    torch.manual_seed(0)
    plain = DeformableAttention(32, 4).double()
    for linear in (plain.sampling_offsets, plain.attention_weights):
        torch.nn.init.normal_(linear.weight, std=0.2)
    sizes = [(2, 3), (4, 5), (7, 9)]
    x, place = torch.randn(2, 89, 32, dtype=torch.float64), torch.randn(89, 32, dtype=torch.float64)
    geometry = Geometry.of(sizes, like=x)
    wanted = plain(x, place, geometry)
    plain.fused = deformable.reference
    torch.testing.assert_close(plain(x, place, geometry), wanted)


def test_references_of_the_criterion_are_what_it_computes() -> None:
    torch.manual_seed(0)
    valid = (torch.rand(1, 60) < 0.8).double()
    masks = (torch.rand(1, 3, 60) < 0.4).double() * valid[:, None]
    divisors = Divisors(torch.tensor(3.0), torch.tensor(1.0))
    targets = Padded(torch.tensor([[1, 2, 4]]), masks, valid, [3], divisors)
    x = torch.randn(1, 2, 3, 60, dtype=torch.float64)
    wanted = torch.stack(Criterion().mask_sums(x, targets), -1)
    torch.testing.assert_close(mask_sums.reference(x, masks, valid), wanted)

    logits, embeddings = torch.randn(2, 4, 6).double(), torch.randn(2, 4, 8).double()
    features = torch.randn(8, 60, dtype=torch.float64)
    wanted = Criterion(class_weight=0)._cost(logits, embeddings, features, targets, 0)
    rows = embeddings.flatten(0, 1)[None]
    focal, overlap, negative, covered = matching.cost_sums_reference(rows, features.t()[None], masks, valid)
    dice = 1 - (2 * overlap + 1) / (covered[..., None] + masks.sum(2)[:, None] + 1)
    cost = 5 * (focal + negative[..., None]) / valid.sum() + 5 * dice
    torch.testing.assert_close(cost.view_as(wanted), wanted)
