"""Write the families' module tables, src/fewstep/families/*.json, from their UNet configs (on the meta device).

python -m recipes.families
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from fewstep.families import FAMILIES, TABLES, Family, ModuleShape
from fewstep.lora.layers import module_shapes


def module_table(family: Family) -> dict[str, ModuleShape]:
    """Every module of the family's UNet that a LoRA can adapt, in its own order."""
    with torch.device("meta"):
        return module_shapes(UNet2DConditionModel(**family.unet))


def main() -> None:
    """Write one table per family, one module a line: its name and [out, in, kernel side or 0 for a Linear]."""
    for family in FAMILIES.values():
        rows = [f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in module_table(family).items()]
        Path(TABLES / f"{family.name}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
        print(family.name, len(rows), "modules")


if __name__ == "__main__":
    main()
