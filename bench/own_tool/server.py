"""The shop: an MCP server over stdio that reads a price list. It imports nothing of this project.

python server.py prices.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations


def main() -> None:
    """Serve until standard input ends."""
    prices = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    server = MCPServer("shop")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True), structured_output=False)
    def price_of(name: str) -> str:
        """The price of a rose, by its name."""
        if name not in prices:
            raise ToolError("not on the list")
        return f"{name} costs {prices[name]} coins."

    server.run("stdio")


if __name__ == "__main__":
    main()
