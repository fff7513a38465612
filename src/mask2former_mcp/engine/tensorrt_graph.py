"""A TensorRT engine, run by the `tensorrt` package with PyTorch's memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mask2former_mcp.engine import classes as class_table
from mask2former_mcp.engine import tensorrt_api


def classes_file(engine: Path) -> Path:
    """Names the classes of an engine, which has no place for them itself."""
    return engine.with_suffix(".classes.json")


class TensorRtRunner:
    """Raises ModuleNotFoundError without the package, FileNotFoundError, and ValueError for a file of another GPU or
    version."""

    def __init__(self, path: Path) -> None:
        trt = tensorrt_api.load("trt_engine")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such engine")
        # The logger and the runtime must outlive the engine.
        self._log = tensorrt_api.logger(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ValueError(
                f"{path} cannot be opened by TensorRT {trt.__version__} here: an engine runs only on the kind of GPU"
                " and with the version that built it. Build it again with gen_trt_engine"
            )
        self._context = self._engine.create_execution_context()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.input = inputs[0]
        self.outputs = tuple(name for name in names if name not in inputs)
        least, _, most = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(self.input, 0))
        self.size: tuple[int, int] = (most[2], most[3])
        self.batch: tuple[int, int | None] = (least[0], most[0])
        self._types = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))) for name in self.outputs}
        named = classes_file(path)
        self.classes = class_table.from_plain(json.loads(named.read_text())) if named.is_file() else None

    def run(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        given = torch.from_numpy(images).to(self._device)
        self._context.set_input_shape(self.input, tuple(given.shape))
        self._context.set_tensor_address(self.input, given.data_ptr())
        out: dict[str, torch.Tensor] = {}
        for name, kind in self._types.items():
            shape = tuple(self._context.get_tensor_shape(name))
            out[name] = torch.from_numpy(np.zeros(shape, dtype=kind)).to(self._device)
            self._context.set_tensor_address(name, out[name].data_ptr())
        cuda = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device).cuda_stream if cuda else 0
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("TensorRT could not run the engine; its messages above say why")
        if cuda:
            torch.cuda.synchronize(self._device)
        return {name: value.cpu().numpy() for name, value in out.items()}
