"""What DeepSpeed and this machine say of a user's DeepSpeed file, before workers start.

In: a FinetuneConfig whose `deepspeed` names a file. Out: nothing, or a ConfigurationError that names the
file and the key. DeepSpeed's own parser reads the settings; keys that it never asks for are unknown to it.
deepspeed_settings.py has the checks that need no DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.step.accelerator import prepare_deepspeed
from pipeline.finetuning.step.deepspeed_settings import deepspeed_settings, shown
from pipeline.finetuning.step.offloading import unmet_requirement
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.printable import printable

_MAX_SHOWN = 5


def require_machine(config: FinetuneConfig) -> None:
    """Raise ConfigurationError for what this machine lacks for the settings of a file. Imports DeepSpeed."""
    if config.deepspeed is None:
        return
    settings = deepspeed_settings(config)
    prepare_deepspeed(use_gpu=False)  # the driver trains nothing
    if reason := unmet_requirement(settings):
        raise ConfigurationError(f"deepspeed {config.deepspeed}: {reason}")


def require_known_keys(config: FinetuneConfig) -> None:
    """Have DeepSpeed parse the settings, if they come from a file of the user. Imports DeepSpeed.

    Raises ConfigurationError for what DeepSpeed does not know or accept: nothing else would name a
    misspelt key.
    """
    if config.deepspeed is None:
        return
    values = deepspeed_settings(config)
    del values["train_batch_size"]  # DeepSpeed divides it by the number of processes, here one
    settings = _Recorded.of(values)
    if error := _parse_error(settings):
        cause = settings.of_wrong_type() or _located(error, values)
        raise ConfigurationError(f"deepspeed {config.deepspeed}: DeepSpeed refuses it: {cause}") from error
    if unknown := [*settings.unread(), *_unread_in_sections(settings)]:
        raise ConfigurationError(
            f"deepspeed {config.deepspeed}: DeepSpeed knows no {_listed(unknown)}: mend or remove it"
        )
    if wrong := settings.of_wrong_type():
        raise ConfigurationError(f"deepspeed {config.deepspeed}: {wrong}")


def _parse_error(settings: _Recorded) -> Exception | None:
    """What DeepSpeed's parser raises for the settings."""
    prepare_deepspeed(use_gpu=False)  # the driver trains nothing
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(settings)
    except Exception as error:
        return error
    return None


def _located(error: Exception, values: Mapping[str, Any]) -> str:
    """The error, with the key without which it does not occur, unless it names that key itself."""
    cause = printable(brief(error), 400)
    for key in values:
        others = _Recorded.of({name: value for name, value in values.items() if name != key})
        if _parse_error(others) is None:
            return cause if key in cause else f"{printable(key)}: {cause}"
    return cause


def _listed(keys: list[str]) -> str:
    shown = [printable(key, 100) or '""' for key in keys[:_MAX_SHOWN]]
    more = [f"{len(keys) - _MAX_SHOWN} more"] if len(keys) > _MAX_SHOWN else []
    return ", ".join(shown + more)


class _Recorded(dict[str, Any]):
    """A dict that remembers which keys it was asked for, with the default value."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.defaults: dict[str, Any] = {}

    @staticmethod
    def of(values: Mapping[str, Any]) -> _Recorded:
        """`values` and its sections, recorded."""
        sections = {key: _Recorded(value) for key, value in values.items() if isinstance(value, dict)}
        return _Recorded({**values, **sections})

    def __copy__(self) -> _Recorded:
        return self

    def __iter__(self) -> Iterator[str]:  # so that ** asks for each key
        return super().__iter__()

    def __contains__(self, key: object) -> bool:
        self.defaults.setdefault(str(key), None)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.defaults.setdefault(key, None)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.defaults[key] = default
        return super().get(key, default)

    def unread(self) -> list[str]:
        """Keys that nothing asked for."""
        return [key for key in self if key not in self.defaults]

    def of_wrong_type(self) -> str:
        """A sentence about the first number or truth value that is none; "" if there is none."""
        for key, value in self.items():
            default = self.defaults.get(key)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(default, bool) and not isinstance(value, bool):
                return f"{printable(key)} = {shown(value)} is neither true nor false"
            if (
                isinstance(default, int | float)
                and not isinstance(default, bool)
                and not (is_number and value >= 0)
            ):
                return f"{printable(key)} = {shown(value)} is not a number from 0 on"
        return ""


def _unread_in_sections(settings: _Recorded) -> Iterator[str]:
    # A section that nothing read is one that DeepSpeed's engine reads, or one of a monitor.
    for key, section in settings.items():
        if isinstance(section, _Recorded) and section.defaults:
            yield from (f"{key}.{name}" for name in section.unread())
