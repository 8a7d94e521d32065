"""Trains the embedded model: a UNet and a text encoder, together, from scratch, on the base drawings.

    python -m recipes.emoji.teacher [--out ~/.cache/fewstep/emoji/teacher] [--resume]

It needs the image folder (dataset.py) and the autoencoder (autoencoder.py). It makes the tokenizer if there is none.
At every checkpoint, OUT/model is a complete Stable Diffusion folder, and OUT/samples-STEP.png shows its pictures.
Another machine needs only --latents FILE, --vae DIR and --tokenizer DIR (or --init DIR to start from an exported
model).
"""

import copy
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.cli import main_of
from fewstep.configs import TrainingConfig
from fewstep.diffusion.prediction import Prediction, prediction_named
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule, schedule_from_config
from fewstep.errors import FewstepError
from fewstep.families import SCHEDULER
from fewstep.io import atomic_folder, cache_dir, read_json, write_json
from fewstep.lora.recipe import Recipe
from fewstep.models.load import RECIPE_FILE, load_model, pick_device
from fewstep.models.model import Model
from fewstep.models.quiet import quiet
from fewstep.training.draws import Order, SampleId, generator, integers, normal, uniform
from fewstep.training.loop import loop
from fewstep.training.losses import denoising_loss
from fewstep.training.players import Player, Trainable, average_of
from fewstep.training.progress import check_folder
from recipes.emoji.captions import caption_of
from recipes.emoji.graphed import GraphedStep, check_graph
from recipes.emoji.latents import Packed, packed_latents
from recipes.emoji.sheet import save_samples
from recipes.emoji.tokenizer import LENGTH, make_tokenizer

RECOLOURED_SHARE = 0.4  # share of another colour in the visits to a drawing that has other colours
NAMED_SHARE = 0.15  # share of captions that name the colour of a drawing in its own colour
HEAD = 32  # channels of an attention head; all widths are multiples of it


class TeacherConfig(TrainingConfig):
    """Train the embedded model's UNet and text encoder on the emoji image folder."""

    may_change: ClassVar[frozenset[str]] = TrainingConfig.may_change | {
        "images", "latents", "vae", "tokenizer", "init", "text_encoder", "workers", "graph",
    }  # fmt: skip

    out: Path = cache_dir() / "emoji" / "teacher"
    """The run's folder. The Stable Diffusion folder is written to its `model` folder."""
    images: Path = cache_dir() / "emoji" / "images"
    """The folder that dataset.py built; not needed with --latents."""
    vae: Path = cache_dir() / "emoji" / "autoencoder" / "vae"
    """The autoencoder that autoencoder.py exported."""
    tokenizer: Path = cache_dir() / "emoji" / "tokenizer"
    """The tokenizer's folder; it is made if it is missing."""
    latents: Path | None = None
    """A packed file of latents made before; by default it is made once and kept in the cache."""
    text_encoder: Path | None = None
    """Start from this text encoder, trained by text.py, instead of an untrained one or that of --init."""
    init: Path | None = None
    """Start from the weights of this Stable Diffusion folder, an export of an earlier run."""
    train_steps: int = 60000
    """Optimiser steps."""
    batch_size: int = 64
    """Drawings per step."""
    learning_rate: float = 5e-4
    """The peak rate of AdamW."""
    decay: Literal["constant", "cosine"] = "cosine"
    """The course of the rate after the warm-up."""
    warmup: int = 500
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    beta2: float = 0.99
    """AdamW's second-moment decay."""
    ema: float = 0.9995
    """Decay of the average that is exported."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, exports and sample sheets."""
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    """The prediction type of the network."""
    weighting: Literal["plain", "min-snr"] = "plain"
    """Weighting of noise levels. plain weighs all equally; min-snr weighs the noisy ones less, where text decides."""
    drop_captions: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of captions replaced by the empty one."""
    channels: tuple[int, ...] = (96, 192, 192)
    """Channels of the UNet at 16, 8 and 4 latent pixels, multiples of 32; all but the first and last have attention."""
    text_width: int = 128
    """Width of the text encoder, a multiple of 32."""
    text_layers: int = 4
    """Layers of the text encoder."""
    guidance_scale: float = 4.0
    """The guidance scale in the exported model's recipe."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches ahead, for a GPU that is faster than one process. The batches are the same."""
    graph: bool = False
    """Compile the step and replay it as one CUDA graph: two and a half times as fast on an H100."""


