"""Each Triton kernel against its PyTorch reference in float64: results and gradients.

On CUDA they run in every precision that training uses, at the sizes of a real step. Without a GPU Triton's interpreter
runs the same code on small ones.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton exists for Linux only")

from scipy.optimize import linear_sum_assignment

from mask2former_mcp.engine import resample
from mask2former_mcp.engine.kernels import deformable, mask_sums, matching, pixels, window

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16] if CUDA else [torch.float32]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
LARGE = CUDA  # sizes of a real step; small ones for the interpreter


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative distance in the Euclidean norm."""
    return float((found.detach().double() - wanted.detach()).norm() / wanted.norm())


def compare(
    kernel: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], *fixed: object
) -> list[float]:
    """Distances of the result and of every input's gradient from the reference in float64 on the same numbers."""
    wide = [x.double().detach().requires_grad_() for x in inputs]
    near = [x.detach().requires_grad_() for x in inputs]
    found, wanted = kernel(*near, *fixed), reference(*wide, *fixed)
    direction = torch.randn_like(wanted).to(found.dtype)
    found.backward(direction)
    wanted.backward(direction.double())
    return [apart(found, wanted), *(apart(a.grad, b.grad) for a, b in zip(near, wide, strict=True))]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("size", [(20, 20), (13, 17)] if LARGE else [(2, 3)], ids=str)
