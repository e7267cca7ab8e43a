"""Uploads an exported folder to the Hugging Face hub, as a data set.

In: a folder that export wrote, and the name of a repository. Out: the address of the data set. Only the
rows, the card and the manifest are uploaded. The token is the hub's own (HF_TOKEN, or `hf auth login`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools_service.base.errors import ToolformerError, brief

UPLOADED = ("README.md", "manifest.json", "rows/*.parquet", "rows/*.jsonl")


class PushError(ToolformerError):
    """The hub does not take the folder. The folder itself is complete."""


def push(folder: Path, name: str, *, public: bool = False, api: Any = None) -> str:
    """Upload `folder` to the data set `name`, which is made, and private unless `public`, if it is new.

    `api` replaces huggingface_hub's HfApi. Raises PushError: for an existing public data set without
    `public`, and if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,  # that of the HTTP client
        LocalTokenNotFoundError,
    )

    api = api or HfApi()
    try:
        address = api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        if not public and not api.repo_info(name, repo_type="dataset").private:
            raise PushError(
                f"push_to_hub: the data set {name} is public already; add --public, or name another one"
            )
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=list(UPLOADED),
            commit_message="Upload C*",
        )
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise PushError(
            f"push_to_hub: {name} was not uploaded: {brief(error)}. {folder} is complete; log in with "
            "`hf auth login` or set HF_TOKEN, and give the command again"
        ) from error
    return str(address)
