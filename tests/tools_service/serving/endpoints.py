"""Runs an application on loopback, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from tools_service.config import HttpConfig
from tools_service.serving.http import bind_socket, create_server


@contextmanager
def serving(app: Starlette, config: HttpConfig) -> Iterator[str]:
    """The address of `app`, which ends with the block."""
    listener = bind_socket(config)
    server = create_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()