def test_deformable_attention_equals_its_reference(dtype: torch.dtype, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    h, w = size
    sizes = [h, w, 2 * h, 2 * w, 4 * h - 1, 4 * w - 1]
    tokens, heads, dim = sum(a * b for a, b in zip(sizes[::2], sizes[1::2], strict=True)), 8 if LARGE else 2, 32
    value = torch.randn(2, tokens, heads, dim, device=DEVICE).to(dtype)
    places = torch.randn(2, tokens, heads * 36, device=DEVICE).to(dtype)
    out, by_value, by_places = compare(deformable.attend, deformable.reference, [value, places], sizes)
    assert max(out, by_value) < TOLERANCE[dtype]
    # On a grid line the derivative jumps, and rounding decides on which side; exact ones away from them: below.
    assert by_places < (1e-2 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_offset_gradients_are_right_away_from_grid_lines(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    heads, dim = 2, 32
    sizes = [4, 4, 4, 4, 4, 4]  # equal maps: a token's own place is a pixel's middle on each of them
    tokens = 48
    value = torch.randn(2, tokens, heads, dim, device=DEVICE).to(dtype)
    offsets = torch.randint(-3, 3, (2, tokens, heads * 24), device=DEVICE) + 0.25 + 0.5 * torch.rand(1, device=DEVICE)
    places = torch.cat([offsets, torch.randn(2, tokens, heads * 12, device=DEVICE)], 2).to(dtype)
    assert max(compare(deformable.attend, deformable.reference, [value, places], sizes)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(
    ("height", "width", "heads", "size", "shift"),
    [(160, 160, 3, 7, 3), (20, 20, 24, 7, 0), (33, 40, 4, 8, 4)] if LARGE else [(9, 8, 2, 7, 3), (4, 6, 2, 4, 0)],
)
def test_window_attention_equals_its_reference(
    dtype: torch.dtype, height: int, width: int, heads: int, size: int, shift: int
) -> None:
    torch.manual_seed(0)
    dim = 32 if LARGE else 16
    qkv = torch.randn(2, height, width, 3 * heads * dim, device=DEVICE).to(dtype)
    padding = torch.randn(3 * heads * dim, device=DEVICE)
    bias = torch.randn(heads, window.TILE, window.TILE, device=DEVICE)
    out, by_qkv, by_padding, by_bias = compare(
        window.attend, window.reference, [qkv, padding, bias], heads, size, shift, dim**-0.5
    )
    assert max(out, by_qkv, by_padding if height % size or width % size else 0.0, by_bias) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_sums_over_matched_masks_equal_their_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pixels = 25_600 if LARGE else 300
    valid = (torch.rand(2, pixels, device=DEVICE) < 0.9).float()
    masks = ((torch.rand(2, 5, pixels, device=DEVICE) < 0.3) * valid[:, None]).to(torch.uint8)
    logits = (3 * torch.randn(2, 3, 5, pixels, device=DEVICE)).to(dtype)
    distances = compare(
        lambda x: mask_sums.mask_sums(x, masks, valid), lambda x: mask_sums.reference(x, masks, valid), [logits]
    )
    assert max(distances) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_cost_sums_equal_their_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, pixels, dim = (1000, 25_600, 256) if LARGE else (40, 300, 16)
    valid = (torch.rand(2, pixels, device=DEVICE) < 0.9).float()
    masks = ((torch.rand(2, 20, pixels, device=DEVICE) < 0.3) * valid[:, None]).to(torch.uint8)
    embeddings = torch.randn(2, rows, dim, device=DEVICE).to(dtype)
    features = (torch.randn(2, pixels, dim, device=DEVICE) / dim**0.5).to(dtype)
    found = matching.cost_sums(embeddings, features, masks, valid)
    wanted = matching.cost_sums_reference(embeddings.double(), features.double(), masks, valid)
    assert max(apart(a, b) for a, b in zip(found, wanted, strict=True)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("rows", "columns"), [(16, 100), (100, 100), (20, 300)] if LARGE else [(4, 9), (6, 6)])
def test_assignments_cost_what_scipys_do(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    problems = 80 if LARGE else 6
    cost = torch.randn(problems, rows, columns, device=DEVICE)
    counts = torch.randint(0, rows + 1, (problems,), device=DEVICE)
    columns_of = matching.assign(cost, counts).cpu()
    for table, count, chosen in zip(cost.cpu(), counts.tolist(), columns_of, strict=True):
        assert (chosen[count:] == -1).all()
        assert len(set(chosen[:count].tolist())) == count
        best = linear_sum_assignment(table[:count].numpy())
        assert table[torch.arange(count), chosen[:count].long()].sum() == pytest.approx(
            table[:count].numpy()[best].sum(), abs=1e-4
        )


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(
    ("queries", "classes"), [(100, 133), (200, 300), (7, 3)] if LARGE else [(20, 40), (7, 3), (130, 5)]
)
def test_pixels_are_whose_their_reference_says(dtype: torch.dtype, queries: int, classes: int) -> None:
    torch.manual_seed(0)
    small = (41, 30) if queries < 100 else (7, 11)
    sizes = ((80, 60), (320, 240), (310, 240), (401, 333)) if LARGE else ((9, 7), (36, 28), (33, 28), small)
    of_rows, of_columns = resample.taps(*sizes, torch.device(DEVICE))
    product = resample.to_original(*sizes, torch.device(DEVICE), torch.float64)
    grids = (6 * torch.randn(2, *sizes[0], queries, device=DEVICE) - 4).to(dtype)
    weights = torch.randn(2, queries, classes, device=DEVICE).mul(4).softmax(2).to(dtype)
    scores = torch.rand(2, queries, device=DEVICE) * (torch.rand(2, queries, device=DEVICE) < 0.6)
    found = pixels.look(grids, of_rows, of_columns, weights, scores)
    doubles = grids.double(), product.rows, product.columns, weights.double(), scores.double()
    wanted = pixels.reference(*doubles)
    assert found.classes is not None
    assert found.winners is not None
    assert (found.classes != wanted.classes).double().mean() < TOLERANCE[dtype]
    assert (found.winners != wanted.winners).double().mean() < 1e-4
    torch.testing.assert_close(found.sums, wanted.sums, rtol=1e-5, atol=2)


def test_where_no_query_sees_anything_half_precision_names_the_least_unlikely_one() -> None:
    axes = resample.taps((2, 2), (8, 8), (8, 8), (5, 7), torch.device(DEVICE))
    grids = torch.tensor([-19.0, -18.5, -19.0], device=DEVICE).expand(1, 2, 2, 3)
    weights = torch.zeros(1, 3, 7, device=DEVICE)
    weights[0, [0, 1, 2], [5, 3, 1]] = 1.0
    found = pixels.look(grids.half(), *axes, weights, None)  # in which the masks' probabilities are 0
    assert found.winners is None
    assert found.classes is not None
    assert (found.classes == 4).all()
