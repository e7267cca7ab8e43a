"""The command `merge-lora`: a LoRA adapter and its base model → one model that needs neither.

In: a folder with an adapter, of finetune or of PEFT. Out, in `config.output`: weights, configuration and
tokenizer, as transformers and vLLM load them, and manifest.json. Loading the adapter's folder gives the
same numbers, if the base is stored in the type that is asked for. The folder appears when it is complete.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.base.finetune_config import MergeLoraConfig
from pipeline.finetuning.adapters import merge_adapter
from pipeline.storage.kinds import MERGED_MODEL
from pipeline.storage.manifest import MANIFEST
from pipeline.storage.provenance import versions
from tools_service.base.adapters import read_adapter
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write_json, now, writing
from tools_service.base.fingerprint import FileState
from tools_service.base.locks import output_lock
from tools_service.base.ownership import replacing_folder, require_own
from tools_service.base.settings import Frozen
from tools_service.base.weights import file_states

_COPIED = ("tools.json", "generation_config.json")  # of the adapter's folder, where it has them


class MergedManifest(Frozen):
    """manifest.json of a merged model."""

    versions: dict[str, str]
    created: str
    adapter: Path  # its folder
    base: str  # folder or hub name of the base model
    dtype: str  # of the weights, as asked for
    files: tuple[FileState, ...]


def merge_lora(config: MergeLoraConfig) -> MergedManifest:
    """Write the adapter in `config.adapter` and its base as one model. Takes memory for the whole model.

    Raises ConfigurationError for a folder without an adapter, an adapter that cannot be loaded, and a
    base that is missing or another; NotOwnError for an output that this command did not write.
    """
    adapter = read_adapter(str(config.adapter), "adapter")
    if adapter is None:
        if config.adapter.is_dir():
            raise ConfigurationError(
                f"adapter {str(config.adapter)!r} has no adapter_config.json: it is no folder of an adapter, "
                "so there is nothing to merge"
            )
        raise ConfigurationError(f"adapter {str(config.adapter)!r}: there is no such folder")
    require_own(config.output, MERGED_MODEL)
    with (
        output_lock(config.output),
        replacing_folder(config.output, MERGED_MODEL) as folder,
        writing(config.output),
    ):
        merge_adapter(config.adapter, folder, config.dtype)
        for name in _COPIED:
            if (config.adapter / name).is_file():
                shutil.copyfile(config.adapter / name, folder / name)
        manifest = MergedManifest(
            versions=versions(),
            created=now(),
            adapter=config.adapter,
            base=adapter.base,
            dtype=config.dtype,
            files=tuple(file_states(folder, [path.name for path in folder.iterdir()])),
        )
        atomic_write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest
