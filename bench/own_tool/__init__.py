"""A sixth tool in the demo's world: a shop's price list behind an MCP server (docs/own_tool.md).

shop.py makes the world, server.py is the server, __main__.py runs every step and checks the result.
"""
