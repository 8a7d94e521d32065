"""Every kind of model and canvas: SDXL, inpainting networks, ControlNets, masks; the same image as in diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from fewstep.data.cache import encode
from fewstep.data.framing import Framing
from fewstep.data.sources import list_samples
from fewstep.diffusion.sampler import ImageNoise
from fewstep.models.inpainting import training_mask
from fewstep.models.load import load_model
from fewstep.session import Picture
from tests.conftest import Outcome
from tests.sessions import session
from tests.tiny import tiny_images, tiny_model, tiny_sdxl

PROMPT, NEGATIVE = "a red cat", "a blue house"
SIZE = 16  # pixels
HOW = {"solver": "ddim", "grid": "leading", "steps": 4, "guidance_scale": 5.0}


def ours(folder: Path, **options: Any) -> list[Picture]:
    options = {name: x.read_bytes() if isinstance(x, Path) else x for name, x in (HOW | options).items()}
    where = {name: options.pop(name) for name in ("loras", "controlnet") if name in options}
    with session(folder, **where) as opened:
        return list(opened.draw(PROMPT, **options))


def noise(seed: int = 0) -> torch.Tensor:
    """What ours begins with."""
    return ImageNoise([seed], (4, 8, 8), torch.device("cpu"))()


def theirs(pipe: Any, **options: Any) -> torch.Tensor:
    """diffusers' picture (3, H, W) in [-1, 1] with DDIM to the clean end."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 4, "guidance_scale": 5.0, "latents": noise(), "output_type": "pt"}
    return pipe(PROMPT, **(how | options)).images[0] * 2 - 1


def picture(path: Path, mode: str = "RGB", seed: int = 0) -> Path:
    """A random picture of smooth colours."""
    shape = (4, 4) if mode == "L" else (4, 4, 3)
    small = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(small).resize((SIZE, SIZE)).save(path)
    return path


def pixels_of(path: Path) -> torch.Tensor:
    """The picture (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 127.5 - 1


def left_half(path: Path) -> Path:
    """A mask: the left half is drawn anew."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, : SIZE // 2] = 255
    Image.fromarray(mask).save(path)
    return path


@pytest.mark.parametrize("negative", [NEGATIVE, ""])
def test_sdxl_draws_what_diffusers_draws(tiny_sdxl_folder: Path, negative: str):
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder)
    drawn = theirs(pipe, negative_prompt=negative or None, height=SIZE, width=SIZE)
    (mine,) = ours(tiny_sdxl_folder, negative_prompt=negative)
    assert (mine.pixels - drawn).abs().max() < 1e-3


def test_sdxl_is_told_the_size_of_its_picture(tiny_sdxl_folder: Path):
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder)
    drawn = theirs(pipe, height=16, width=24, latents=ImageNoise([0], (4, 8, 12), torch.device("cpu"))())
    (mine,) = ours(tiny_sdxl_folder, height=16, width=24)
    assert (mine.pixels - drawn).abs().max() < 1e-3


