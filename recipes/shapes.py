"""`make demo`: the whole story at toy size, from nothing, in a few minutes on two cores.

    python recipes/shapes.py [--out demo]

Draws captioned shapes, trains an autoencoder and a teacher on them, distils the teacher to an LCM-LoRA, and draws
the same prompts from the same noise with DDIM, DPM-Solver, DPM-Solver++ and the LoRA. Everything but the shapes
goes through the product's own commands and its one training loop.
"""

import colorsys
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.cli import main_of
from fewstep.configs import (
    Config,
    DistillConfig,
    FinetuneConfig,
    SampleConfig,
    TrainingConfig,
    build,
)
from fewstep.data.folder import read_items
from fewstep.errors import UsageError
from fewstep.images import read_image
from fewstep.pipeline import load_pipeline
from fewstep.training import distill, finetune
from fewstep.training.checkpoint import Trainable, average_of
from fewstep.training.draws import SampleId, generator, normal
from fewstep.training.loop import loop

SIZE = 32
COLOURS = {"red": 0.0, "orange": 0.08, "yellow": 0.15, "green": 0.36, "blue": 0.6, "purple": 0.78}
SHAPES = {"circle": 0, "triangle": 3, "square": 4, "hexagon": 6, "star": 10}  # corners; 0 is round
PROMPTS = [f"{colour} {shape}" for colour, shape in zip(COLOURS, [*SHAPES, "circle"], strict=True)]


class DemoConfig(Config):
    """Play the whole story at toy size: data, teacher, distillation, comparison sheet."""

    out: Path = Path("demo")
    """The folder for everything that is made."""
    teacher_steps: int = 1200
    """Steps of the teacher's training."""
    distill_steps: int = 200
    """Steps of the distillation."""


class Row(NamedTuple):
    """One line of the comparison."""

    name: str
    solver: str
    steps: int
    guidance_scale: float
    lora: bool


ROWS = [
    Row("DDIM", "ddim", 32, 3.0, False),
    Row("DPM-Solver", "dpm-solver", 16, 3.0, False),
    Row("DPM-Solver++", "dpm-solver++", 8, 3.0, False),
    Row("DDIM", "ddim", 4, 3.0, False),
    Row("LCM-LoRA", "lcm", 4, 1.0, True),
    Row("LCM-LoRA", "lcm", 2, 1.0, True),
]


def draw_shape(colour: str, shape: str, chance: random.Random) -> Image.Image:
    """One shape on white, its place, size, turn and shade drawn by `chance`."""
    scale = 4
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), "white")
    radius = chance.uniform(0.3, 0.4) * SIZE * scale
    x, y = (chance.uniform(0.45, 0.55) * SIZE * scale for _ in range(2))
    fill = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(COLOURS[colour], 0.85, chance.uniform(0.75, 0.95)))
    corners, turn = SHAPES[shape] or 40, chance.uniform(-0.15, 0.15) + (math.pi / 4 if shape == "square" else 0)
    points = []
    for i in range(corners):
        reach = radius * (0.45 if shape == "star" and i % 2 else 1)
        angle = turn - math.pi / 2 + 2 * math.pi * i / corners
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    ImageDraw.Draw(image).polygon(points, fill=fill)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def make_images(folder: Path, each: int = 20) -> None:
    """The captioned image folder: `each` drawings of every colour and shape."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for colour in COLOURS:
        for shape in SHAPES:
            for i in range(each):
                name = folder / f"{colour}-{shape}-{i:02}"
                draw_shape(colour, shape, chance).save(name.with_suffix(".png"))
                name.with_suffix(".txt").write_text(f"{colour} {shape}", encoding="utf-8")


class Pixels:
    """The images as the loop's Data: pixels and the noise of their posterior draws."""

    def __init__(self, folder: Path) -> None:
        self.pixels = torch.stack([read_image(item.path, SIZE, SIZE) for item in read_items(folder)])

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> tuple[Tensor, Tensor]:
        noise = normal([generator(visit) for visit in visits], (4, SIZE // 4, SIZE // 4))
        return self.pixels[[visit.index for visit in visits]].to(device), noise.to(device)


class Autoencoding(nn.Module):
    """Pixels and noise -> mean absolute error of the reconstruction, plus a little KL."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        posterior = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return (decoded - pixels).abs().mean() + 1e-3 * posterior.kl().mean() / noise[0].numel()


def train_autoencoder(images: Path, out: Path) -> AutoencoderKL:
    """A small AutoencoderKL (factor 4) trained on the images, its scaling factor measured on them."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIZE,
    )
    parameters, data = dict(vae.named_parameters()), Pixels(images)
    trainable = Trainable(Autoencoding(vae), parameters, {"export": average_of(parameters, 0.99)})
    config = build(TrainingConfig, out=out, train_steps=500, batch_size=16, learning_rate=2e-3, decay="cosine")
    loop(trainable, lambda module, batch: module(*batch), data, config)
    vae.load_state_dict(trainable.averages["export"].shadow)
    with torch.no_grad():
        scale = 1 / vae.to("cpu").encode(data.pixels[::4]).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=float(scale))
    return vae


