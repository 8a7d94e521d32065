"""A LoRA as people type it: FILE, FILE:WEIGHT, or FILE:WEIGHT,BLOCK=WEIGHT,..."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fewstep.assets import shipped_lora
from fewstep.errors import FewstepError, UsageError
from fewstep.hub import resolved
from fewstep.lora.blocks import BLOCKS, blocks_of
from fewstep.lora.dialects import PEFT_CONFIG


class LoraReference(NamedTuple):
    """A LoRA and its weight. FILE may be a file, the name of a LoRA that ships, or a hub id."""

    path: Path
    weight: float
    blocks: Mapping[str, float] = {}  # block of BLOCKS -> its own weight

    @property
    def file(self) -> Path:
        """The file, or PEFT's folder. For another folder it is the only LoRA in it.

        Raises FewstepError when there is none, or when there are several.
        """
        file = shipped_lora(str(self.path)) or resolved(self.path.as_posix())
        if file.is_dir():
            return file if (file / PEFT_CONFIG).is_file() else only_in(file)
        if not file.is_file():
            raise not_found(str(self.path))
        return file

    def weight_of(self, module: str) -> float:
        """The weight of a module: that of the narrowest block that contains it and has a weight, else `weight`."""
        return next((self.blocks[b] for b in blocks_of(module) if b in self.blocks), self.weight)


def not_found(text: str) -> FewstepError:
    """What is said of a LoRA that is not there, such as one whose weight is no number."""
    name, _, last = text.rpartition(":")
    if name and (shipped_lora(name) or Path(name).is_file()):
        return UsageError(f"LoRA {text}: {last!r} is no weight", f"give a number, as in {name}:0.8")
    return FewstepError(
        f"LoRA file not found: {text}",
        "check the path, name one that ships (lcm, high-contrast, noto-mono), or a hub id owner/name",
    )


def only_in(folder: Path) -> Path:
    """The only LoRA in a folder. In that of a run it is the run's last result, also beside its best one."""
    files = sorted(folder.glob("*.safetensors"))
    if {file.name for file in files} == {"best.safetensors", "lora.safetensors"}:
        return folder / "lora.safetensors"
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise FewstepError(
            f"LoRA {folder} is a folder with {'several files' if files else 'no LoRA in it'}",
            f"name one of them: {names}" if files else "name a .safetensors file",
        )
    return files[0]


def parse_reference(text: str) -> LoraReference:
    """The reference in a typed text. The weight follows the last colon; without a number there, it is 1.

    Raises UsageError for an unknown block.
    """
    name, _, last = text.rpartition(":")
    weights = parse_weights(last) if name else None
    if weights is None:
        return LoraReference(Path(text), 1.0)
    unknown = [block for block in weights if block not in ("", *BLOCKS)]
    if unknown:
        raise UsageError(f"LoRA {text}: unknown block {unknown[0]!r}", f"the blocks are {', '.join(BLOCKS)}")
    return LoraReference(Path(name), weights.pop("", 1.0), weights)


def parse_weights(text: str) -> dict[str, float] | None:
    """Block -> weight from a text such as 0.8,te=0.5,mid=1.2. "" stands for all other blocks. None for other texts."""
    weights: dict[str, float] = {}
    for term in text.split(","):
        block, _, number = term.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            return None
        if not math.isfinite(value) or block in weights:
            return None
        weights[block] = value
    return weights
