"""Which files of a repository are needed: weights as safetensors, JSON and text; never pickles, never code."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fewstep.errors import FewstepError
from fewstep.hub.names import LORA_FILE, HubName
from fewstep.io import read_object

INDEX = "model_index.json"  # of a model folder; downloaded last, so that its presence says that the rest is there
OWN = ("README.md", "fewstep.json")  # the card, for its licence; the recipe of models that fewstep distilled
WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2", "safety_checker")
PARTS = (*WEIGHTED, "tokenizer", "tokenizer_2", "scheduler", "feature_extractor")
PEFT = ("adapter_config.json", "adapter_model.safetensors")
_SHARD = r"(?:-\d{5}-of-\d{5})?"
FULL = re.compile(rf"(?:diffusion_pytorch_)?model{_SHARD}\.safetensors(?:\.index\.json)?")
HALF = re.compile(rf"(?:diffusion_pytorch_)?model(?:{_SHARD}\.fp16|\.fp16{_SHARD})\.safetensors|"
                  r"(?:diffusion_pytorch_)?model\.safetensors\.index\.fp16\.json")  # fmt: skip


class Choice(NamedTuple):
    """Files of a repository, and what they are for."""

    files: tuple[str, ...]
    target: str  # the file that is meant; "" is the folder of them all


def chosen(names: Iterable[str], wanted: HubName, half: bool) -> Choice:
    """The files to have for a model folder, a PEFT folder, a network's folder, or one file; FewstepError for others."""
    names = sorted(names)
    own = tuple(name for name in names if name in OWN)
    if wanted.file:
        return Choice((*own, wanted.file), one_of(wanted, names))
    if INDEX in names:
        parts = [name for part in PARTS for name in part_files(names, f"{part}/", half)]
        return Choice((*own, *parts, INDEX), "")
    if set(PEFT) <= set(names):
        return Choice((*own, *PEFT), "")
    network = part_files(names, "", half)
    if "config.json" in network and any(name.endswith(".safetensors") for name in network):
        return Choice(tuple(network), "")  # a ControlNet, say
    single = the_file(wanted, names)
    return Choice((*own, single), single)


def part_files(names: list[str], folder: str, half: bool) -> list[str]:
    """What is needed of the files directly in one folder, "" being the top: text, and one variant of the weights."""
    inside = {PurePosixPath(n).name: n for n in names if n.startswith(folder) and "/" not in n.removeprefix(folder)}
    full, fp16 = ([name for name in inside if form.fullmatch(name)] for form in (FULL, HALF))
    weights = (fp16 or full) if half else (full or fp16)
    words = [name for name in inside if name.endswith((".json", ".txt", ".md")) and ".safetensors." not in name]
    return [inside[name] for name in (*words, *weights) if inside[name] != INDEX]


def one_of(wanted: HubName, names: list[str]) -> str:
    """The file that was asked for. Raises FewstepError naming what there is when it is not there."""
    if wanted.file in names:
        return wanted.file
    raise FewstepError(f"{wanted.repository} has no file {wanted.file}", offered(names))


def the_file(wanted: HubName, names: list[str]) -> str:
    """The repository's only .safetensors file, or diffusers' LoRA among several."""
    weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if LORA_FILE in weights:
        return LORA_FILE
    if len(weights) == 1:
        return weights[0]
    many = f"has {len(weights)} .safetensors files" if weights else "has no .safetensors file and no model folder"
    raise FewstepError(f"{wanted.repository} {many}", offered(names))


def offered(names: list[str]) -> str:
    """A hint that names the first few files one could mean."""
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        return "fewstep reads .safetensors files, and never pickles (.bin, .ckpt)"
    return f"name one as owner/name/FILE: {', '.join(weights[:5])}{', ...' if len(weights) > 5 else ''}"


def complete(folder: Path, choice: Choice) -> bool:
    """Whether all parts that a snapshot's own index and lists of shards name are among the files chosen of it."""
    if INDEX in choice.files and not all(has_part(choice.files, part) for part in parts_of(folder / INDEX)):
        return False
    lists = [name for name in choice.files if ".safetensors.index." in name]
    return all(str(PurePosixPath(name).with_name(shard)) in choice.files
               for name in lists for shard in shards_of(folder / name))  # fmt: skip


def has_part(files: Iterable[str], part: str) -> bool:
    """Whether a part's folder has files, and weights if it is a network's."""
    ending = ".safetensors" if part in WEIGHTED else ""
    return any(name.startswith(f"{part}/") and name.endswith(ending) for name in files)


def parts_of(index: Path) -> list[str]:
    """The parts a model_index.json names, of those that are used."""
    return [part for part, kind in _json(index).items() if part in PARTS and isinstance(kind, list) and all(kind)]


def shards_of(index: Path) -> set[str]:
    """The files a list of shards names."""
    listed = _json(index).get("weight_map")
    return set(map(str, listed.values())) if isinstance(listed, dict) else set()


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, "index")
    except FewstepError:
        return {}
