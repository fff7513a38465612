"""The door to NVIDIA's `tensorrt` package, which no extra installs: it needs a GPU and its driver's version."""

import importlib
import importlib.util
from typing import Any


def load(key: str) -> Any:
    """The package. Raises ModuleNotFoundError, naming the spec key that asked for it, and the other way to do it."""
    if importlib.util.find_spec("tensorrt") is None:
        raise ModuleNotFoundError(
            f"{key} needs the package tensorrt, which is not installed in the engine's Python: pip install"
            " 'tensorrt<11' on a machine with an NVIDIA GPU, or use NVIDIA's TAO deploy container (runtime=tao)"
        )
    return importlib.import_module("tensorrt")


def logger(trt: Any, *, verbose: bool = False) -> Any:
    return trt.Logger(trt.Logger.VERBOSE if verbose else trt.Logger.WARNING)
