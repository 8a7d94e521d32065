"""Acceleration LoRAs without a recipe: recognised by their names, and by nothing less."""

from pathlib import Path

import pytest

from fewstep.diffusion.schedule import schedule_from_config
from fewstep.families import FAMILIES
from fewstep.lora.known import known_recipe
from fewstep.session.plan import plan_sampling

LCM = [f"unet.{name}" for name in FAMILIES["sd15"].modules()]  # what LCM-LoRA adapts
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
        ("Hyper-SDXL-1step-lora.safetensors", "tcd", 1, (999,)),
        ("dmd2_sdxl_4step_lora_fp16.safetensors", "lcm", 4, (999, 749, 499, 249)),
        ("tdm_sd15_lora.safetensors", "ddim", 4, (999, 749, 499, 249)),
        ("sd_xl_turbo_lora_v1-64dim.safetensors", "euler-a", 4, (999, 749, 499, 249)),
        ("models--jasperai--flash-sdxl/snapshots/0f/pytorch_lora_weights.safetensors", "lcm", 4, (999, 759, 499, 259)),
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


@pytest.mark.parametrize(("name", "steps"), [("Hyper-SDXL-8steps-CFG-lora", 8), ("Hyper-SD15-12steps-CFG-lora", 12)])
@pytest.mark.parametrize("guidance_scale", [None, 8.0])
def test_hyper_that_keeps_guidance_is_sampled_with_it(name: str, steps: int, guidance_scale: float | None) -> None:
    recipe = known_recipe(Path(f"{name}.safetensors"), UNET)
    assert recipe is not None
    plan = plan_sampling(SCHEDULE, [recipe], guidance_scale=guidance_scale)
    assert (plan.solver_name, plan.steps, plan.guidance_scale) == ("ddim", steps, guidance_scale or 5)
    assert [note for note in plan.notes if "carries no recipe" not in note] == []


@pytest.mark.parametrize(
    ("name", "said"), [("swd_sdxl_4steps_lora", "growing resolutions"), ("nitrosd-realism_f16", "of each timestep")]
)
def test_what_its_makers_do_and_we_do_not_is_said(name: str, said: str) -> None:
    recipe = known_recipe(Path(f"{name}.safetensors"), UNET)
    assert recipe is not None
    assert said in plan_sampling(SCHEDULE, [recipe]).notes[1]


def test_the_message_says_that_the_name_decides_and_what_overrules_it() -> None:
    recipe = known_recipe(Path("lcm-lora-sdxl.safetensors"), UNET)
    assert recipe is not None
    (note,) = plan_sampling(SCHEDULE, [recipe]).notes
    assert "its name contains 'lcm'" in note
    assert note.endswith("solver, steps and guidance_scale change that")


@pytest.mark.parametrize(
    "path",
    [
        "lcm/style.safetensors",
        "hyperreal.safetensors",
        "my_lcms.safetensors",
        "x/lora.safetensors",
        "lcm.safetensors",
        "lcm_disabled_portrait.safetensors",
        "hyper_realistic_v2.safetensors",
        "Hyper lora.safetensors",
        "Lightning Bolt VFX SDXL.safetensors",
        "purple lightning background.safetensors",
        "lightning/lora.safetensors",
        "Turbo cars SDXL lora.safetensors",
        "camera flash lora.safetensors",
        "Hyper-FLUX.1-dev-8steps-lora.safetensors",
    ],
)
def test_other_names_say_nothing(path: str) -> None:
    assert known_recipe(Path(path), UNET) is None


@pytest.mark.parametrize(
    ("name", "believed"),
    [
        ("lcm", True),
        ("my favourite LCM", True),
        ("tcd-dreams", True),
        ("hyper sdxl", True),
        ("hyper", False),  # a word of other things needs a second
        ("hyper realistic", False),
        ("Lightning Bolt VFX SDXL", False),
        ("style", False),
    ],
)
def test_what_a_file_adapts_speaks_for_it(name: str, believed: bool) -> None:
    path = Path(f"{name}.safetensors")
    assert (known_recipe(path, LCM) is not None) == believed
    assert known_recipe(path, [*LCM, "unet.conv_in"]) is None  # more than LCM-LoRA adapts
    assert known_recipe(path, [name for name in LCM if ".attn" in name]) is None  # less


def test_a_file_with_a_text_encoder_is_no_acceleration() -> None:
    assert known_recipe(Path("lcm-lora-sdxl.safetensors"), [*UNET, "text_encoder.text_model.x"]) is None
