"""Files in our dialects, text encoder included, give the same image in diffusers as in fewstep."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from fewstep.families import is_target
from fewstep.lora.layers import initial, shape_of
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.load import load_model
from tests.sessions import pictures


def random_lora(folder: Path, text: bool) -> Adapter:
    """A strong random LoRA of the model's UNet and, if asked, its text encoder."""
    shapes = {name: shape_of(layer) for name, layer in load_model(str(folder)).layers().items()}
    wanted = {n: s for n, s in shapes.items() if s and (text if n.startswith("text_encoder") else is_target(n))}
    torch.manual_seed(3)
    return Adapter({n: LowRank(u.A, 0.3 * torch.randn_like(u.B)) for n, u in initial(wanted, 2, 0).items()})


@pytest.mark.parametrize(
    ("dialect", "text"), [("kohya", False), ("kohya", True), ("diffusers", False), ("diffusers", True)]
)
def test_our_files_mean_the_same_in_diffusers(
    tiny_model_folder: Path, tmp_path: Path, dialect: str, text: bool
) -> None:
    lora, prompt = tmp_path / "x.safetensors", "a red fish"
    save_adapter(lora, random_lora(tiny_model_folder, text), Recipe(method="denoising"), torch.float32, dialect)
    model = str(tiny_model_folder)
    how = {"solver": "ddim", "steps": 2, "guidance_scale": 1.0, "grid": "leading"}
    (ours,) = pictures(model, prompt, [str(lora)], **how)

    theirs = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, local_files_only=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, set_alpha_to_one=True, steps_offset=1)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(str(tmp_path), weight_name=lora.name, local_files_only=True)
    size = ours.pixels.shape[-1]
    image = theirs(prompt, num_inference_steps=2, guidance_scale=1.0, generator=torch.Generator("cpu").manual_seed(0),
                   height=size, width=size, output_type="np").images[0]  # fmt: skip
    expected = torch.from_numpy(np.asarray(image)).permute(2, 0, 1) * 2 - 1
    torch.testing.assert_close(ours.pixels, expected, rtol=0, atol=1e-3)
    (plain,) = pictures(model, prompt, **how)
    assert not torch.allclose(ours.pixels, plain.pixels, atol=1e-2)  # the LoRA does something
