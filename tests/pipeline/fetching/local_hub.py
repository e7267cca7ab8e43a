"""A model hub on loopback, with the few answers that its client asks for, and checkpoints to put there."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRANCHES = ("main", "float16", COMMIT)


@dataclass
class LocalHub:
    """Repositories by name, each a folder; `gated` ones need a token, files in `wrong` are sent damaged.

    `sent` counts the bytes of each file.
    """

    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    address: str = ""


@contextmanager
def serving(hub: LocalHub) -> Iterator[LocalHub]:
    """Serve `hub` on a free port of loopback, at `hub.address`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
            file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
            if listing:
                self._list(listing[1], listing[2] or "main")
            elif file:
                self._send_file(*file.groups())
            elif "/tree/" in path:  # folders in a repository: none
                self._refuse(404, "EntryNotFound")
            else:
                self._refuse(404, "EntryNotFound")

        def _list(self, name: str, revision: str) -> None:
            if self._may_read(name, revision):
                files = [_sibling(path) for path in sorted(hub.models[name].iterdir())]
                self._send_json({"_id": "0", "id": name, "sha": COMMIT, "siblings": files})

        def _send_file(self, name: str, revision: str, file: str) -> None:
            if not self._may_read(name, revision):
                return
            path = hub.models[name] / file
            if not path.is_file():
                self._refuse(404, "EntryNotFound")
                return
            content = path.read_bytes()
            if file in hub.wrong:
                content = bytes([content[0] ^ 1]) + content[1:]
            start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                hub.sent[file] += len(content) - start
                self.wfile.write(content[start:])

        def _may_read(self, name: str, revision: str) -> bool:
            authorization = self.headers.get("Authorization")
            if name not in hub.models:
                self._refuse(401, "RepoNotFound")
            elif name in hub.gated and not authorization:
                self._refuse(401, "GatedRepo")
            elif revision not in BRANCHES:
                self._refuse(404, "RevisionNotFound")
            else:
                return True
            return False

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send_json(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sibling(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    digest, size = hashlib.sha256(content).hexdigest(), len(content)
    large = {"lfs": {"sha256": digest, "size": size, "pointerSize": 134}} if path.suffix != ".json" else {}
    return {"rfilename": path.name, "size": size, "blobId": digest[:40], **large}


def pickled(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shards: int = 1
) -> dict[str, torch.Tensor]:
    """Save a checkpoint with pickled weights, as in 2021; return its tensors, tied ones too."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = dict(model.state_dict())
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return state
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = {name: state[name] for name in list(state)[number::shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return state
