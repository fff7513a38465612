"""The position embedding in half precision is the float32 one, rounded: its angles are not computed in half."""

import pytest
import torch

from mask2former_mcp.engine.model.position import sine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_rounded_at_the_end_only_whatever_the_default_type(dtype: torch.dtype) -> None:
    wide = sine(100, 167, 256, torch.zeros((), dtype=torch.float32))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as Fabric does where weights are in half precision
    try:
        half = sine(100, 167, 256, torch.zeros((), dtype=dtype))
    finally:
        torch.set_default_dtype(before)
    assert half.dtype == dtype
    assert torch.equal(half, wide.to(dtype))