def save_untrained(folder: Path, vae: AutoencoderKL) -> None:
    """A Stable Diffusion folder with this autoencoder and an untrained UNet; its text encoder stays random."""
    torch.manual_seed(1)
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)


def draw_row(row: Row, model: Path, lora: Path) -> tuple[list[Image.Image], float, float]:
    """The row's pictures of all prompts, the seconds per picture, and the NFE."""
    loras = (str(lora),) if row.lora else ()
    config = build(
        SampleConfig,
        prompts=tuple(PROMPTS),
        model=str(model),
        lora=loras,
        solver=row.solver,
        steps=row.steps,
        guidance_scale=row.guidance_scale,
    )
    pipeline = load_pipeline(str(model), loras)
    plan = pipeline.plan(config)
    list(pipeline.pictures(config, plan))  # warm up, so that the times are of drawing alone
    begun = time.perf_counter()
    pictures = list(pipeline.pictures(config, plan))
    return [p.image for p in pictures], (time.perf_counter() - begun) / len(pictures), pictures[0].recipe["nfe"]


def save_sheet(rows: Sequence[tuple[str, list[Image.Image]]], path: Path, cell: int = 96) -> None:
    """One row a solver, one column a prompt, all from the same noise."""
    left, top = 250, 26
    sheet = Image.new("RGB", (left + cell * len(PROMPTS), top + cell * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(PROMPTS):
        pen.text((left + column * cell + 4, 8), prompt, fill="black")
    for line, (label, images) in enumerate(rows):
        pen.text((8, top + line * cell + cell // 2 - 6), label, fill="black")
        for column, image in enumerate(images):
            sheet.paste(image.resize((cell, cell), Image.Resampling.NEAREST), (left + column * cell, top + line * cell))
    sheet.save(path)


def say(text: str) -> None:
    """Tell where the story is, on stderr."""
    print(f"\n== {text}", file=sys.stderr, flush=True)


def run(config: DemoConfig) -> None:
    """Play the story; the sheet, the table and the next commands are named at the end."""
    begun, out = time.perf_counter(), config.out
    if out.exists():
        raise UsageError(f"{out} is already there", "remove it, or choose another --out")
    images, model, lora = out / "images", out / "teacher" / "model", out / "lcm" / "lora.safetensors"
    say("1/4 drawing captioned shapes and training an autoencoder on them")
    make_images(images)
    save_untrained(out / "untrained", train_autoencoder(images, out / "autoencoder"))
    say("2/4 training the teacher: fewstep finetune --full")
    shared = {"data": images, "batch_size": 32, "decay": "cosine", "checkpoint_every": 10**6}
    teaching = {"train_steps": config.teacher_steps, "learning_rate": 1e-3, "warmup": 100, "ema": 0.995, "full": True}
    finetune.run(build(FinetuneConfig, model=str(out / "untrained"), out=out / "teacher", **shared, **teaching))
    say("3/4 distilling it: fewstep distill")
    distilling = {"train_steps": config.distill_steps, "rank": 16, "learning_rate": 1e-3, "guidance_scale": 3.0}
    distill.run(build(DistillConfig, model=str(model), out=out / "lcm", **shared, **distilling))
    say("4/4 the same prompts from the same noise")
    rows = []
    print("| solver | steps | NFE | ms per picture |\n|---|---|---|---|")
    for row in ROWS:
        pictures, seconds, nfe = draw_row(row, model, lora)
        print(f"| {row.name} | {row.steps} | {nfe:g} | {1000 * seconds:.0f} |")
        rows.append((f"{row.name}, {row.steps} steps, {nfe:g} NFE, {1000 * seconds:.0f} ms", pictures))
    save_sheet(rows, out / "sheet.png")
    shutil.rmtree(out / "untrained")
    print(f"\n{out / 'sheet.png'}: the pictures, in {time.perf_counter() - begun:.0f} s. Next:")
    print(f'  fewstep sample "blue star" --model {model} --lora {lora} --out {out}/more')
    print(f"  fewstep distill --model {model} --data {images} --steps 1000 --out {out}/longer")
    print("  fewstep --help")


if __name__ == "__main__":
    sys.exit(main_of(DemoConfig, run))
