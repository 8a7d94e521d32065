"""Models in pixel space: pictures equal to those of diffusers' own pipelines, each layout read, other kinds refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, LCMScheduler, UNet2DModel
from PIL import Image

import fewstep
from fewstep.errors import FewstepError, UsageError
from fewstep.models.load import load_model, takes_text
from fewstep.models.model import parts_sha256
from tests.tiny import tiny_pixels

STEPS = 8
TRAILING = {"timestep_spacing": "trailing"}


def drawn(folder: Path, **options: object) -> torch.Tensor:
    """The pixels (3, H, W) of the first picture."""
    with fewstep.Session(str(folder), dtype="fp32", device="cpu") as session:
        return next(session.draw("", **options)).pixels


def of_pipeline(pipe: DDPMPipeline | DDIMPipeline, **options: object) -> torch.Tensor:
    """The pixels of diffusers' pipeline from the noise of seed 0."""
    pipe.set_progress_bar_config(disable=True)
    made = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=STEPS, output_type="np", **options)
    return torch.from_numpy(made.images[0]).permute(2, 0, 1) * 2 - 1


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert ours.std() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_draws_the_picture_of_diffusers_pipeline(prediction: str, tmp_path: Path) -> None:
    folder = tiny_pixels(tmp_path / "m", prediction_type=prediction, clip_sample=False)
    pipe = DDIMPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **TRAILING)
    assert_same(drawn(folder, solver="ddim", steps=STEPS), of_pipeline(pipe))


def test_estimates_are_clipped_as_the_scheduler_says(tmp_path: Path) -> None:
    folder = tiny_pixels(tmp_path / "m", clip_sample=True, clip_sample_range=0.8)
    pipe = DDIMPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **TRAILING)
    ours = drawn(folder, solver="ddim", steps=STEPS)
    assert_same(ours, of_pipeline(pipe, use_clipped_model_output=True))
    assert ours.abs().max() <= 0.8
    unclipped = tiny_pixels(tmp_path / "unclipped", clip_sample=False)
    assert (drawn(unclipped, solver="ddim", steps=STEPS) - ours).abs().max() > 0.1


def test_ddim_with_all_its_noise_draws_ddpms_picture(tiny_pixels_folder: Path) -> None:
    pipe = DDPMPipeline.from_pretrained(tiny_pixels_folder)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, **TRAILING)
    assert_same(drawn(tiny_pixels_folder, solver="ddim", eta=1.0, steps=STEPS), of_pipeline(pipe))


def test_a_few_step_model_draws_as_lcm_scheduler_does(tiny_pixels_folder: Path) -> None:
    """A result of distilling, by its network and diffusers' LCMScheduler: the boundary and clipping are the same."""
    unet = UNet2DModel.from_pretrained(tiny_pixels_folder, subfolder="unet").eval()
    scheduler = LCMScheduler.from_pretrained(tiny_pixels_folder, subfolder="scheduler")
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 16, 16, generator=noise)
    scheduler.set_timesteps(timesteps=[999, 749, 499, 249], original_inference_steps=1000)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, generator=noise, return_dict=False)[0]
    assert_same(drawn(tiny_pixels_folder, solver="lcm", grid="trailing", steps=4), x[0])


def test_a_network_at_the_top_of_its_folder_is_read(tiny_pixels_folder: Path, tmp_path: Path) -> None:
    """As in the folders of DDPM's authors."""
    old = tmp_path / "old"
    old.mkdir()
    for file in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
                 "model_index.json"):  # fmt: skip
        shutil.copy(tiny_pixels_folder / file, old)
    assert torch.equal(drawn(old, steps=2), drawn(tiny_pixels_folder, steps=2))
    before = load_model(str(old)).unet_sha256(), parts_sha256(old)
    assert before[0] == load_model(str(tiny_pixels_folder)).unet_sha256()
    other = tiny_pixels(tmp_path / "other", seed=1) / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(other, old)
    after = load_model(str(old)).unet_sha256(), parts_sha256(old)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_picture_goes_through_as_it_is(tiny_pixels_folder: Path) -> None:
    model, pixels = load_model(str(tiny_pixels_folder)), torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(model.decode(model.encode(pixels)), pixels)
    assert (model.factor, model.multiple, model.height_and_width) == (1, 2, (16, 16))
    assert model.latent_shape(16, 32) == (3, 16, 32)


def test_image_to_image_and_inpainting_keep_what_they_must(tiny_pixels_folder: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    kept = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    pixels = drawn(tiny_pixels_folder, image=image, mask=mask, steps=3)
    torch.testing.assert_close(pixels[:, :, 8:], kept[:, :, 8:], rtol=0, atol=1e-6)
    assert (pixels[:, :, :8] - kept[:, :, :8]).abs().mean() > 0.1
    near, far = (drawn(tiny_pixels_folder, image=image, strength=s, steps=3) for s in (0.05, 1.0))
    assert (near - kept).abs().mean() < (far - kept).abs().mean()


def test_other_sizes_are_multiples_of_what_the_network_halves(tiny_pixels_folder: Path) -> None:
    assert drawn(tiny_pixels_folder, steps=1, width=24, height=16).shape == (3, 16, 24)
    with pytest.raises(UsageError, match=r"^width 17 is not a multiple of 2\n\nhint: use 16"):
        drawn(tiny_pixels_folder, width=17)


# --- what it cannot take -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        (["a cat"], "draws without a prompt, but got 'a cat'"),
        (["--negative-prompt", "red"], "--negative-prompt: .* draws without a prompt, so there is nothing to guide"),
        (["--guidance-scale", "3"], "--guidance-scale: .* draws without a prompt, so there is nothing to guide"),
    ],
)
def test_text_and_guidance_are_refused(fewstep, typed, error, tiny_pixels_folder: Path, tmp_path: Path) -> None:
    done = fewstep("sample", *typed, model=tiny_pixels_folder, out=tmp_path / "out")
    assert done.code == 2
    assert_matches(error, done.error)
    assert done.hint == "leave it out; --seed and --count choose the pictures"
    assert not (tmp_path / "out").exists()


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(text)


