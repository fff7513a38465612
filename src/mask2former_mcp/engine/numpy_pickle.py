"""Pickles of NumPy arrays, as detectron2's model zoo has them, read without running anything in them.

A pickle is a program. Of all that one may name, this reader knows NumPy's arrays, their types and numbers, and refuses
the file at the first other name.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _maker(value: Any) -> Callable[..., Any]:
    """What NumPy itself rebuilds such a value with."""
    maker: Callable[..., Any] = value.__reduce__()[0]
    return maker


def _bytes_of(text: str, encoding: str) -> bytes:
    """Protocol 2 keeps an array's bytes as latin-1 text; any other encoding is not NumPy's."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _maker(np.ndarray(0)) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _maker(np.float32(0)) for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes_of,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside itself")


def load(path: Path) -> dict[str, Any]:
    """The mapping in the file. Raises ValueError for anything but arrays and plain values; nothing of it is run."""
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: {error}. A .pkl is read only when it holds NumPy arrays and plain values, because "
            "anything else in a pickle can run code. Convert it to arrays, or use a .pth of tensors."
        ) from error
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} cannot be read as a pickle: {error or 'it ends too early'}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a mapping of weights.")  # noqa: TRY004 - a file
    return content


def weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of the arrays under `model`, or of the file's own. Raises ValueError when there are none."""
    content = load(path)
    inner = content.get("model", content)
    found = inner if isinstance(inner, dict) else {}
    state = {
        str(name): torch.from_numpy(np.array(value))
        for name, value in found.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    }
    if not state:
        raise ValueError(f"{path} holds no weights: expected NumPy arrays, alone or under 'model'.")
    return state
