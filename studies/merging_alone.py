"""How tools merge one LoRA at weight 1 whose scale is not 1, for docs/merging.md."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.families import ModuleShape
from fewstep.lora.files import load_adapter
from fewstep.lora.low_rank import LowRank, linear_combination

NAME, SHAPE, RANK = "mid_block.attentions.0.proj_in", ModuleShape(256, 192, 0), 8
HEADER = "lora_adapter_metadata"  # where diffusers keeps PEFT's config in a file


@dataclass(frozen=True)
class TrainedLora:
    """A LoRA of one Linear as PEFT trains it, and its layer."""

    config: Mapping[str, Any]  # PEFT's config, without the rank
    W0: Tensor  # (out, in)
    A: Tensor  # (R, in)
    B: Tensor  # (out, R), small relative to W0
    magnitude: Tensor | None  # (out,); only for a DoRA

    def change(self) -> Tensor:
        """W' - W0 as PEFT computes it at run time, by its papers' formulas, in float64."""
        alpha, W0 = float(self.config.get("lora_alpha", RANK)), self.W0.double()
        scale = alpha / (RANK**0.5 if self.config.get("use_rslora") else RANK)
        W = W0 + scale * self.B.double() @ self.A.double()
        if self.magnitude is not None:
            W = self.magnitude.double()[:, None] * W / W.norm(dim=1, keepdim=True)
        return W - W0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors as diffusers writes them to a file. The scale is in the file's metadata."""
        found = {f"unet.{NAME}.lora_A.weight": self.A, f"unet.{NAME}.lora_B.weight": self.B}
        norms = {} if self.magnitude is None else {f"unet.{NAME}.lora_magnitude_vector.weight": self.magnitude}
        return found | norms


CASES: dict[str, dict[str, Any]] = {
    "`lora_alpha` = R": {"lora_alpha": RANK},
    "`lora_alpha` = 2 R": {"lora_alpha": 2 * RANK},
    "rslora, `lora_alpha` = R": {"lora_alpha": RANK, "use_rslora": True},
    "DoRA, `lora_alpha` = R": {"lora_alpha": RANK, "use_dora": True},
}


def trained(config: Mapping[str, Any]) -> TrainedLora:
    """A LoRA of random factors. The norms of a DoRA are 0.8 to 1.2 times those of the weight."""
    draw = torch.Generator().manual_seed(0)
    W0, A, B = (torch.randn(*size, generator=draw) for size in ((SHAPE.out, SHAPE.in_), (RANK, SHAPE.in_), (256, RANK)))
    m = W0.norm(dim=1) * (0.8 + 0.4 * torch.rand(len(W0), generator=draw)) if config.get("use_dora") else None
    return TrainedLora(config, W0, A, 0.1 * B, m)


def read(lora: TrainedLora, metadata: Mapping[str, str] | None) -> Tensor:
    """W' - W0 for a file with these tensors and this metadata, as fewstep reads and stacks it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(lora.tensors(), path, None if metadata is None else dict(metadata))
        adapter, _ = load_adapter(path, {NAME: SHAPE}, lambda name: lora.W0)
        return linear_combination([(1.0, LowRank(*adapter.modules[NAME]))]).delta()


def ours(lora: TrainedLora) -> Tensor:
    """fewstep's result, from a file as diffusers writes it."""
    config = {f"unet.{key}": value for key, value in ({"r": RANK} | dict(lora.config)).items()}
    return read(lora, {HEADER: json.dumps(config)})


def ai_toolkit(lora: TrainedLora) -> Tensor:
    """ai-toolkit's result: the tensors times 1, without the metadata, so that loaders use a scale of 1."""
    return read(lora, None)


def peft(combination_type: Literal["linear", "svd", "cat"]) -> Callable[[TrainedLora], Tensor]:
    """PEFT's result: the change of the layer after add_weighted_adapter with the one adapter at weight 1."""

    def merged(lora: TrainedLora) -> Tensor:
        from peft import LoraConfig, get_peft_model

        layer = nn.Linear(SHAPE.in_, SHAPE.out, bias=False)
        layer.weight.data = lora.W0.clone()
        config = LoraConfig(r=RANK, target_modules=["layer"], **lora.config)
        model = get_peft_model(nn.ModuleDict({"layer": layer}), config, "0")
        inside = cast(Any, model.base_model).model["layer"]
        inside.lora_A["0"].weight.data, inside.lora_B["0"].weight.data = lora.A.clone(), lora.B.clone()
        if lora.magnitude is not None:
            inside.lora_magnitude_vector["0"].weight.data = lora.magnitude.clone()
        check(lora, added(inside, lora.W0))
        model.add_weighted_adapter(["0"], [1.0], "merged", combination_type)
        model.set_adapter("merged")
        return added(inside, lora.W0)

    return merged


@torch.no_grad()
def added(layer: Any, W0: Tensor) -> Tensor:
    """W' - W0 of a layer, from its outputs."""
    outputs: Tensor = layer(torch.eye(W0.shape[1]))
    return outputs.T - W0


def check(lora: TrainedLora, change: Tensor) -> None:
    """Check that the exact change here equals that of PEFT before merging."""
    assert (change - lora.change()).norm() < 1e-5 * lora.change().norm()


COLUMNS: dict[str, Callable[[TrainedLora], Tensor]] = {
    "PEFT `linear`": peft("linear"),
    "PEFT `svd`": peft("svd"),
    "PEFT `cat`": peft("cat"),
    "ai-toolkit": ai_toolkit,
    "fewstep": ours,
}


def cell(method: Callable[[TrainedLora], Tensor], lora: TrainedLora) -> str:
    """||merged - exact|| / ||exact|| as text. 0 means below 1e-5, because these are differences of float32 weights."""
    exact = lora.change()
    relative = float((method(lora) - exact).norm() / exact.norm())
    return "0" if relative < 1e-5 else f"{100 * relative:.0f} %"


def table() -> str:
    """The table of every case and every tool, in Markdown."""
    loras = {row: trained(config) for row, config in CASES.items()}
    rows = [f"{row} | " + " | ".join(cell(method, lora) for method in COLUMNS.values()) for row, lora in loras.items()]
    head = " | ".join(["one LoRA at weight 1", *COLUMNS])
    return "\n".join(f"| {line} |" for line in (head, " | ".join("---" for _ in range(len(COLUMNS) + 1)), *rows))