def test_the_program_needs_no_prompt(fewstep, tiny_pixels_folder: Path, tiny_model_folder: Path, tmp_path) -> None:
    common = {"out": tmp_path, "device": "cpu", "steps": 2}
    done = fewstep("sample", "--guidance-scale", "1", "--json", model=tiny_pixels_folder, count=2, **common)
    assert done.code == 0, done.err
    pictures = json.loads(done.out)["images"]
    assert [(one["prompt"], one["nfe"], one["guidance_scale"]) for one in pictures] == [("", 2.0, 1.0)] * 2
    again = fewstep("sample", redraw=pictures[0]["file"], out=tmp_path / "again")
    assert again.code == 0, again.err
    (redrawn,) = (tmp_path / "again").glob("*.png")
    assert np.array_equal(np.array(Image.open(redrawn)), np.array(Image.open(pictures[0]["file"])))
    assert fewstep("sample", model=tiny_model_folder, **common).error == "no prompt was given"
    assert fewstep("sample", **common).error == "no prompt was given"
    assert (takes_text(str(tiny_pixels_folder)), takes_text(str(tiny_model_folder)), takes_text("sd15")) == (
        False,
        True,
        True,
    )


def test_a_comparison_has_no_prompts(fewstep, tiny_pixels_folder: Path, tmp_path: Path) -> None:
    common = {"model": tiny_pixels_folder, "images": 4, "out": tmp_path / "out", "device": "cpu"}
    done = fewstep("compare", "--rows", "ddim:2", "--json", **common)
    assert done.code == 0, done.err
    assert json.loads(done.out)["protocol"]["prompts"]["source"] == "none, since the model takes no text"
    (tmp_path / "list.txt").write_text("a cat")
    done = fewstep("compare", "--rows", "ddim:2", prompts=tmp_path / "list.txt", **common)
    assert done.error == f"--prompts: {tiny_pixels_folder} draws without a prompt"


@pytest.mark.parametrize(
    ("unet", "error"),
    [
        ({"num_class_embeds": 10}, "unet/config.json: num_class_embeds is 10, but fewstep has no such input"),
        ({"class_embed_type": "timestep"}, "class_embed_type is .timestep., but fewstep has no such input"),
        ({"out_channels": 6}, "out_channels is 6, but pictures have 3"),
        ({"in_channels": 1, "out_channels": 1}, "in_channels is 1, but pictures have 3"),
        ({"sample_size": None}, "sample_size is null, but it must be a number of pixels up to 8192"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is .fourier., but fewstep's networks take timesteps"),
    ],
)
def test_other_networks_are_refused(unet: dict[str, object], error: str, tmp_path: Path) -> None:
    folder = tiny_pixels(tmp_path / "m", unet=unet)
    with pytest.raises(FewstepError, match=rf"{error}[^\n]*\n\nhint: fewstep runs a UNet2DModel that takes a picture"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name",
    ["CMStochasticIterativeScheduler", "KarrasVeScheduler", "ScoreSdeVeScheduler", "EDMEulerScheduler",
     "FlowMatchEulerDiscreteScheduler"],
)  # fmt: skip
def test_other_noise_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """As of the consistency models that their authors published."""
    folder = tiny_pixels(tmp_path / "m", unet={"num_class_embeds": 10})
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": name, "sigma_max": 80.0, "num_train_timesteps": 40}))
    with pytest.raises(FewstepError, match=rf"{name}, whose noise is not variance-preserving.*\n\nhint: fewstep reads"):
        load_model(str(folder))


def test_a_network_with_other_parts_is_refused(tiny_pixels_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pixels_folder, tmp_path / "m"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(FewstepError, match=r"a UNet2DModel together with vqvae\n\nhint: "):
        load_model(str(folder))


def test_a_missing_or_broken_part_is_named(tiny_pixels_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pixels_folder, tmp_path / "m"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(FewstepError, match="is not a readable safetensors file"):
        load_model(str(folder))
    weights.unlink()
    (weights.with_suffix(".bin")).write_bytes(b"a pickle")
    with pytest.raises(FewstepError, match=r"cannot load .*\(it has no diffusion_pytorch_model\.safetensors"):
        load_model(str(folder))
    shutil.rmtree(folder / "unet")
    with pytest.raises(FewstepError, match="has no unet folder"):
        load_model(str(folder))


def test_a_lora_of_another_model_and_a_controlnet_do_not_fit(fewstep, tiny_pixels_folder: Path, tmp_path) -> None:
    common = {"model": tiny_pixels_folder, "out": tmp_path / "out", "device": "cpu"}
    done = fewstep("sample", lora="lcm", **common)
    assert_matches("^LoRA lcm does not fit .*: 0 of 92 modules match", done.error)
    Image.new("RGB", (16, 16)).save(tmp_path / "edges.png")
    done = fewstep("sample", controlnet="x/y", control_image=tmp_path / "edges.png", **common)
    assert done.error == f"--controlnet: {tiny_pixels_folder} is a model in pixel space"
    done = fewstep("export", model=tiny_pixels_folder, to="diffusers", out=tmp_path / "exported")
    assert done.error == f"{tiny_pixels_folder} is a model in pixel space, which export does not write"
