"""PEFT's configs, which keep the scale of a LoRA outside its tensors: adapter_config.json, lora_adapter_metadata."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import regex

from fewstep.errors import FewstepError
from fewstep.lora.dialects import COMPONENTS, component_of, prefix_of

METADATA = "lora_adapter_metadata"  # a safetensors key of diffusers: the configs of all components, as `unet.r`
ANY = ""  # the component of a config that names none, as PEFT writes it
LONGEST_S = 1.0  # time limit for matching all patterns of a file
AGAIN = "get the file again from its source"

Configs = Mapping[str, Mapping[str, Any]]  # component -> PEFT's config


class Alpha(NamedTuple):
    """A module's alpha. Its scale at rank R is alpha / R, or alpha / sqrt(R) with rslora (arXiv 2312.03732)."""

    value: float
    root: bool = False

    def scale(self, rank: int) -> float:
        """Of B A."""
        return self.value / (rank**0.5 if self.root else rank)


def configs_in(metadata: Mapping[str, str], path: Path) -> Configs:
    """Component -> the config that diffusers keeps inside a file; empty when the file has none."""
    if METADATA not in metadata:
        return {}
    try:
        config = json.loads(metadata[METADATA])
    except (ValueError, RecursionError) as error:
        raise FewstepError(f"the adapter metadata inside {path} is damaged ({error})", AGAIN) from error
    found: dict[str, dict[str, Any]] = {}
    for key, value in checked(config, str(path)).items():
        component, dot, field = key.partition(".")
        known = bool(dot) and component in COMPONENTS
        found.setdefault(component if known else ANY, {})[field if known else key] = value
    return found


def checked(config: Any, what: str) -> Mapping[str, Any]:
    """PEFT's config itself. Raises FewstepError if it is not a LoRA's, or if a value that is read has a wrong type."""
    if not isinstance(config, dict):
        raise FewstepError(f"the PEFT config of {what} is not a JSON object", AGAIN)
    for key, value in config.items():
        if key.endswith("peft_type") and value != "LORA":
            raise FewstepError(f"{what} holds {value}, not a LoRA", "use a LoRA")
        if key.endswith("lora_alpha") and not is_number(value):
            raise FewstepError(f"the PEFT config of {what} has {key} {value!r}, which is not a number", AGAIN)
        if key.endswith("alpha_pattern") and not isinstance(value, dict | None):
            raise FewstepError(f"the PEFT config of {what} has {key} {value!r}, which is not a JSON object", AGAIN)
        for module, alpha in (value or {}).items() if key.endswith("alpha_pattern") else ():
            if not is_number(alpha):
                raise FewstepError(f"the PEFT config of {what} has {key} {alpha!r} for {module}, not a number", AGAIN)
    return config


def is_number(value: Any) -> bool:
    """Whether a JSON value is null, or a number that fits in a float."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def alphas_of(configs: Configs, modules: Iterable[str], what: str) -> dict[str, Alpha]:
    """Module as the file spells it -> its alpha, for the modules whose alpha a config gives."""
    end = time.monotonic() + LONGEST_S
    found = {}
    for spelled in modules:
        config = config_for(configs, spelled)
        if config is None:
            continue
        module = spelled.removeprefix(prefix_of(spelled))
        pattern = first_match(config.get("alpha_pattern") or {}, module, what, end)
        alpha = config.get("lora_alpha") if pattern is None else config["alpha_pattern"][pattern]
        if alpha is not None:
            found[spelled] = Alpha(float(alpha), bool(config.get("use_rslora")))
    return found


def config_for(configs: Configs, spelled: str) -> Mapping[str, Any] | None:
    """The config for a module, named as in the file; None when there is none."""
    return configs.get(component_of(spelled), configs.get(ANY))


def first_match(patterns: Iterable[str], module: str, what: str, end: float) -> str | None:
    """The first pattern, a regular expression, that matches the module's name or its end, as in PEFT; else None.

    end: the time (monotonic) at which matching stops with an error, because a hostile pattern may take for ever.
    """
    for pattern in patterns:
        if module == pattern or module.endswith(f".{pattern}"):
            return pattern
        try:
            left = max(end - time.monotonic(), 1e-3)
            if regex.match(rf"(.*\.)?({pattern})$", module, timeout=left):
                return pattern
        except (regex.error, RecursionError, OverflowError) as error:
            raise FewstepError(
                f"the PEFT config of {what} has a damaged pattern {pattern!r} ({error})", AGAIN
            ) from error
        except TimeoutError:
            raise FewstepError(f"the PEFT config of {what} has a pattern that never ends: {pattern!r}", AGAIN) from None
    return None
