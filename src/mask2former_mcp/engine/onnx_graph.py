"""An ONNX file, run by onnxruntime."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from mask2former_mcp.engine import classes as class_table
from mask2former_mcp.engine.classes import Classes

CLASSES = "mask2former.classes"  # the file's metadata entry that names the classes of the network


class OnnxRunner:
    """Raises FileNotFoundError, and ValueError for a file that onnxruntime cannot run or whose size is not fixed."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such ONNX file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        there = onnxruntime.get_available_providers()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[name for name in wanted if name in there]
            )
        except (RuntimeError, ValueError, onnxruntime.capi.onnxruntime_pybind11_state.Fail) as error:
            raise ValueError(f"{path}: onnxruntime cannot run this file: {str(error).splitlines()[0]}") from error
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf as error:
            raise ValueError(f"{path} is not an ONNX file: {error}") from error
        first = self._session.get_inputs()[0]
        self.input = first.name
        shape = tuple(first.shape)
        if len(shape) != 4 or shape[1] != 3 or not all(isinstance(n, int) for n in shape[2:]):
            raise ValueError(f"{path}: its input is {list(shape)}, not [N, 3, height, width] with a fixed size")
        self.size: tuple[int, int] = (shape[2], shape[3])
        self.batch: tuple[int, int | None] = (shape[0], shape[0]) if isinstance(shape[0], int) else (1, None)
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self.classes = _classes(self._session.get_modelmeta().custom_metadata_map.get(CLASSES))

    def run(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        return dict(zip(self.outputs, self._session.run(None, {self.input: images}), strict=True))


def name_classes(path: Path, classes: Classes) -> None:
    """Writes the classes into the file's metadata."""
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, {CLASSES: json.dumps(classes.plain())})
    onnx.save(graph, str(path))


def _classes(text: str | None) -> Classes | None:
    return class_table.from_plain(json.loads(text)) if text else None
