"""The installed version, read from the package's metadata so that it is written down once."""

import importlib.metadata


def version() -> str:
    try:
        return importlib.metadata.version("mask2former-mcp")
    except importlib.metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return "0+unknown"
