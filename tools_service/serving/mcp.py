"""The tools as a server of the Model Context Protocol: `python -m tools_service serve --mcp`.

In: a ToolClient and declarations. Out: an MCP server on standard input and output, or an application that
answers POST /mcp (Streamable HTTP) beside POST /TOOL, for the same hosts, pages and token as http.py. Each
tool has its name, description and parameters, and is declared read-only. A result is text; a reason is an
error that the caller's model can read.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from mcp.shared.exceptions import MCPError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tools_service.base.settings import IsoDate
from tools_service.base.version import __version__
from tools_service.config import HttpConfig
from tools_service.contract.arguments import CallArguments
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.serving.http import require_allowed
from tools_service.tools.client import ToolClient
