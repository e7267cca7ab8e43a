"""The Hugging Face hub: which files a revision of a model has, and their download.

In: a name and a revision. Out: the commit with its files, or files in a folder. A file that is downloaded
is not downloaded again. The hub's answers become one sentence each. The token is the hub's own (HF_TOKEN, or
`hf auth login`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.fetching.errors import FetchError
from tools_service.base.errors import brief


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its size in bytes, and its SHA-256 where the hub has one."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Revision:
    """One commit of a model on the hub."""

    name: str
    asked: str | None
    commit: str
    files: dict[str, HubFile]


def find_revision(name: str, revision: str | None) -> Revision:
    """The files of `name` at `revision` (None: main). Raises FetchError."""
    with asking_hub(name, revision):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    if info.sha is None:
        raise FetchError(f"{name}: the hub names no commit of it; try again later")
    files = {
        file.rfilename: HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    }
    return Revision(name, revision, info.sha, files)


def download(revision: Revision, file: str, folder: Path) -> Path:
    """Download `file` into `folder`, unless it is there. Raises FetchError."""
    with asking_hub(revision.name, revision.asked):
        api = HfApi()
        path = Path(api.hf_hub_download(revision.name, file, revision=revision.commit, local_dir=folder))
    expected = revision.files[file].size
    if path.stat().st_size != expected:
        found = path.stat().st_size
        path.unlink()
        raise FetchError(
            f"{revision.name}: {file} has {found:,} bytes, the hub says {expected:,}; give the command again"
        )
    return path


@contextmanager
def asking_hub(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub and its client raise in the block into a FetchError."""
    try:
        yield
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise FetchError(f"{name}: {_unreachable(error)}") from error
    except GatedRepoError as error:
        raise FetchError(
            f"{name}: its owner must grant access: accept its licence on the hub, then `hf auth login` or "
            "set HF_TOKEN, and give the command again"
        ) from error
    except RepositoryNotFoundError as error:
        raise FetchError(
            f"{name}: the hub has no such model, or it is private and the token (HF_TOKEN, `hf auth login`) "
            "is missing or not its owner's; there is no such folder either"
        ) from error
    except RevisionNotFoundError as error:
        raise FetchError(f"{name}: it has no revision {revision!r}; name a branch, tag or commit") from error
    except (DisabledRepoError, HFValidationError) as error:
        raise FetchError(f"{name}: {brief(error)}") from error
    except HfHubHTTPError as error:
        raise FetchError(f"{name}: the hub answers {brief(error)}; give the command again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"{name}: {error.strerror}: make room, or name another --output") from error
        if isinstance(error, (PermissionError, FileNotFoundError)) or error.errno in (errno.EROFS, errno.EIO):
            raise FetchError(f"{name}: {brief(error)}") from error
        raise FetchError(f"{name}: {_unreachable(error)}") from error
    except Exception as error:
        # The client's HTTP library has its own classes of errors for connections, which it may replace.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "hf_xet")):
            raise
        raise FetchError(f"{name}: {_unreachable(error)}") from error


def _unreachable(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "it is not staged, and HF_HUB_OFFLINE forbids asking the hub; unset it, or name a folder"
    return (
        f"the hub cannot be reached ({brief(error)}); give the command again where there is a network, or "
        "name a folder"
    )