class TeacherBatch(NamedTuple):
    """Latents, the tokens of a random caption for this visit, and the visit's noise."""

    x_0: Tensor  # (B, 4, H, W)
    tokens: Tensor  # (B, LENGTH) int64
    eps: Tensor  # (B, 4, H, W) standard normal
    level: NoiseLevel  # of every drawing

    def to(self, device: torch.device) -> "TeacherBatch":
        return TeacherBatch(self.x_0.to(device), self.tokens.to(device), self.eps.to(device), self.level.to(device))

    def tensors(self) -> list[Tensor]:
        return [*self[:3], *self.level]


class Captioned:
    """The packed drawings as the loop's Data. A visit draws eps, t, and a caption or the empty one."""

    def __init__(self, packed: Packed, tokenizer: CLIPTokenizer, drop_captions: float, schedule: NoiseSchedule) -> None:
        self.packed, self.tokenizer, self.drop_captions, self.schedule = packed, tokenizer, drop_captions, schedule

    def __len__(self) -> int:
        return len(self.packed.rows)

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> TeacherBatch:
        indices, generators = [visit.index for visit in visits], [generator(visit) for visit in visits]
        eps, t = normal(generators, self.packed.latents.shape[1:]), integers(generators, len(self.schedule))
        drop, seeds = uniform(generators) < self.drop_captions, integers(generators, 2**31)
        drawings, texts = zip(*map(self.seen, indices, seeds.tolist()), strict=True)
        asked = ["" if dropped else text for text, dropped in zip(texts, drop.tolist(), strict=True)]
        x_0 = torch.stack(drawings).float()
        return TeacherBatch(x_0, tokens_of(self.tokenizer, asked), eps, self.schedule.at(t)).to(device)

    def seen(self, index: int, seed: int) -> tuple[Tensor, str]:
        """This drawing (4, H, W), in its own or another colour, and one of its many captions."""
        row, rng = self.packed.rows[index], random.Random(seed)
        if row["recoloured"] and rng.random() < RECOLOURED_SHARE:
            colour, number = rng.choice(list(row["recoloured"].items()))
            return self.packed.recoloured[number], caption_of(row, colour, rng)
        colour = row["colour"] if rng.random() < NAMED_SHARE else None
        return self.packed.latents[index], caption_of(row, colour, rng)


class Ahead:
    """Data whose batches other processes prepare while the GPU computes. It is for one training process."""

    def __init__(self, data: Captioned, config: TeacherConfig) -> None:
        self.data, self.config = data, config
        self.coming: Iterator[TeacherBatch] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> TeacherBatch:
        if self.coming is None:
            following = Following(self.data, visits, self.config.train_steps * self.config.accumulate)
            workers = self.config.workers
            self.coming = iter(DataLoader(following, batch_size=None, num_workers=workers, prefetch_factor=4))
        return next(self.coming).to(device)


class Following(Dataset[TeacherBatch]):
    """The batch of these visits and those that follow it in a run."""

    def __init__(self, data: Captioned, visits: Sequence[SampleId], batches: int) -> None:
        self.data, self.size, self.batches = data, len(visits), batches
        first = visits[0]
        self.order = Order(len(data), first.seed)
        of_epoch = self.order.visits(first.epoch * len(data), len(data))
        self.start = first.epoch * len(data) + of_epoch.index(first)

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, number: int) -> TeacherBatch:
        return self.data.batch(self.order.visits(self.start + number * self.size, self.size), torch.device("cpu"))


