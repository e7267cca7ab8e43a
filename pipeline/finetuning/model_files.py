"""What a fine-tuned model's folder has beside weights and tokenizer: generation_config.json and tools.json.

In: the folder of a checkpoint's model, or of an adapter. Out: the two files in it. model_card.py has
README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.storage.tools_json import write_tools
from tools_service.base.checkpoints import load_generation_config, load_tokenizer
from tools_service.base.files import writing


def add_model_files(folder: Path, config: FinetuneConfig) -> None:
    """Write both files; without calls in the texts there is no tools.json."""
    tokenizer = load_tokenizer(config.model.path, "model.path")
    with writing(folder):
        generation_config(folder, config.model.path, tokenizer).save_pretrained(folder)
    if config.column == "text":
        write_tools(folder, config.data, tokenizer)


def generation_config(folder: Path, base: str, tokenizer: Any) -> Any:
    """Greedy decoding, which ends at the tokens that ended a text before, or at the tokenizer's EOS.

    Padding is a token that ends texts where the tokenizer has none of its own.
    """
    from transformers import GenerationConfig

    of_folder = load_generation_config(str(folder)) or load_generation_config(base)  # adapters have none
    earlier = of_folder or GenerationConfig()  # type: ignore[no-untyped-call]
    given = earlier.eos_token_id
    ends = list(given) if isinstance(given, list) else [given]
    ends = [token for token in dict.fromkeys([*ends, tokenizer.eos_token_id]) if token is not None]
    padding = [tokenizer.pad_token_id, earlier.pad_token_id, *ends, None]
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=earlier.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        eos_token_id=(ends if len(ends) > 1 else ends[0]) if ends else None,
        pad_token_id=next((token for token in padding if token is not None), None),
    )
