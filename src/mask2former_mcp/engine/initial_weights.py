"""Weights of a file into a network: whole Mask2Formers of several layouts, and published backbones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from mask2former_mcp.engine import checkpoint, numpy_pickle, transformers_folder
from mask2former_mcp.engine.model import position_tables, weights

NAMED = 8  # tensors in an error, of those that do not fit


class Loaded(NamedTuple):
    """What loading did with each name: taken from the file, missing in it, unknown to the model, or left as it was.

    interpolated: taken, but resized: position tables of another window or image. mismatched: the names left as they
    were because of their shape, with (shape in the file, shape in the network). layout: what kind of file it was.
    """

    taken: list[str]
    missing: list[str]
    unknown: list[str]
    kept_fresh: list[str]
    interpolated: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    layout: str

    def report(self, path: Path) -> dict[str, Any]:
        """The same as plain values, for `weights.json`."""
        return {
            "file": str(path),
            "layout": self.layout,
            "matched": self.taken,
            "interpolated": self.interpolated,
            "mismatched": {n: {"file": list(f), "network": list(own)} for n, (f, own) in self.mismatched.items()},
            "skipped": self.unknown,
            "missing": self.missing,
        }

    def summary(self) -> str:
        return (
            f"{len(self.taken)} tensors matched ({len(self.interpolated)} interpolated), {len(self.mismatched)} of "
            f"another shape, {len(self.unknown)} skipped, {len(self.missing)} not in the file ({self.layout})"
        )


def load_weights(model: nn.Module, path: Path, *, strict: bool = True) -> Loaded:
    """Copies the weights of a whole Mask2Former into a network.

    path: a checkpoint (ours, TAO's, or a bare state dict), detectron2's `.pkl` or `.pth`, or a transformers folder.
    strict: every name and shape must fit. Otherwise, for fine-tuning: class head and queries of another size stay
    fresh, position tables are resized, names may be missing. Raises ValueError that says which spec value the file was
    made with, before anything is copied.
    """
    found, layout = _whole_network(path)
    own = model.state_dict()
    interpolated: list[str] = []
    if not strict:
        found, interpolated = position_tables.fit(found, own)
    differ = _differences(found, own)
    kept_fresh = [] if strict else sorted(name for name in differ if name.startswith(weights.TASK_SPECIFIC))
    _refuse_other_shapes(path, "network", differ, kept_fresh)
    missing = sorted(name for name in own.keys() - found.keys() if not _recomputed(name))
    unknown = sorted(name for name in found.keys() - own.keys() if not _recomputed(name))
    if (strict and (missing or unknown)) or len(missing) > len(own) // 2:
        raise ValueError(
            f"{path} does not fit this network: {len(missing)} names are missing (first: {missing[:2]}), "
            f"{len(unknown)} are not known (first: {unknown[:2]}). Use the architecture keys that it was trained with."
        )
    taken = sorted(name for name in (own.keys() & found.keys()) - set(kept_fresh) if not _recomputed(name))
    model.load_state_dict({name: found[name] for name in taken}, strict=False)
    mismatched = {name: differ[name] for name in kept_fresh}
    return Loaded(taken, missing, unknown, kept_fresh, interpolated, mismatched, layout)


def load_backbone(model: nn.Module, path: Path) -> Loaded:
    """Copies a published Swin or EfficientViT file into `model.backbone`; its classifier is left out.

    Position tables of another window or image are resized. Raises ValueError where another shape differs.
    """
    backbone = model.get_submodule("backbone")
    raw = numpy_pickle.weights(path) if path.suffix == ".pkl" else _state_dict(checkpoint.load(path), path)
    own = backbone.state_dict()
    is_swin = "patch_embed.proj.weight" in own
    found = weights.from_swin(raw) if is_swin else weights.from_efficientvit(raw)
    found, interpolated = position_tables.fit(found, own)
    _refuse_other_shapes(path, "backbone", {f"backbone.{n}": pair for n, pair in _differences(found, own).items()}, [])
    # Output norms do not exist in a classifier's file: they stay fresh.
    missing = sorted(name for name in own.keys() - found.keys() if not _recomputed(name))
    if len(missing) > len(own) // 2:
        lack = f"{len(missing)} of {len(own)} names are missing, first {missing[:2]}"
        raise ValueError(f"{path} holds no {'Swin' if is_swin else 'EfficientViT'} backbone: {lack}.")
    taken = sorted(own.keys() & found.keys())
    backbone.load_state_dict({name: found[name] for name in taken}, strict=False)
    unknown = sorted(found.keys() - own.keys())
    return Loaded(taken, missing, unknown, missing, interpolated, {}, "published backbone")


def _whole_network(path: Path) -> tuple[dict[str, Tensor], str]:
    """A Mask2Former's state dict under our names, "no object" first, and the kind of file it came from."""
    if path.is_dir():
        return weights.from_transformers_file(transformers_folder.read(path)), "transformers folder"
    if path.suffix == ".pkl":
        return weights.from_detectron2(numpy_pickle.weights(path)), "detectron2 pickle"
    content = checkpoint.load(path)
    state = _state_dict(content, path)
    # detectron2 keeps the weights under `model`, beside its own trainer's state; Lightning under `state_dict`.
    if "state_dict" not in content and "model" in content:
        return weights.from_detectron2(state), "detectron2 checkpoint"
    return weights.without_prefix(_multiplied_out(state, checkpoint.scales(content)), checkpoint.PREFIX), "checkpoint"


Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def _differences(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Shapes:
    """Names in both whose shapes differ: (in the file, in the network)."""
    pairs = {name: (tuple(found[name].shape), tuple(own[name].shape)) for name in own.keys() & found.keys()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and not _recomputed(name)}


def _refuse_other_shapes(path: Path, what: str, differ: Shapes, allowed: list[str]) -> None:
    if wrong := sorted(differ.keys() - set(allowed), key=weights.explains_most):
        why = weights.explain(wrong[0], *differ[wrong[0]])
        named = ", ".join(wrong[:NAMED]) + (", ..." if len(wrong) > NAMED else "")
        count = f" Of another shape are {len(wrong)} tensors: {named}." if len(wrong) > 1 else ""
        raise ValueError(f"{path} does not fit this {what}: {why}{count}")


def _recomputed(name: str) -> bool:
    return name.endswith(weights.RECOMPUTED)


def _multiplied_out(state: Mapping[str, Tensor], by: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """8-bit weights as the numbers that they stand for."""
    out = dict(state)
    for name, scale in by.items():
        key = name if name in out else checkpoint.PREFIX + name
        out[key] = out[key].to(scale.dtype) * scale.reshape(-1, *[1] * (out[key].dim() - 1))
    return out


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights: expected a state dict, alone or under 'state_dict' or 'model'.")
    return state