def tokens_of(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (B, LENGTH), padded and cut."""
    tokens = tokenizer(list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids


class TeacherNetworks(nn.Module):
    """Maps x_t (B, 4, H, W), t (B,) and tokens (B, LENGTH) to the network's output, float32."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        text = self.text_encoder(tokens).last_hidden_state
        output: Tensor = self.unet(x_t, t, encoder_hidden_states=text, return_dict=False)[0]
        return output.float()


def new_unet(channels: Sequence[int], text_width: int, size: int) -> UNet2DConditionModel:
    """An untrained UNet with Stable Diffusion's blocks, one layer each. It has 12.2 M parameters at (96, 192, 192).

    There is no attention at the largest size, where it would take a third of the time, and none at the smallest,
    because the middle block has its own.
    """
    between = len(channels) - 2
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * between, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * between, "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=tuple(width // HEAD for width in channels),  # diffusers takes it as the number of heads
        time_embedding_dim=256,
    )
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder that text.py or an export wrote to `folder`."""
    return CLIPTextModel.from_pretrained(folder, local_files_only=True)


def new_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """An untrained CLIP text encoder for this tokenizer; 1.05 M parameters at width 128 and 4 layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_teacher(config: TeacherConfig, tokenizer: CLIPTokenizer, size: int) -> TeacherNetworks:
    """The networks to train: untrained ones from config.seed, or those of config.init."""
    trained = config.text_encoder and load_text_encoder(config.text_encoder)
    if config.init is None:
        torch.manual_seed(config.seed)
        unet = new_unet(config.channels, config.text_width, size)
        return TeacherNetworks(
            unet, trained or new_text_encoder(tokenizer, config.text_width, config.text_layers)
        ).train()
    model = load_model(str(config.init))
    if model.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise FewstepError(
            f"{config.init} was trained with another tokenizer than {config.tokenizer}",
            f"use its own: --tokenizer {config.init / 'tokenizer'}",
        )
    return TeacherNetworks(model.unet, trained or model.text_encoder).requires_grad_().train()


def teacher_loss(module: nn.Module, batch: TeacherBatch, config: TeacherConfig) -> Tensor:
    """The denoising loss of a batch, with noise levels weighted by config.weighting."""
    prediction, level = prediction_named(config.prediction), batch.level
    output = module(level.alpha * batch.x_0 + level.sigma * batch.eps, level.t, batch.tokens)
    if config.weighting == "plain":
        return denoising_loss(output, prediction, batch.x_0, level, batch.eps)
    difference = output - prediction.aim(batch.x_0, batch.eps, level)
    loss: Tensor = (min_snr_weight(prediction, level) * difference**2).mean()
    return loss


def min_snr_weight(prediction: Prediction, level: NoiseLevel, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) in terms of x_0, as a weight (B, 1, 1, 1) of the output's squared error (arXiv 2303.09556)."""
    snr = (level.alpha / level.sigma) ** 2
    per_output = snr + 1 if prediction == prediction_named("v_prediction") else snr
    return snr.clamp(max=gamma) / per_output


