"""Acceleration LoRAs without a recipe: recognised by their names, and by nothing less."""

from pathlib import Path

import pytest

from fewstep.diffusion.schedule import schedule_from_config
from fewstep.lora.known import known_recipe
from fewstep.planning import plan_sampling

SCHEDULE = schedule_from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
UNET = ["down_blocks.0.resnets.0.conv1"]


@pytest.mark.parametrize(
    ("path", "solver", "steps", "timesteps"),
    [
        (
            "hub/models--a--lcm-lora-sdv1-5/snapshots/0f/pytorch_lora_weights.safetensors",
            "lcm",
            4,
            (999, 759, 499, 259),
        ),
        ("lcm-lora-sdxl/pytorch_lora_weights.safetensors", "lcm", 4, (999, 759, 499, 259)),
        ("LCM_LoRA_SD15.safetensors", "lcm", 4, (999, 759, 499, 259)),
        ("TCD-SD15-LoRA.safetensors", "tcd", 4, (999, 759, 499, 259)),
        ("Hyper-SD15-2steps-lora.safetensors", "ddim", 2, (999, 499)),
        ("pcm_sd15_smallcfg_2step_converted.safetensors", "ddim", 2, (999, 499)),
        ("sd15/pcm_sd15_lcmlike_lora_converted.safetensors", "lcm", 4, (999, 759, 499, 259)),
        ("sdxl_lightning_8step_lora.safetensors", "ddim", 8, (999, 874, 749, 624, 499, 374, 249, 124)),
    ],
)
def test_known_names(path: str, solver: str, steps: int, timesteps: tuple[int, ...]) -> None:
    recipe = known_recipe(Path(path), UNET)
    assert recipe is not None
    plan = plan_sampling(SCHEDULE, [recipe])
    assert (plan.solver_name, plan.steps, plan.guidance_scale) == (solver, steps, 1)
    assert plan.timesteps == timesteps
    assert "carries no recipe" in plan.notes[0]


@pytest.mark.parametrize(("name", "steps"), [("pcm_sdxl_normalcfg_8step_converted", 8), ("PCM-normalcfg-16steps", 16)])
def test_pcm_without_guidance_in_it_is_sampled_with_guidance(name: str, steps: int) -> None:
    recipe = known_recipe(Path(f"{name}.safetensors"), UNET)
    assert recipe is not None
    assert recipe.accelerates
    plan = plan_sampling(SCHEDULE, [recipe])
    assert (plan.solver_name, plan.steps, plan.guidance_scale) == ("ddim", steps, 7.5)
    assert [note for note in plan.notes if "carries no recipe" not in note] == []


@pytest.mark.parametrize(
    "path", ["lcm/style.safetensors", "hyperreal.safetensors", "my_lcms.safetensors", "x/lora.safetensors"]
)
def test_other_names_say_nothing(path: str) -> None:
    assert known_recipe(Path(path), UNET) is None


def test_a_file_with_a_text_encoder_is_no_acceleration() -> None:
    assert known_recipe(Path("lcm.safetensors"), [*UNET, "text_encoder.text_model.x"]) is None
