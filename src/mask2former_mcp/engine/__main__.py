"""`python -m mask2former_mcp.engine <action> -e spec.yaml`: the `mask2former` command where it is not on the PATH."""

import sys

from mask2former_mcp.engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
