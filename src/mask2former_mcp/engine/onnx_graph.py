"""An ONNX file, run by onnxruntime."""

import json
import re
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
_SCOPES = "pkg.torch.onnx.name_scopes"  # a node's: the modules around it, outermost first, then its own name


class OnnxRunner:
    """gpu: the one to run on, where onnxruntime can; None: the CPU. Raises FileNotFoundError, and ValueError for a file
    that onnxruntime cannot run or whose size is not fixed."""

    def __init__(self, path: Path, gpu: int | None = 0) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such ONNX file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers: list[Any] = ["CPUExecutionProvider"]
        if gpu is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu}))
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
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


def nodes(graph: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The graph's nodes by their names, each with that name and the name of the network's module that it is part of.

    PyTorch's exporter numbers its nodes (node_linear_1) and notes the modules beside them; its older one, which others
    still use, puts them into the name (/model/backbone/patch_embed/proj/Conv).
    """
    return {node.name: (node.name, _module(node)) for node in graph.graph.node if node.name}


def _module(node: onnx.NodeProto) -> str:
    noted = {entry.key: entry.value for entry in node.metadata_props}.get(_SCOPES, "")
    scopes = re.findall("'([^']*)'", noted) or [".".join(node.name.strip("/").split("/")[:-1]), node.name]
    return scopes[-2].removeprefix("model.") if len(scopes) > 1 else ""


def _classes(text: str | None) -> Classes | None:
    return class_table.from_plain(json.loads(text)) if text else None
