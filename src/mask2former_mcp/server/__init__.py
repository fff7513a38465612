"""The MCP face: tools and resources. Decides nothing."""
