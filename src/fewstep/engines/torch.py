"""The engine that runs the networks in torch, unchanged. It supports every device and every option."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.configs import Where
from fewstep.diffusion.guidance import Conditioning, Network
from fewstep.engines.engine import Capabilities, Facts, NetworkOptions, facts_of
from fewstep.errors import UsageError, option
from fewstep.events import note
from fewstep.families import ModuleShape
from fewstep.lora.layers import LoraLayers, shape_of
from fewstep.lora.rounding import loss_note
from fewstep.models.load import DTYPES, fast_dtype, load_controlnet, load_model, pick_device
from fewstep.models.model import Model
from fewstep.models.nag import guided_attention_of
from fewstep.models.network import UNetNetwork
from fewstep.models.plugging import Folding, WeightedAdapter, attach
from fewstep.models.turns import CPU, Turns
from fewstep.models.weights import stored_weights


class TorchEngine:
    """A model's networks in torch. LoRAs are folded into the weights, or run next to them (`live`)."""

    supports: ClassVar[Capabilities] = Capabilities()

    def __init__(
        self, model: Model, controlnet: Any = None, live: bool = False, device: torch.device | None = None
    ) -> None:
        """controlnet: a ControlNetModel that fits the model's network. live: LoRAs run next to the layers, unfolded.

        device: where the networks compute in turns, while the others wait on the CPU, where all are now. None = they
        all stay where they are.
        """
        self.model, self.controlnet, self.live = model, controlnet, live
        self._attached: LoraLayers | None = None
        self._turns = None if device is None else Turns(device, groups_of(model, controlnet))

    @classmethod
    def open(cls, where: Where) -> "TorchEngine":
        """The engine with the model that `where` names. Raises FewstepError when a part is missing or does not fit."""
        device = pick_device(where.device)
        dtype = fast_dtype(device) if where.dtype == "auto" else DTYPES[where.dtype]
        if where.offload and device.type == "cpu":
            raise UsageError(f"{option('offload')} is for a GPU, but the networks compute on the CPU", "leave it out")
        model = load_model(where.model, dtype, CPU if where.offload else device, not where.no_safety_checker)
        control = None if where.controlnet is None else load_controlnet(where.controlnet, model)
        return cls(model, control, where.live_lora, device if where.offload else None)

    @cached_property
    def facts(self) -> Facts:
        return facts_of(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device if self._turns is None else self._turns.device

    @cached_property
    def shapes(self) -> Mapping[str, ModuleShape]:
        found = ((name, shape_of(layer)) for name, layer in self._folding.layers.items())
        return {name: shape for name, shape in found if shape is not None}

    @property
    def dtype(self) -> str:
        return next(name for name, dtype in DTYPES.items() if dtype == self.model.unet.dtype)

    @cached_property
    def _folding(self) -> Folding:
        return Folding(self.model.layers(), stored_weights(self.model.path))

    def _ready(self, part: str) -> None:
        """Have this part's networks on the device: text, network or pixels."""
        if self._turns is not None:
            self._turns.take(part)

    def embed(self, texts: Sequence[str], height: int, width: int) -> Conditioning:
        self._ready("text")
        return self.model.embed(texts, height, width).to(self.device)

    @contextmanager
    def network(self, options: NetworkOptions) -> Iterator[Network]:
        network: Network = UNetNetwork(self.model.unet, self.controlnet, options.control_scale)

        def in_turn(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            self._ready("network")  # a preview's decoder may have taken its place
            return network(x, t, conditioning)

        with guided_attention_of(self.model.unet, options.nag_scale):
            yield network if self._turns is None else in_turn

    def encode(self, pixels: Tensor) -> Tensor:
        self._ready("pixels")
        return self.model.encode(pixels).to(self.device)

    def decode(self, latents: Tensor) -> Tensor:
        self._ready("pixels")
        return self.model.decode(latents)

    def hides(self, pixels: Tensor) -> bool:
        return self.model.safety_checker is not None and self.model.safety_checker.hides(pixels)

    def original_weight(self, module: str) -> Tensor:
        return self._folding.original(module)

    def plug(self, terms: Sequence[WeightedAdapter]) -> None:
        if self.live:
            attached = attach(self._folding.layers, terms)
            if self._attached is not None:
                self._attached.remove()
            self._attached = attached
            return
        self._folding.plug(terms)
        if text := loss_note(
            self._folding.lost, f"sample {option('live_lora')} keeps it, and so does {option('dtype')} fp32"
        ):
            note(text)


def groups_of(model: Model, controlnet: Any) -> dict[str, list[Any]]:
    """The networks that compute together, by the part of a picture's way."""
    parts = {
        "text": (model.text_encoder, model.text_encoder_2),
        "network": (model.unet, controlnet),
        "pixels": (model.vae,),
    }
    return {name: [network for network in part if network is not None] for name, part in parts.items()}


ENGINE = TorchEngine
