"""`python server.py` starts the MCP server over stdio (`--http` for Streamable HTTP on 127.0.0.1)."""

import sys

from mask2former_mcp.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
