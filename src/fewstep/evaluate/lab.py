"""The bench of the documents' measurements: draws with any model and LoRAs, and judges with the networks that ship.

Pictures and features are kept as compare keeps its own, so that an interrupted measurement goes on where it was.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from fewstep.assets import MODEL, shipped_kit
from fewstep.configs import Device, Precision, SampleConfig, build
from fewstep.evaluate.drawn import Drawn, draw
from fewstep.evaluate.estimate import Estimate, estimate, share
from fewstep.evaluate.features import features_of
from fewstep.evaluate.frechet import Statistics, distance_to
from fewstep.evaluate.lpips import load_lpips
from fewstep.evaluate.measure import labelled_pictures
from fewstep.evaluate.networks import load_efficientnet
from fewstep.evaluate.prompts import Prompt
from fewstep.evaluate.protocol import surroundings
from fewstep.evaluate.reference import agreement_with, load_reference
from fewstep.models.load import pick_device
from fewstep.models.model import parts_sha256
from fewstep.pipeline import Pipeline, load_pipeline


class Lab:
    """Draws and judges on one device, in one precision, `batch_size` pictures at once."""

    def __init__(self, device: Device = "auto", dtype: Precision = "fp32", batch_size: int = 16) -> None:
        self.device, self.dtype, self.batch_size = device, dtype, batch_size
        self.efficientnet = load_efficientnet(pick_device(device))
        self.reference = load_reference(shipped_kit() / "reference.safetensors")
        self.lpips = load_lpips(pick_device(device))
        self._loaded: tuple[tuple[str, tuple[str, ...]], Pipeline, dict[str, Any]] | None = None

    def pipeline(self, model: str = MODEL, lora: tuple[str, ...] = ()) -> tuple[Pipeline, dict[str, Any]]:
        """The model with its LoRAs, and what pictures depend on beside them; the last one stays loaded."""
        if self._loaded is None or self._loaded[0] != (model, lora):
            self._loaded = None  # one at a time in memory
            pipeline = load_pipeline(model, lora, self.dtype, self.device)
            around = surroundings(parts_sha256(pipeline.model.path), pipeline.model.device)
            self._loaded = (model, lora), pipeline, around
        return self._loaded[1:]

    def draw(
        self, prompts: Sequence[str], model: str = MODEL, lora: tuple[str, ...] = (), title: str = "", **options: Any
    ) -> Drawn:
        """A picture of each prompt, seeds counting up from 0; options: of SampleConfig."""
        pipeline, around = self.pipeline(model, lora)
        wish = build(
            SampleConfig,
            prompts=tuple(prompts),
            model=model,
            lora=lora,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
            **options,
        )
        return draw(pipeline, pipeline.plan(wish), wish, around, title)

    def features(self, drawn: Drawn) -> Tensor:
        """EfficientNet's features (N, 1280)."""
        return features_of(self.efficientnet, drawn)

    def agreement(self, drawn: Drawn, prompts: Sequence[Prompt]) -> Estimate:
        """The share of pictures that show their concept. prompts: one a picture, some with style and concept."""
        pictures = labelled_pictures(self.features(drawn), prompts)
        assert pictures is not None, "no prompt says its style and concept"
        return share(agreement_with(pictures, self.reference).hits)

    def distance(self, drawn: Drawn, target: Statistics) -> Estimate:
        """Fréchet distance of EfficientNet's features to `target`; too large by what few pictures add to it."""
        features = self.features(drawn)
        return estimate(lambda images: distance_to(features[images], target), len(features))

    def distances(self, x: Drawn, y: Drawn) -> Tensor:
        """LPIPS of the pictures of x and y, pair by pair, (N,)."""
        device = next(self.lpips.buffers()).device
        pairs = zip(x.batches(), y.batches(), strict=True)
        return torch.cat([self.lpips(a.to(device), b.to(device)).cpu() for a, b in pairs])


def take(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """So many of them, from the first one again after the last."""
    return tuple(islice(cycle(prompts), count))
