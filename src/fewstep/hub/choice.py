"""The files of a repository that are needed: weights as safetensors, JSON, text. Pickles and code are never taken."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fewstep.errors import FewstepError
from fewstep.hub.names import LORA_FILE, HubName
from fewstep.io import read_object

INDEX = "model_index.json"  # of a model folder; it is downloaded last, so if it is there, the rest is there
OWN = ("README.md", "fewstep.json")  # the card, for its licence; the recipe of a model that fewstep distilled
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2", "safety_checker")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler", "feature_extractor")
PEFT = ("adapter_config.json", "adapter_model.safetensors")
_SHARD = r"(?:-\d{5}-of-\d{5})?"
FULL = re.compile(rf"(?:diffusion_pytorch_)?model{_SHARD}\.safetensors(?:\.index\.json)?")
HALF = re.compile(rf"(?:diffusion_pytorch_)?model(?:{_SHARD}\.fp16|\.fp16{_SHARD})\.safetensors|"
                  r"(?:diffusion_pytorch_)?model\.safetensors\.index\.fp16\.json")  # fmt: skip


class Choice(NamedTuple):
    """The files of a repository that are needed."""

    files: tuple[str, ...]
    target: str  # the file that is asked for; "" is the folder with all of them


def chosen(names: Iterable[str], place: HubName, half: bool) -> Choice:
    """The files needed of a model folder, a PEFT folder, a network's folder or a single file.

    names: all files of the repository. half: take weights stored in fp16 where there are some.
    Raises FewstepError if the repository is none of these.
    """
    names = sorted(names)
    own = tuple(name for name in names if name in OWN)
    if place.file:
        return Choice((*own, place.file), checked_file(place, names))
    if INDEX in names:
        parts = [name for part in PARTS for name in part_files(names, f"{part}/", half)]
        parts = parts or part_files(names, "", half)  # a model in pixel space may have its files at the top
        return Choice((*dict.fromkeys((*own, *parts)), INDEX), "")
    if set(PEFT) <= set(names):
        return Choice((*own, *PEFT), "")
    network = part_files(names, "", half)
    if "config.json" in network and any(name.endswith(".safetensors") for name in network):
        return Choice(tuple(network), "")  # a ControlNet, say
    single = only_weights(place, names)
    return Choice((*own, single), single)


def part_files(names: list[str], folder: str, half: bool) -> list[str]:
    """The files needed of one folder, without the folders inside it: texts, and one variant of the weights.

    folder: ends in "/"; "" is the repository's top. half: take the fp16 variant if there is one, else the full one.
    """
    inside = {PurePosixPath(n).name: n for n in names if n.startswith(folder) and "/" not in n.removeprefix(folder)}
    full, fp16 = ([name for name in inside if form.fullmatch(name)] for form in (FULL, HALF))
    weights = (fp16 or full) if half else (full or fp16)
    words = [name for name in inside if name.endswith((".json", ".txt", ".md")) and ".safetensors." not in name]
    return [inside[name] for name in (*words, *weights) if inside[name] != INDEX]


def checked_file(place: HubName, names: list[str]) -> str:
    """The file that was asked for. Raises FewstepError, with the files there are, if it is not among them."""
    if place.file in names:
        return place.file
    raise FewstepError(f"{place.repository} has no file {place.file}", hint_of(names))


def only_weights(place: HubName, names: list[str]) -> str:
    """The repository's only .safetensors file; of several, the one named as diffusers names a LoRA.

    Raises FewstepError if there is no such file.
    """
    weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if LORA_FILE in weights:
        return LORA_FILE
    if len(weights) == 1:
        return weights[0]
    problem = f"has {len(weights)} .safetensors files" if weights else "has no .safetensors file and no model folder"
    raise FewstepError(f"{place.repository} {problem}", hint_of(names))


def hint_of(names: list[str]) -> str:
    """A hint with the first few files that one could ask for."""
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        return "fewstep reads .safetensors files; it never reads pickles (.bin, .ckpt)"
    return f"name one as owner/name/FILE: {', '.join(weights[:5])}{', ...' if len(weights) > 5 else ''}"


def complete(folder: Path, choice: Choice) -> bool:
    """Whether the choice holds all files that the snapshot's index and lists of shards name."""
    if INDEX in choice.files and not all(has_part(choice.files, part) for part in parts_of(folder / INDEX)):
        return False
    lists = [name for name in choice.files if ".safetensors.index." in name]
    return all(str(PurePosixPath(name).with_name(shard)) in choice.files
               for name in lists for shard in shards_of(folder / name))  # fmt: skip


def has_part(files: Iterable[str], part: str) -> bool:
    """Whether some of the files are of this part; of a network, whether some of these are weights.

    If no file is in a folder, those at the top are of every part.
    """
    files, ending = list(files), ".safetensors" if part in NETWORKS else ""
    folder = f"{part}/" if any("/" in name for name in files) else ""
    return any(name.startswith(folder) and name.endswith(ending) for name in files)


def parts_of(index: Path) -> list[str]:
    """The parts that a model_index.json names and that fewstep uses."""
    return [part for part, kind in _json(index).items() if part in PARTS and isinstance(kind, list) and all(kind)]


def shards_of(index: Path) -> set[str]:
    """The files that a list of shards names."""
    listed = _json(index).get("weight_map")
    return set(map(str, listed.values())) if isinstance(listed, dict) else set()


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, "index")
    except FewstepError:
        return {}
