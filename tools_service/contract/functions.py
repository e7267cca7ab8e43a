"""placeholder"""

from typing import Any

from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import Tool


def tool_of_function(spec: ToolSpec, function: Any) -> Tool:
    raise NotImplementedError
