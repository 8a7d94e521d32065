"""Trains the text encoder, before the UNet exists, to predict the look of a drawing from its caption.

    python -m recipes.emoji.text [--out ~/.cache/fewstep/emoji/text] [--resume]

Each of 1,644 things has only nine drawings, so a text encoder trained by the diffusion loss alone must learn every
name separately. This one first learns to predict, from a caption, the drawing's EfficientNet features and its latents
at 4x4. Things that look similar then get similar embeddings, and the UNet learns what they have in common. It is cheap
(700 captions/s on two cores). Afterwards teacher.py trains both together.
"""

import copy
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fewstep.cli import main_of
from fewstep.configs import TrainingConfig
from fewstep.errors import FewstepError
from fewstep.io import atomic_folder, cache_dir
from fewstep.metrics.agreement import whitened
from fewstep.models.load import pick_device
from fewstep.models.quiet import quiet
from fewstep.training.draws import SampleId, generator, integers
from fewstep.training.loop import loop
from fewstep.training.players import Player, Trainable, average_of
from recipes.emoji.captions import caption
from recipes.emoji.features import drawing_features
from recipes.emoji.latents import packed_latents
from recipes.emoji.teacher import load_text_encoder, load_tokenizer, new_text_encoder, tokens_of

GRID = 4  # latents are pooled to this size


class TextConfig(TrainingConfig):
    """Train the embedded model's text encoder to predict the look of a caption's drawing."""

    out: Path = cache_dir() / "emoji" / "text"
    """The run's folder. The text encoder is written to its `text_encoder` folder."""
    images: Path = cache_dir() / "emoji" / "images"
    """The folder that dataset.py built."""
    vae: Path = cache_dir() / "emoji" / "autoencoder" / "vae"
    """The autoencoder that autoencoder.py exported."""
    tokenizer: Path = cache_dir() / "emoji" / "tokenizer"
    """The tokenizer's folder; it is made if it is missing."""
    init: Path | None = None
    """Start from this text encoder instead of an untrained one."""
    train_steps: int = 10000
    """Optimiser steps."""
    batch_size: int = 128
    """Captions per step."""
    learning_rate: float = 1e-3
    """The peak rate of AdamW."""
    decay: Literal["constant", "cosine"] = "cosine"
    """The course of the rate after the warm-up."""
    warmup: int = 100
    """Steps of linear warm-up."""
    ema: float = 0.995
    """Decay of the average that is exported."""
    dims: Annotated[int, Field(ge=1)] = 256
    """Whitened EfficientNet features to predict."""
    text_width: int = 128
    """Width of the text encoder, equal to the teacher's."""
    text_layers: int = 4
    """Layers of the text encoder, equal to the teacher's."""


class TextBatch(NamedTuple):
    """Captions, and the targets for their drawings."""

    tokens: Tensor  # (B, LENGTH) int64
    seen: Tensor  # (B, K) of mean 0 and variance 1


class Seen:
    """The base drawings as the loop's Data: a caption drawn for each visit, and the drawing's targets."""

    def __init__(self, seen: Tensor, rows: Sequence[dict[str, Any]], tokenizer: CLIPTokenizer) -> None:
        self.seen, self.rows, self.tokenizer = seen, rows, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> TextBatch:
        seeds = integers([generator(visit) for visit in visits], 2**31).tolist()
        rows = [self.rows[visit.index] for visit in visits]
        texts = [caption(row["style"], row["label"], row["tags"], random.Random(seed))
                 for row, seed in zip(rows, seeds, strict=True)]  # fmt: skip
        return TextBatch(tokens_of(self.tokenizer, texts).to(device), self.seen[[v.index for v in visits]].to(device))


class Predictor(nn.Module):
    """Tokens (B, LENGTH) to predicted targets (B, K): the text at its end, through one linear layer."""

    def __init__(self, text_encoder: CLIPTextModel, targets: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.head = nn.Linear(text_encoder.config.hidden_size, targets)

    def forward(self, tokens: Tensor) -> Tensor:
        predicted: Tensor = self.head(self.text_encoder(tokens).pooler_output)
        return predicted.float()


def what_is_seen(features: Tensor, latents: Tensor, dims: int) -> Tensor:
    """Targets (N, K): `dims` whitened features and the pooled latents, each of mean 0 and variance 1.

    features: (N, 1280). latents: (N, 4, H, W). Of the whitened axes those that drawings differ most along.
    """
    view = whitened(features)
    assert view.axes is not None
    leading = (features - view.centre) @ view.axes[:, -dims:]
    pooled = F.adaptive_avg_pool2d(latents.float(), GRID).flatten(1)
    return torch.cat([(part - part.mean(0)) / part.std(0).clamp(min=1e-6) for part in (leading, pooled)], dim=1)


def predictor_loss(module: nn.Module, batch: TextBatch, dims: int) -> Tensor:
    """Mean squared error of the features plus that of the latents."""
    error = (module(batch.tokens) - batch.seen) ** 2
    loss: Tensor = error[:, :dims].mean() + error[:, dims:].mean()
    return loss


def run(config: TextConfig) -> None:
    """Train, exporting the averaged text encoder at every checkpoint."""
    device = pick_device(config.device)
    packed = packed_latents(config.images, config.vae, None, cache_dir() / "emoji", device)
    tokenizer = load_tokenizer(config.tokenizer, packed.rows)
    features = drawing_features(config.images, cache_dir() / "emoji", ["base"]).features
    seen = what_is_seen(features, packed.latents, config.dims)
    torch.manual_seed(config.seed)
    trained = config.init and load_text_encoder(config.init)
    if trained and (known := trained.config.vocab_size) != len(tokenizer):
        raise FewstepError(
            f"{config.init} knows {known} tokens, the tokenizer {config.tokenizer} {len(tokenizer)}",
            "name the --tokenizer that it was trained with",
        )
    module = Predictor(trained or new_text_encoder(tokenizer, config.text_width, config.text_layers), seen.shape[1])
    parameters = dict(module.named_parameters())
    trainable = Trainable(module, parameters, {"export": average_of(parameters, config.ema)})

    def export(step: int) -> None:
        averaged = copy.deepcopy(module.text_encoder)
        prefix, shadow = "text_encoder.", trainable.averages["export"].shadow
        averaged.load_state_dict({n.removeprefix(prefix): x for n, x in shadow.items() if n.startswith(prefix)}, False)
        with quiet(), atomic_folder(config.out / "text_encoder") as temporary:
            averaged.save_pretrained(temporary)

    data = Seen(seen, packed.rows, tokenizer)
    player = Player(trainable, lambda module, batch, step: predictor_loss(module, batch, config.dims))
    loop({"text": player}, data, config, export)


if __name__ == "__main__":
    sys.exit(main_of(TextConfig, run))
