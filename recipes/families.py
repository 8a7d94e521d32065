"""Write the families' module tables, src/fewstep/families/*.json, from their UNet configs (on the meta device).

python recipes/families.py
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from fewstep.families import FAMILIES, TABLES, Family, is_target


def module_table(family: Family) -> dict[str, list[int]]:
    """Every LoRA target of the family's UNet, in its own order: name -> [out, in, kernel side or 0 for Linear]."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**family.unet)
    return {name: shape_of(module) for name, module in unet.named_modules() if is_target(name)}


def shape_of(module: nn.Module) -> list[int]:
    """[out, in, kernel side], the side 0 for a Linear."""
    if isinstance(module, nn.Conv2d):
        return [module.out_channels, module.in_channels, module.kernel_size[0]]
    if isinstance(module, nn.Linear):
        return [module.out_features, module.in_features, 0]
    raise TypeError(f"not a LoRA target: {type(module).__name__}")


def main() -> None:
    """Write one table per family, one module a line."""
    for family in FAMILIES.values():
        rows = [f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in module_table(family).items()]
        Path(TABLES / f"{family.name}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
        print(family.name, len(rows), "modules")


if __name__ == "__main__":
    main()
