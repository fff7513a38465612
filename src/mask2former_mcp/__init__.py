"""mask2former-mcp: a typed MCP server that trains, evaluates and ships Mask2Former."""
