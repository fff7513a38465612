"""Kernels that keep tables on the chip, compiled for a GPU with the least room for them, which takes no GPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton exists for Linux only")

LEAST = 99 << 10  # bytes for one program, of the compute capabilities 8.6, 8.9 and 12.0

# In a process of its own: Triton's interpreter, which the other tests use, compiles nothing.
PROGRAM = """
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mask2former_mcp.engine.kernels import pixels
from mask2former_mcp.engine.resample import Taps

TYPES = {torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.uint8: "*u8"}


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self

    def __call__(self, *values, num_warps, **fixed):
        types = [TYPES[v.dtype] if isinstance(v, torch.Tensor) else "i32" for v in values]
        signature = dict(zip(self.kernel.arg_names, types)) | dict.fromkeys(fixed, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(types) if type_.startswith("*")}
        source, target = ASTSource(self.kernel, signature, fixed, aligned), GPUTarget("cuda", 86, 32)
        print(triton.compile(source, target=target, options={"num_warps": num_warps}).metadata.shared)


for name in ("_classes", "_queries"):
    setattr(pixels, name, Compiled(getattr(pixels, name)))
queries, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
axis = Taps(torch.zeros(64, dtype=torch.int32), torch.zeros(64, 3))
grids, weights = torch.zeros(1, 16, 16, queries, dtype=dtype), torch.zeros(1, queries, 133)
pixels.look(grids, axis, axis, weights, weights[..., 0])
"""


@pytest.mark.parametrize("queries", [100, 200])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_looks_at_pixels_fits_into_a_small_gpu(queries: int, dtype: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM, str(queries), dtype]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used = [int(line) for line in done.stdout.split()]
    assert len(used) == 2
    assert max(used) <= LEAST