class Exporter:
    """Writes the averaged weights as a Stable Diffusion folder, and a sheet of their pictures."""

    def __init__(
        self, trainable: Trainable, vae: AutoencoderKL, tokenizer: CLIPTokenizer, config: TeacherConfig
    ) -> None:
        self.average = trainable.averages["export"]
        self.teacher = cast(TeacherNetworks, copy.deepcopy(trainable.module).eval().requires_grad_(False))
        self.vae, self.tokenizer, self.config = vae, tokenizer, config
        self.scheduler = DDIMScheduler(**SCHEDULER, prediction_type=config.prediction)

    def __call__(self, step: int) -> None:
        self.teacher.load_state_dict(self.average.shadow, strict=False)
        self.save(self.config.out / "model", step)
        device = next(iter(self.average.shadow.values())).device
        save_samples(self.model(device), self.config.out / f"samples-{step:06d}.png")

    def save(self, folder: Path, step: int) -> None:
        """Write the folder in half precision, whole or not at all, with its recipe."""
        half = [copy.deepcopy(part).half() for part in (self.vae, self.teacher.text_encoder, self.teacher.unet)]
        pipeline = StableDiffusionPipeline(
            vae=half[0],
            text_encoder=half[1],
            tokenizer=self.tokenizer,
            unet=half[2],
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        with quiet(), atomic_folder(folder) as temporary:
            pipeline.save_pretrained(temporary)
            shutil.copytree(self.config.tokenizer, temporary / "tokenizer", dirs_exist_ok=True)
            # transformers 5 would load the text encoder as stored, diffusers the UNet in float32: not a pair.
            text_config = temporary / "text_encoder" / "config.json"
            write_json(text_config, read_json(text_config, "text encoder config") | {"dtype": "float32"})
            write_json(temporary / RECIPE_FILE, self.recipe(step).model_dump(mode="json"))

    def recipe(self, step: int) -> Recipe:
        """The model's recipe: how to sample it, and the number of drawings it was trained on."""
        a_step = self.config.batch_size * self.config.accumulate * PartialState().num_processes
        return Recipe(
            method="denoising",
            family="emoji",
            prediction_type=self.config.prediction,
            guidance_scale=self.config.guidance_scale,
            training={"drawings_seen": seen_before(self.config.init) + step * a_step},
        )

    def model(self, device: torch.device) -> Model:
        """The averaged networks as a model, in float32 on `device`."""
        return Model(
            path=self.config.out / "model",
            unet=self.teacher.unet.to(device),
            vae=self.vae.to(device),
            text_encoder=self.teacher.text_encoder.to(device),
            tokenizer=self.tokenizer,
            schedule=schedule_from_config(SCHEDULER),
            prediction_type=self.config.prediction,
        )


def seen_before(init: Path | None) -> int:
    """The number of drawings, with repeats, on which the run's first model was trained."""
    if init is None or not (init / RECIPE_FILE).exists():
        return 0
    return int(read_json(init / RECIPE_FILE, "sampling recipe")["training"].get("drawings_seen", 0))


def load_tokenizer(folder: Path, rows: Sequence[dict[str, Any]]) -> CLIPTokenizer:
    """The tokenizer in `folder`. It is made from these rows if it is missing."""
    if not folder.exists():
        make_tokenizer(rows, folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def run(config: TeacherConfig) -> None:
    """Train, exporting and drawing samples at every checkpoint."""
    check_folder(config)
    if config.graph:
        check_graph(config)
    device = pick_device(config.device)
    packed = packed_latents(config.images, config.vae, config.latents, cache_dir() / "emoji", device)
    tokenizer = load_tokenizer(config.tokenizer, packed.rows)
    vae = AutoencoderKL.from_pretrained(config.vae, local_files_only=True).eval().requires_grad_(False)
    teacher = new_teacher(config, tokenizer, packed.latents.shape[-1])
    parameters = dict(teacher.named_parameters())
    print(f"{sum(p.numel() for p in parameters.values()):,} parameters, {len(packed.rows):,} drawings", file=sys.stderr)
    trainable = Trainable(teacher, parameters, {"export": average_of(parameters, config.ema)})
    schedule = schedule_from_config(SCHEDULER)
    torch.backends.cudnn.benchmark = True  # of use on a GPU: all batches have one size
    data = Captioned(packed, tokenizer, config.drop_captions, schedule)
    loop(
        {"teacher": Player(trainable, lambda module, batch, step: teacher_loss(module, batch, config))},
        Ahead(data, config) if config.workers else data,
        config,
        Exporter(trainable, vae, tokenizer, config),
        GraphedStep() if config.graph else None,
    )


if __name__ == "__main__":
    sys.exit(main_of(TeacherConfig, run))