KINDS: dict[str, Callable[[Path], Path]] = {
    "sd15": tiny_model,
    "sd21": lambda f: tiny_model(f, unet={"use_linear_projection": True}, prediction_type="v_prediction"),
    "zero-snr": lambda f: tiny_model(f, prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "inpainting": lambda f: tiny_model(f, unet={"in_channels": 9}),
    "sdxl": tiny_sdxl,
    "ssd-1b": lambda f: tiny_sdxl(
        f,
        unet={
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": ((2,), 1),
            "reverse_transformer_layers_per_block": (1, (1, 3)),
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_distilled_fine_tuned_and_sampled(fewstep: Callable[..., Outcome], tmp_path: Path, kind: str):
    model, data = KINDS[kind](tmp_path / "model"), tiny_images(tmp_path / "data", 4, size=20)
    options = {"model": model, "data": data, "batch_size": 2}
    done = fewstep("distill", out=tmp_path / "run", rank=2, steps=2, **options)
    assert done.code == 0, done.err
    lora = tmp_path / "run" / "lora.safetensors"
    tuned = fewstep("finetune", "--full", out=tmp_path / "whole", steps=1, **options)
    assert tuned.code == 0, tuned.err
    whole = tmp_path / "whole" / "model"
    assert DiffusionPipeline.from_pretrained(whole).unet is not None
    for where in (model, whole):  # a LoRA plugs into what was made of its base
        done = fewstep("sample", PROMPT, model=where, lora=lora, out=tmp_path / f"images-{where.parent.name}")
        assert done.code == 0, done.err
        assert Path(done.out.strip()).exists()
    done = fewstep("export", model=model, lora=lora, to="diffusers", out=tmp_path / "fast")
    assert done.code == 0, done.err
    if kind == "inpainting":
        return  # whose pipeline takes an image and a mask
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "fast")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(PROMPT, num_inference_steps=4, guidance_scale=1.0, height=SIZE, width=SIZE).images


def test_a_folder_with_weights_in_half_precision_only_is_read(tmp_path: Path):
    whole = tiny_sdxl(tmp_path / "whole")
    pipe = StableDiffusionXLPipeline.from_pretrained(whole).to(torch.float16)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    assert not list((tmp_path / "half").rglob("model.safetensors"))
    (half,), (full,) = ours(tmp_path / "half"), ours(whole)
    assert (half.pixels - full.pixels).abs().max() < 0.02


def test_an_inpainting_network_draws_what_diffusers_draws(tmp_path: Path):
    folder = tiny_model(tmp_path / "model", unet={"in_channels": 9})
    image, mask = picture(tmp_path / "image.png"), left_half(tmp_path / "mask.png")
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.vae.encode = mean_of(pipe.vae.encode)
    drawn = theirs(pipe, image=Image.open(image), mask_image=Image.open(mask), strength=1.0, height=SIZE, width=SIZE)
    (mine,) = ours(folder, image=image, mask=mask)
    assert (mine.pixels - drawn)[:, :, : SIZE // 2].abs().max() < 1e-3
    given = pixels_of(image)
    assert torch.equal(mine.pixels[:, :, SIZE // 2 :], given[:, :, SIZE // 2 :])


def mean_of(encode: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    """An autoencoder's `encode` whose posterior is its mean."""

    def at_mean(pixels: torch.Tensor, *_: Any) -> Any:
        encoded = encode(pixels)
        encoded.latent_dist.sample = lambda *_: encoded.latent_dist.mean
        return encoded

    return at_mean


def test_an_inpainting_network_is_trained_on_a_mask_and_what_is_kept(tmp_path: Path):
    folder, items = tiny_model(tmp_path / "model", unet={"in_channels": 9}), tiny_images(tmp_path / "data", 8)
    model = load_model(str(folder))
    encoded = encode(list_samples(items).samples, model, Framing(SIZE))
    told = encoded.conditioning(range(8)).mask_and_latents
    assert told is not None
    assert told.shape == (8, 5, 8, 8)
    assert set(told[:, 0].unique().tolist()) <= {0.0, 1.0}
    assert len({float(mask.mean()) for mask in told[:, 0]}) > 2  # masks differ
    again = encode(list_samples(items).samples, model, Framing(SIZE)).conditioning(range(8)).mask_and_latents
    assert again is not None
    assert torch.equal(told, again)


def test_training_masks_cover_what_they_say():
    shares = torch.tensor([float(training_mask(seed, 64, 64).mean()) for seed in range(2000)])
    assert 0.2 < float((shares == 1).float().mean()) < 0.3
    assert float(shares.min()) >= 0.06
    assert 0.3 < float(shares[shares < 1].mean()) < 0.5  # (5/8)**2 = 0.39


def test_an_inpainting_network_draws_without_an_image_too(tmp_path: Path):
    (drawn,) = ours(tiny_model(tmp_path / "model", unet={"in_channels": 9}))
    assert drawn.pixels.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "heun", "euler-a"])
def test_what_a_mask_keeps_is_kept_to_the_bit(tiny_model_folder: Path, tmp_path: Path, solver: str):
    image, mask = picture(tmp_path / "image.png"), left_half(tmp_path / "mask.png")
    (drawn,) = ours(tiny_model_folder, image=image, mask=mask, solver=solver)
    given = pixels_of(image)
    assert torch.equal(drawn.pixels[:, :, SIZE // 2 :], given[:, :, SIZE // 2 :])
    assert not torch.allclose(drawn.pixels[:, :, : SIZE // 2], given[:, :, : SIZE // 2], atol=0.05)
    assert drawn.recipe["strength"] == 1.0


def test_a_grey_mask_mixes(tiny_model_folder: Path, tmp_path: Path):
    image = picture(tmp_path / "image.png")
    Image.new("L", (SIZE, SIZE), 255).save(tmp_path / "white.png")
    Image.new("L", (SIZE, SIZE), 51).save(tmp_path / "grey.png")
    (white,) = ours(tiny_model_folder, image=image, mask=tmp_path / "white.png")
    (grey,) = ours(tiny_model_folder, image=image, mask=tmp_path / "grey.png")
    given = pixels_of(image)
    assert torch.allclose(grey.pixels, 0.2 * white.pixels + 0.8 * given, atol=1e-5)


def test_outpainting_adds_what_was_asked_and_keeps_the_image(tiny_model_folder: Path, tmp_path: Path):
    image = picture(tmp_path / "image.png")
    (drawn,) = ours(tiny_model_folder, image=image, outpaint="4,0,3,2")
    assert drawn.pixels.shape == (3, SIZE + 2, SIZE + 8)  # 4 + 16 + 3, and one more to come out even
    given = pixels_of(image)
    assert torch.equal(drawn.pixels[:, :SIZE, 4 : 4 + SIZE], given)


def test_a_controlnet_draws_what_diffusers_draws(tiny_model_folder: Path, tmp_path: Path):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model_folder)
    torch.manual_seed(1)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    net.save_pretrained(tmp_path / "controlnet")
    sketch = picture(tmp_path / "sketch.png")
    guided = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net)
    drawn = theirs(guided, image=Image.open(sketch), controlnet_conditioning_scale=0.7, height=SIZE, width=SIZE)
    options = {"controlnet": str(tmp_path / "controlnet"), "control_image": sketch, "control_scale": 0.7}
    (mine,), (without,) = ours(tiny_model_folder, **options), ours(tiny_model_folder)
    assert (mine.pixels - drawn).abs().max() < 1e-3
    assert (mine.pixels - without.pixels).abs().max() > 0.01
    turned = tmp_path / "turned.png"
    Image.fromarray(255 - np.array(Image.open(sketch))).save(turned)
    (again,) = ours(tiny_model_folder, **(options | {"control_image": turned, "sketch": True}))
    assert (again.pixels - mine.pixels).abs().max() < 1e-4


def test_a_safety_checker_is_kept_unless_told_otherwise(
    fewstep: Callable[..., Outcome], tiny_model_folder: Path, tmp_path: Path
):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    pipe = StableDiffusionPipeline.from_pretrained(tiny_model_folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2)  # hides everything
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    checked = StableDiffusionPipeline(
        **(pipe.components | {"safety_checker": checker, "feature_extractor": processor}), requires_safety_checker=True
    )
    checked.save_pretrained(tmp_path / "model")
    hidden = fewstep("sample", PROMPT, model=tmp_path / "model", steps=1, out=tmp_path / "hidden")
    assert hidden.code == 0, hidden.err
    assert "the model's safety checker hid the picture of 'a red cat', seed 0" in hidden.err
    assert not np.array(Image.open(hidden.out.strip())).any()
    shown = fewstep("sample", PROMPT, "--no-safety-checker", model=tmp_path / "model", steps=1, out=tmp_path / "shown")
    assert shown.code == 0, shown.err
    assert np.array(Image.open(shown.out.strip())).any()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mask": "m.png"}, "--mask needs --image"),
        ({"outpaint": "8"}, "--outpaint needs --image"),
        ({"image": "i.png", "outpaint": "8", "mask": "m.png"}, "--mask and --outpaint exclude each other"),
        ({"image": "i.png", "outpaint": "1,2"}, "--outpaint 1,2 is not pixels for left, top, right and bottom"),
        ({"image": "i.png", "outpaint": "0"}, "--outpaint 0 is not pixels"),
        ({"controlnet": "net"}, "--controlnet and --control-image go together"),
        ({"controlnet": "net", "control_image": "i.png"}, "controlnet net not found"),
        ({"image": "i.png", "mask": "none.png"}, "image not found: none.png"),
    ],
)
def test_what_does_not_belong_together_is_said(
    fewstep: Callable[..., Outcome],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    error: str,
):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "i.png")
    left_half(tmp_path / "m.png")
    done = fewstep("sample", PROMPT, model=tiny_model_folder, **options)
    assert done.code in (1, 2)
    assert error in done.error


def test_a_controlnet_of_another_family_is_refused(
    fewstep: Callable[..., Outcome], tiny_model_folder: Path, tiny_sdxl_folder: Path, tmp_path: Path
):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model_folder)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    net.save_pretrained(tmp_path / "net")
    image = picture(tmp_path / "i.png")
    done = fewstep("sample", PROMPT, model=tiny_sdxl_folder, controlnet=tmp_path / "net", control_image=image)
    assert "does not fit the model: cross_attention_dim is 16, not 40" in done.error
