"""The measuring code of the studies: it draws with any model and LoRAs, and judges with the networks that ship.

Pictures and features are cached as in `compare`, so that an interrupted measurement continues where it stopped.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.assets import MODEL, shipped_kit
from fewstep.configs import Device, Draw, Precision, build
from fewstep.data.prompts import Prompt, shipped_prompts
from fewstep.diffusion.guidance import Conditioning
from fewstep.diffusion.sampler import ImageNoise
from fewstep.evaluate.key import source_sha256
from fewstep.evaluate.measure import labelled_pictures
from fewstep.evaluate.prompts import prompts_for
from fewstep.evaluate.protocol import surroundings
from fewstep.evaluate.row_pictures import RowPictures, batch_facts, batch_file, draw, keep
from fewstep.io import sha256_bytes
from fewstep.metrics.estimate import Estimate, estimate, share
from fewstep.metrics.features import features_of
from fewstep.metrics.frechet import Statistics, distance_to, merge
from fewstep.metrics.lpips import load_lpips
from fewstep.metrics.networks import load_efficientnet
from fewstep.metrics.reference import Reference, agreement_with, load_reference
from fewstep.models.load import pick_device
from fewstep.models.model import parts_sha256
from fewstep.session import Session


class Given(NamedTuple):
    """Embeddings and noise from which a batch of pictures is drawn, in place of prompts and seeds."""

    conditioning: Conditioning  # for B pictures
    noise: Tensor  # (B, C, H, W) float32, at the start
    seeds: tuple[int, ...]  # B of them; noise that later steps add is that of these seeds' ordinary pictures

    @property
    def sha256(self) -> str:
        """SHA-256 of all of it."""
        parts = [*(part for part in self.conditioning if part is not None), self.noise, torch.tensor(self.seeds)]
        return sha256_bytes(*(part.detach().cpu().contiguous().numpy().tobytes() for part in parts))


class Lab:
    """Draws and judges on one device, in one precision, `batch_size` pictures at a time."""

    def __init__(self, device: Device = "auto", dtype: Precision = "fp32", batch_size: int = 16) -> None:
        self.device, self.dtype, self.batch_size = device, dtype, batch_size
        self.efficientnet = load_efficientnet(pick_device(device))
        self.reference = load_reference(shipped_kit() / "reference.safetensors")
        self.lpips = load_lpips(pick_device(device))
        self._session: Session | None = None

    def session(self, model: str = MODEL, lora: tuple[str, ...] = ()) -> tuple[Session, dict[str, Any]]:
        """A session with these LoRAs plugged in, and the other facts that its pictures depend on.

        There is only one session: the next call plugs in other LoRAs, or closes it for another model.
        """
        if self._session is None or self._session.where.model != model:
            if self._session is not None:
                self._session.close()
            self._session = Session(model, (), engine="torch", dtype=self.dtype, device=self.device)
        self._session.plug(lora)
        return self._session, surroundings(parts_sha256(self._session.facts.path), self._session.engine.device)

    def draw(
        self, prompts: Sequence[str], model: str = MODEL, lora: tuple[str, ...] = (), title: str = "", **options: Any
    ) -> RowPictures:
        """A picture of each prompt, with seeds 0, 1, ... options: fields of Draw."""
        session, around = self.session(model, lora)
        wish = self.wish(prompts, **options)
        return draw(session, session.plan(wish), wish, around, title)

    def paint(
        self, batches: Sequence[Given], model: str = MODEL, lora: tuple[str, ...] = (), **options: Any
    ) -> RowPictures:
        """The pictures of given embeddings and noise, batch by batch. options: fields of Draw."""
        session, around = self.session(model, lora)
        wish = self.wish(("",), **options)
        plan, files, facts = session.plan(wish), [], []
        for batch in batches:
            around_it = {**around, "given": batch.sha256, "lab": source_sha256(Path(__file__))}
            file = batch_file(session, plan, wish, around_it)
            if (known := batch_facts(file)) is None:
                pixels = session.paint(plan, batch.conditioning, GivenNoise(batch, session.engine.device))
                known = {"images": len(pixels), "nfe": plan.nfe}
                keep(file, pixels, known)
            files.append(file)
            facts.append(known)
        return RowPictures(tuple(files), tuple(facts), plan, session.loras)

    def wish(self, prompts: Sequence[str], **options: Any) -> Draw:
        """The request for these prompts, with this lab's batch size."""
        return build(Draw, prompts=tuple(prompts), batch_size=self.batch_size, **options)

    def features(self, pictures: RowPictures) -> Tensor:
        """EfficientNet's features (N, 1280)."""
        return features_of(self.efficientnet, pictures)

    def agreement(
        self, pictures: RowPictures, prompts: Sequence[Prompt], families: Mapping[str, str] | None = None
    ) -> Estimate:
        """The share of pictures that show their concept. prompts: one per picture, some with style and concept.

        families: as in `agreement`.
        """
        labelled = labelled_pictures(self.features(pictures), prompts)
        assert labelled is not None, "no prompt has a style and a concept"
        return share(agreement_with(labelled, self.reference, families).hits)

    def distance(self, pictures: RowPictures, target: Statistics) -> Estimate:
        """Fréchet distance of EfficientNet's features to `target`. Few pictures make it too large."""
        features = self.features(pictures)
        return estimate(lambda images: distance_to(features[images], target), len(features))

    def distances(self, x: RowPictures, y: RowPictures) -> Tensor:
        """LPIPS of the pictures of x and y, pair by pair, (N,)."""
        return torch.cat([self.between(a, b) for a, b in zip(x.batches(), y.batches(), strict=True)])

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """LPIPS of pixels (B, 3, H, W) in [-1, 1], pair by pair, (B,) on the CPU."""
        device = next(self.lpips.buffers()).device
        distances: Tensor = self.lpips(x.to(device), y.to(device))
        return distances.cpu()


def embedded(session: Session, texts: Sequence[str]) -> Conditioning:
    """The conditioning of the texts, for pictures of the model's own size."""
    return session.engine.embed(texts, session.facts.size, session.facts.size)


class GivenNoise:
    """Draws a batch's given noise first, then the noise that later steps add to its seeds' ordinary pictures."""

    def __init__(self, given: Given, device: torch.device) -> None:
        self.first: Tensor | None = given.noise.to(device)
        self.later = ImageNoise(given.seeds, given.noise.shape[1:], device)

    def __call__(self) -> Tensor:
        """The next noise, (B, C, H, W) float32."""
        first, self.first, own = self.first, None, self.later()
        return own if first is None else first


def take(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """`count` prompts, starting again at the first one after the last."""
    return tuple(islice(cycle(prompts), count))


def names() -> tuple[Prompt, ...]:
    """Bare names of things, which ship."""
    return prompts_for(Path("names"), None).prompts


def typed() -> tuple[Prompt, ...]:
    """Prompts in a person's words, which ship."""
    return prompts_for(Path("typed"), None).prompts


def base_styles() -> list[str]:
    """The styles that the embedded model was trained on."""
    return list(dict.fromkeys(str(prompt.style) for prompt in shipped_prompts().prompts))


def drawings_of(reference: Reference, styles: Sequence[str]) -> Statistics:
    """Statistics of the real drawings of these styles, all together."""
    return reduce(merge, (reference.statistics[style].expanded() for style in styles))
