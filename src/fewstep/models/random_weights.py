"""A model of random weights at a family's full size, and an LCM-LoRA of it, to measure time and memory with."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewstep.families import Family
from fewstep.families.single_file import LEVEL, TEXT
from fewstep.lora.layers import initial
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import Entry, save_adapter, write_safetensors
from fewstep.models.load import load_model
from fewstep.models.single_file import CheckpointPart, save_folder, text_part, unet_part, vae_part

PREFIXES = {"sd15": (TEXT["text_encoder"][0],), "sd21": (TEXT["text_encoder"][2],)}
SDXL_PREFIXES = (TEXT["text_encoder"][1], TEXT["text_encoder_2"][0])


def random_folder(folder: Path, family: Family) -> Path:
    """`folder`, with a model of random fp16 weights in diffusers' layout. For a while it takes twice its size."""
    file = folder.with_name(f"{folder.name}.safetensors")
    write_random(file, family)
    save_folder(load_model(str(file), torch.float16), folder)
    file.unlink()
    return folder


def random_lora(path: Path, family: Family, rank: int) -> Path:
    """`path`, with a random LoRA in fp16 of all that LCM-LoRA adapts, and the recipe of one."""
    noise = torch.Generator().manual_seed(0)
    updates = initial(family.modules(), rank, 0).items()
    adapter = Adapter({name: LowRank(u.A, 1e-3 * torch.randn(u.B.shape, generator=noise)) for name, u in updates})
    recipe = Recipe(
        method="lcd",
        family=family.name,
        prediction_type=family.prediction_type,
        solver="lcm",
        steps=4,
        guidance_scale=1.0,
    )
    save_adapter(path, adapter, recipe, torch.float16)
    return path


def parts_of(family: Family) -> list[CheckpointPart]:
    """The networks of the family, and the places of their weights in its released files."""
    prefixes = PREFIXES.get(family.name, SDXL_PREFIXES)
    encoders = zip(TEXT, family.text_encoders, prefixes, strict=False)
    texts = [text_part(name, encoder, frozenset({prefix + LEVEL})) for name, encoder, prefix in encoders]
    return [unet_part(family, 4), vae_part(family), *texts]


def write_random(path: Path, family: Family) -> int:
    """Write a file of random weights, small enough for normal activations. Returns the number of weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts_of(family):
        for name, tensor in part.network.state_dict().items():
            origin, shape = part.origins[name], tuple(tensor.shape)
            if origin.third is not None:
                shape = (3 * shape[0], *shape[1:])
            shapes[origin.key] = shape[::-1] if origin.transposed else shape
    entries = [Entry(key, shape, torch.float16, maker(key, shape, i)) for i, (key, shape) in enumerate(shapes.items())]
    write_safetensors(path, entries, {})
    return sum(math.prod(shape) for shape in shapes.values())


def maker(key: str, shape: tuple[int, ...], seed: int) -> Callable[[], Tensor]:
    """A function that makes one tensor: weights of norms are about 1, all others are scaled by their inputs."""
    about = 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0
    scale = 0.5 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.05
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + about
