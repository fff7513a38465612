"""The published Swin sizes, and which size a spec means: its `type`, unless explicit keys say otherwise."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple


class SwinSize(NamedTuple):
    """Width of the first stage (it doubles with each), blocks and attention heads of the four stages."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


SWIN_SIZES: Mapping[str, SwinSize] = MappingProxyType(
    {
        "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),
        "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),
        "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    }
)
DEFAULT = SWIN_SIZES["tiny"]
"""What the spec's own keys hold unless somebody sets them."""


def meant(type: str, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> SwinSize:
    """The size of `type`; a key that differs from its own default wins. KeyError for an unknown type."""
    size = SWIN_SIZES[type]
    return SwinSize(
        size.embed_dim if embed_dim == DEFAULT.embed_dim else embed_dim,
        size.depths if tuple(depths) == DEFAULT.depths else tuple(depths),
        size.num_heads if tuple(num_heads) == DEFAULT.num_heads else tuple(num_heads),
    )


def described() -> str:
    """All sizes in words, for the help text of `type`."""
    lists = {name: [",".join(map(str, part)) for part in size[1:]] for name, size in SWIN_SIZES.items()}
    return "; ".join(f"{name} {SWIN_SIZES[name].embed_dim}, [{d}], [{h}]" for name, (d, h) in lists.items())
