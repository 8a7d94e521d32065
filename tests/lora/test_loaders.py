"""Files we write, looked up as other tools look them up: by the rules that stand in docs/lora-files.md."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as diffusers
from safetensors import safe_open

from fewstep.families import FAMILIES, is_target
from fewstep.families.ldm import ldm_names
from fewstep.families.single_file import text_origins
from fewstep.lora.dialects import TEXT, Spellings, flat
from fewstep.lora.low_rank import Adapter, Lazy, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import kohya_names, save_adapter

PAGE = (Path(__file__).parents[2] / "docs" / "lora-files.md").read_text(encoding="utf-8")
LOADERS = ("A1111", "sd-scripts", "InvokeAI")
ADAPTED_BY_SD_SCRIPTS = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers|self_attn|mlp)\.")
PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "UNet": lambda name: not name.startswith(TEXT),
    "text encoders": lambda name: name.startswith(TEXT),
    "first": lambda name: name.startswith(TEXT[0]),
    "second": lambda name: name.startswith(TEXT[1]),
}
CASES = [
    (family, part)
    for family in ("sd15", "sd21", "sdxl", "ssd-1b")
    for part, inside in PARTS.items()
    if any(map(inside, FAMILIES[family].all_modules()))
]


def table(first: str) -> Iterator[list[str]]:
    """The rows of the page's table whose header begins with this cell, without marks of code."""
    lines = PAGE[PAGE.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").replace("`", "").split("|")]


class Rule(NamedTuple):
    """What a loader does with keys of one prefix, in some families."""

    loader: str
    families: str
    prefix: str
    written: str  # how modules are named in keys
    sought: str  # how its own model names them
    not_found: str


RULES = [Rule(*row) for row in table("loader")]
NAMES = list(table("names"))


def renamed(name: str, family: str, where: str = "UNet") -> str:
    """diffusers' or CLIP's name as the original or OpenCLIP spells it, by the page; unchanged where it says nothing."""
    for place, ours, theirs in NAMES:
        what, _, families = place.partition(" of ")
        values = matched(ours, name)
        if what != where or values is None or (families and family not in families.split(", ")):
            continue
        rest = values.pop("rest", "")
        inside = renamed(rest, family, "in resnets") if "_resnets_" in name else rest
        for formula in re.findall(r"\{.+?\}", theirs):
            theirs = theirs.replace(formula, str(value(formula, values)))
        return theirs.replace("*", inside)
    return name


def matched(pattern: str, name: str) -> dict[str, str] | None:
    """What {i}, {j} and * stand for in a name of this pattern; None if it is not of it."""
    words = re.sub(r"\{(\w)\}", r"(?P<\1>[0-9]+)", pattern).replace("*", "(?P<rest>.*)")
    found = re.fullmatch(words, name)
    return found.groupdict() if found else None


def value(formula: str, values: Mapping[str, str]) -> int:
    """3i+j+1 where i and j are these."""
    terms = re.findall(r"([+-]?)([0-9]*)([a-z]?)", formula)
    return sum(int(sign + (factor or "1")) * (int(values[x]) if x else 1) for sign, factor, x in terms if factor or x)


@pytest.mark.parametrize(("formula", "wanted"), [("3i+j+1", 12), ("2i-2", 4), ("i", 3), ("3i+3", 12)])
def test_formulas(formula: str, wanted: int) -> None:
    assert value(formula, {"i": "3", "j": "2"}) == wanted


@cache
def modules_of(family: str, prefix: str, spelling: str) -> dict[str, str]:
    """A model's modules by the names its code gives them: flat name -> canonical name."""
    names = FAMILIES[family].all_modules()
    if prefix == "lora_unet_":
        unet = [name for name in names if not name.startswith(TEXT)]
        original = ldm_names(unet)
        return {flat(original[name] if spelling == "original" else name): name for name in unet}
    part = TEXT[prefix == "lora_te2_"]
    bodies = {name.removeprefix(part): name for name in names if name.startswith(part)}
    if spelling == "CLIP":
        return {flat(body): name for body, name in bodies.items()}
    origins = text_origins([f"{body}.weight" for body in bodies], ".model.")
    keys = {key.removesuffix(".weight"): place for key, place in origins.items() if key != "text_projection.weight"}
    return {
        flat(place.key.removeprefix(".model.").removesuffix(".weight")).replace(
            "in_proj_weight", f"{'qkv'[place.third or 0]}_proj"
        ): bodies[body]
        for body, place in keys.items()
    }


def looked_up(rule: Rule, family: str, rest: str) -> str:
    """The name under which the loader seeks a module."""
    if rule.written == rule.sought:
        return rest
    if rule.sought in ("original", "OpenCLIP"):
        return renamed(rest, family, "UNet" if rule.sought == "original" else "text")
    return renamed_back(family)[rest]


@cache
def renamed_back(family: str) -> dict[str, str]:
    """The original's name of a UNet's module, by the page -> diffusers' name."""
    return {renamed(name, family): name for name in modules_of(family, "lora_unet_", "diffusers")}


def found_by(loader: str, family: str, stem: str) -> str | None:
    """The module a loader adapts by keys of this stem, None where it finds none, by the page."""
    rules = [r for r in RULES if r.loader == loader and family in r.families.split(", ") and stem.startswith(r.prefix)]
    assert len(rules) == 1, stem
    name = looked_up(rules[0], family, stem.removeprefix(rules[0].prefix))
    module = modules_of(family, rules[0].prefix, rules[0].sought).get(name)
    inside = loader != "sd-scripts" or (module and ADAPTED_BY_SD_SCRIPTS.search(module))
    return module if inside else None


def is_left_out(loader: str, family: str, stem: str) -> bool:
    """Whether the page says that the loader does not find it."""
    return any(
        fnmatch(stem, r.prefix + pattern)
        for r in RULES
        if r.loader == loader and family in r.families.split(", ")
        for pattern in r.not_found.split(", ")
        if pattern
    )


def written(family: str, part: str, path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The keys with their shapes, and the metadata, of a file of rank 1 of a part of the family's modules."""
    shapes = FAMILIES[family].all_modules()

    def make(name: str) -> LowRank:
        out, in_, k = shapes[name]
        return LowRank(torch.zeros(1, in_, *([k, k] if k else [])), torch.zeros(out, 1, *([1, 1] if k else [])))

    adapter = Adapter(Lazy(filter(PARTS[part], shapes), make))
    recipe = Recipe(method="lcd", family=family, prediction_type=FAMILIES[family].prediction_type)
    save_adapter(path, adapter, recipe)
    with safe_open(path, "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(("family", "part"), CASES)
def test_every_loader_finds_what_the_page_says(family: str, part: str, tmp_path: Path) -> None:
    keys, metadata = written(family, part, tmp_path / "x.safetensors")
    spellings = Spellings(FAMILIES[family].all_modules())
    modules = {stem: spellings.find(stem) for stem in {key.partition(".")[0] for key in keys}}
    assert set(modules.values()) == set(filter(PARTS[part], FAMILIES[family].all_modules()))
    for loader in LOADERS if family != "ssd-1b" else ("A1111", "InvokeAI"):
        for stem, module in modules.items():
            expected = None if is_left_out(loader, family, stem) else module
            assert found_by(loader, family, stem) == expected, (loader, stem)
    assert a1111_family(metadata) == {"sd15": "SD1", "sd21": "SD2"}.get(family, "SDXL")
    alone = family in ("sdxl", "ssd-1b") and part in ("first", "second")
    assert invokeai_width(keys) == (None if alone else {"sd15": 768, "sd21": 1024}.get(family, 2048))


def a1111_family(metadata: Mapping[str, str]) -> str:
    """What it takes a file with metadata for."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    return "SD2" if metadata.get("ss_v2") == "True" else "SD1"


def invokeai_width(keys: Mapping[str, list[int]]) -> int | None:
    """The width by which it tells the family, of the first key that says it; None where it refuses the file."""
    text: dict[str, int] = {}
    for key, shape in sorted(keys.items()):
        if not key.endswith(".lora_down.weight"):
            continue
        if re.match(r"lora_unet_.*_attn2_to_[kv]\.", key) or re.match(r"lora_te_.*_self_attn_", key):
            return shape[1]
        if re.match(r"lora_te[12]_.*_self_attn_", key):
            text[key[:8]] = shape[1]
        if len(text) == 2:
            return sum(text.values())
    return None


def test_the_original_names_keep_a_module_that_a1111_loses_by_diffusers_names() -> None:
    names = [name for name in FAMILIES["sdxl"].all_modules() if is_target(name)]
    theirs = modules_of("sdxl", "lora_unet_", "original")
    lost = [name for name in names if theirs.get(renamed(flat(name), "sd15")) != name]
    assert lost == ["up_blocks.0.upsamplers.0.conv"]
    assert found_by("A1111", "sdxl", kohya_names(lost, "sdxl")[lost[0]]) == lost[0]


@pytest.mark.parametrize("family", ["sdxl", "ssd-1b"])
def test_diffusers_reads_the_original_names_as_its_own(family: str) -> None:
    names = [name for name in FAMILIES[family].all_modules() if is_target(name) or name.startswith(TEXT)]

    def read(stems: Iterable[str]) -> dict[str, int]:
        state = {f"{stem}.lora_{side}.weight": i for i, stem in enumerate(stems) for side in ("down", "up")}
        mapped = diffusers._maybe_map_sgm_blocks_to_diffusers(state, SimpleNamespace(layers_per_block=2))
        return diffusers._convert_non_diffusers_lora_to_diffusers(mapped)[0]

    assert read(kohya_names(names, family).values()) == read(kohya_names(names, "custom").values())


def test_a_model_of_no_known_family_says_nothing_of_one(tmp_path: Path) -> None:
    update = LowRank(torch.zeros(1, 2), torch.zeros(3, 1))
    save_adapter(tmp_path / "x.safetensors", Adapter({"mid_block.x": update}), Recipe(method="lcd"))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert not {"ss_base_model_version", "ss_v2", "modelspec.architecture"} & file.metadata().keys()
