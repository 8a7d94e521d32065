"""accelerate: any pipeline in few steps, exactly, and back again."""

import inspect
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

import fewstep
from fewstep import accelerate
from fewstep.assets import ACCELERATION, FOLDER, MODEL, STYLES, shipped_lora, shipped_model
from fewstep.bridge.scheduler import FewstepScheduler
from fewstep.errors import FewstepError, UsageError
from fewstep.events import Event, Note, telling
from fewstep.lora.recipe import Recipe
from studies.pipelines import NONE, WORKS, cell
from tests import pipes
from tests.pipes import draw, random_lora, row_named

DOCS = Path(__file__).parents[2] / "docs"
STYLE = Recipe(method="denoising")
TEXT, IMAGE = row_named("text-to-image"), row_named("image-to-image")
REPRESENTATIVE = [
    ("text-to-image", "sd15"),
    ("image-to-image", "sdxl"),
    ("inpainting", "sd21"),
    ("ControlNet, image-to-image", "ssd-1b"),
    ("T2I-Adapter", "sdxl"),
    ("IP-Adapter", "sd15"),
    ("AnimateDiff", "sd15"),
]


@pytest.fixture
def pipe() -> Any:
    return pipes.build(TEXT, "sd15")


@pytest.fixture
def lora(tmp_path: Path, pipe: Any) -> Path:
    return random_lora(tmp_path / "fast.safetensors", pipe)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": x.clone() for name, part in parts.items() for key, x in part.state_dict().items()}


def unet_calls(pipe: Any) -> list[int]:
    """Grows by the batch size at every call of the UNet."""
    calls: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda unet, inputs: calls.append(len(inputs[0])))
    return calls


# --- the table ----------------------------------------------------------------------------------------------


def written_table() -> dict[str, dict[str, str]]:
    """docs/pipelines.md: row -> family -> cell."""
    lines = [line for line in (DOCS / "pipelines.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.parametrize(("title", "family"), REPRESENTATIVE)
def test_pipelines_are_accelerated_live_and_folded(title, family):
    assert written_table()[title][family] == cell(row_named(title), family) == WORKS


def test_the_table_has_every_pipeline_and_nothing_fails():
    table = written_table()
    assert list(table) == [row.title for row in pipes.ROWS]
    for row in pipes.ROWS:
        for family, kind in pipes.FAMILIES.items():
            there = row.two if kind.encoders == 2 else row.one
            if family not in row.fails:
                assert table[row.title][family] == (WORKS if there else NONE)


@pytest.mark.long
def test_the_whole_page_is_current(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studies.pipelines", str(tmp_path / "page.md")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(DOCS.parent), str(DOCS.parent / "src")))}
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "page.md").read_bytes() == (DOCS / "pipelines.md").read_bytes(), (
        "run python -m studies.pipelines"
    )


# --- the pictures are fewstep's -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji() -> Any:
    loaded = StableDiffusionPipeline.from_pretrained(shipped_model(MODEL), local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def sampled(prompt: str, *loras: str, **options: object) -> np.ndarray:
    (picture,) = fewstep.sample(prompt, loras=loras, seed=3, device="cpu", dtype="fp32", **options)
    return (picture.pixels.permute(1, 2, 0).numpy() + 1) / 2


@pytest.mark.parametrize("folded", [False, True])
def test_the_embedded_model_draws_what_fewstep_sample_draws(emoji, folded):
    with accelerate(emoji, [ACCELERATION, f"{STYLES[0]}:0.8"], folded=folded) as fast:
        assert (fast.plan.solver_name, fast.plan.steps, fast.plan.guidance_scale) == ("lcm", 4, 1.0)
        image = emoji("castle", output_type="np", generator=torch.Generator().manual_seed(3)).images[0]
    ours = sampled("castle", ACCELERATION, f"{STYLES[0]}:0.8")
    assert np.abs(image - ours).max() < 1e-4
    assert ours.std() > 0.1


def test_without_loras_the_models_own_recipe_is_followed(emoji):
    with accelerate(emoji, steps=4) as fast:
        own = json.loads((FOLDER / MODEL / "fewstep.json").read_text())["guidance_scale"]
        assert (fast.plan.solver_name, fast.plan.guidance_scale) == ("dpm-solver++", own)
        image = emoji("castle", output_type="np", generator=torch.Generator().manual_seed(3)).images[0]
    assert np.abs(image - sampled("castle", solver="dpm-solver++", steps=4)).max() < 1e-4


@pytest.mark.filterwarnings("ignore")  # PEFT's and diffusers' own
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_sum_is_what_diffusers_adds_with_peft(tmp_path, family, folded):
    """Their loader and set_adapters, text encoders too; our scheduler in both."""
    ours, theirs = pipes.build(TEXT, family), pipes.build(TEXT, family)
    fast = random_lora(tmp_path / "fast.safetensors", ours, without="add_embedding")  # which diffusers drops
    style = random_lora(tmp_path / "style.safetensors", ours, STYLE, seed=1, without="add_embedding")
    theirs.load_lora_weights(fast, adapter_name="fast")
    theirs.load_lora_weights(style, adapter_name="style")
    theirs.set_adapters(["fast", "style"], adapter_weights=[1.0, 0.6])
    for weight, files in ((1.0, [fast, f"{style}:0.6"]), ([1.0, 2.0], [fast, f"{style}:0.3"])):
        with (
            accelerate(ours, files, weight, folded=folded),
            accelerate(theirs, solver="lcm", steps=4, guidance_scale=1),
        ):
            torch.testing.assert_close(draw(ours, TEXT), draw(theirs, TEXT), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folded", [False, True])
def test_a_style_that_diffusers_has_loaded_stays(tmp_path, pipe, lora, folded):
    style = random_lora(tmp_path / "style.safetensors", pipe, STYLE, seed=1)
    with accelerate(pipe, [lora, style]):
        both = draw(pipe, TEXT)
    pipe.load_lora_weights(style)
    with accelerate(pipe, lora, folded=folded):
        torch.testing.assert_close(draw(pipe, TEXT), both, rtol=0, atol=1e-4)


def test_text_encoder_parts_are_felt(tmp_path):
    pipe = pipes.build(TEXT, "sdxl")
    whole = random_lora(tmp_path / "whole.safetensors", pipe)
    unet = random_lora(tmp_path / "unet.safetensors", pipe, without="text_encoder")
    pictures = []
    for file in (whole, unet, f"{whole}:1,te=0"):
        with accelerate(pipe, file):
            pictures.append(draw(pipe, TEXT))
    assert (pictures[0] - pictures[2]).abs().max() > 1e-3
    assert pictures[1].shape == pictures[2].shape


# --- there and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [False, True])
def test_undo_puts_everything_back(pipe, lora, folded):
    kind, scheduler, before = type(pipe), pipe.scheduler, weights(pipe)
    names = [name for name, _ in pipe.unet.named_modules()]
    config = dict(pipe.config)
    fast = accelerate(pipe, lora, folded=folded)
    assert isinstance(pipe.scheduler, FewstepScheduler)
    assert isinstance(pipe, kind)
    assert type(pipe).__name__ == kind.__name__
    assert [name for name, _ in pipe.unet.named_modules()] == names
    assert any(not torch.equal(x, before[key]) for key, x in weights(pipe).items()) == folded
    fast.undo()
    fast.undo()
    assert type(pipe) is kind
    assert pipe.scheduler is scheduler
    assert dict(pipe.config) == config
    after = weights(pipe)
    assert after.keys() == before.keys()
    assert all(torch.equal(x, before[key]) for key, x in after.items())
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_an_error_inside_the_block_undoes_too(pipe, lora):
    kind = type(pipe)
    with pytest.raises(KeyError), accelerate(pipe, lora):
        raise KeyError
    assert type(pipe) is kind


def test_calls_default_to_the_plan_and_may_say_otherwise(pipe, lora):
    calls = unet_calls(pipe)
    with accelerate(pipe, lora):
        parameters = inspect.signature(type(pipe).__call__).parameters
        assert list(parameters) == list(inspect.signature(StableDiffusionPipeline.__call__).parameters)
        assert parameters["num_inference_steps"].default == 4
        assert parameters["guidance_scale"].default == 1.0
        draw(pipe, TEXT)
        draw(pipe, TEXT, num_inference_steps=2)
        draw(pipe, TEXT, guidance_scale=1.5)
    assert calls == [1] * 6 + [2] * 4
    with accelerate(pipe, lora, steps=6, guidance_scale=1.2, solver="dpm-solver"):
        draw(pipe, TEXT)
    assert calls[10:] == [2] * 6


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
def test_no_strength_takes_steps_away(tmp_path, strength):
    for title in ("image-to-image", "inpainting", "AnimateDiff, video-to-video"):
        row = row_named(title)
        pipe = pipes.build(row, "sd15")
        calls = unet_calls(pipe)
        notes: list[Event] = []
        with accelerate(pipe, random_lora(tmp_path / f"{title[:5]}.safetensors", pipe)):
            with telling(notes.append):
                assert draw(pipe, row, strength=strength).isfinite().all()
            assert [str(note).count("leaves too few of the trained") for note in notes] == [1] * (strength < 0.08)
            assert len(calls) == 4
            assert pipe.scheduler.timesteps[0] <= max(strength * 1000, 4)


def test_the_callers_timesteps_and_scheduler_are_followed(tmp_path):
    pipe = pipes.build(IMAGE, "sdxl")
    calls = unet_calls(pipe)
    with accelerate(pipe, random_lora(tmp_path / "fast.safetensors", pipe)):
        draw(pipe, IMAGE, timesteps=[999, 700, 400, 100], strength=0.5)
        assert len(calls) == 2  # diffusers' rule
        draw(pipe, IMAGE, denoising_start=0.5)
        assert len(calls) == 4
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        draw(pipe, IMAGE, num_inference_steps=10, strength=0.5)
        assert len(calls) == 9


@pytest.mark.filterwarnings("ignore")
def test_another_pipeline_around_the_same_unet_shares(pipe, lora):
    calls = unet_calls(pipe)
    with accelerate(pipe, lora) as fast:
        other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        with pytest.raises(FewstepError, match=r"^the UNet of this \w+ has LoRAs from another.*\n\nhint: use share"):
            accelerate(other, lora)
        with fast.share(other):
            draw(other, IMAGE, strength=0.1)
        assert type(other) is StableDiffusionImg2ImgPipeline
        with pytest.raises(FewstepError, match=r"^StableDiffusionPipeline has another UNet"):
            fast.share(pipes.build(TEXT, "sd15"))
    assert len(calls) == 4


def test_factors_follow_their_layers_type(pipe, lora):
    with accelerate(pipe, lora):
        single = draw(pipe, TEXT)
        pipe.to(torch.bfloat16)
        assert (draw(pipe, TEXT) - single).abs().mean() < 0.1


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.5}, {"lora": []}, {"folded": True}])
def test_nothing_to_accelerate_with_is_refused_and_changes_nothing(pipe, options):
    kind, scheduler = type(pipe), pipe.scheduler
    with pytest.raises(UsageError, match=r"^nothing makes this StableDiffusionPipeline fast: no LoRA") as error:
        accelerate(pipe, **options)
    assert error.value.hint.startswith(
        'give a LoRA, as in accelerate(pipe, "lcm-lora-sdv1-5"), or the steps and solver'
    )
    assert (type(pipe), pipe.scheduler) == (kind, scheduler)


def test_without_a_lora_a_few_step_model_is_sampled_as_asked_or_as_its_recipe_says(pipe, tmp_path):
    with accelerate(pipe, solver="lcm", steps=4) as fast:
        assert (fast.plan.solver_name, fast.plan.steps) == ("lcm", 4)
    with accelerate(pipe, steps=2) as fast:
        assert fast.plan.steps == 2
    recipe = Recipe(method="lcd", solver="lcm", steps=3, guidance_scale=1.0, k=20)
    (tmp_path / "fewstep.json").write_text(recipe.model_dump_json())
    pipe.register_to_config(_name_or_path=str(tmp_path))
    with accelerate(pipe) as fast:
        assert (fast.plan.solver_name, fast.plan.steps, fast.plan.guidance_scale) == ("lcm", 3, 1.0)


def test_a_style_alone_is_plugged_in_and_the_plan_said(pipe, tmp_path, capsys):
    style = random_lora(tmp_path / "style.safetensors", pipe, STYLE)
    with accelerate(pipe, style):
        assert (
            "note: none of the LoRAs is an acceleration: dpm-solver++ in 20 steps, guidance 7.5"
            in capsys.readouterr().err
        )
    with accelerate(pipe, style, steps=10):
        assert "acceleration" not in capsys.readouterr().err


# --- what is refused ----------------------------------------------------------------------------------------


def test_pipelines_of_another_kind():
    with pytest.raises(
        FewstepError, match=r"^str is not a diffusers pipeline\n\nhint: accelerate is for pipelines around"
    ):
        accelerate("emoji")
    transformer = DiTTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=4, sample_size=4)
    dit = DiTPipeline(transformer, AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)), DDIMScheduler())
    with pytest.raises(FewstepError, match=r"^DiTPipeline has no UNet\n\nhint: "):
        accelerate(dit)


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        DDPMScheduler(variance_type="learned_range"),
    ],
)  # fmt: skip
def test_models_of_another_kind(pipe, scheduler):
    pipe.scheduler = scheduler
    with pytest.raises(FewstepError, match=r"^\w+ of StableDiffusionPipeline is not for a Stable Diffusion model\n\n"):
        accelerate(pipe)


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path, pipe, lora):
    kind, before = type(pipe), weights(pipe)
    other = random_lora(tmp_path / "other.safetensors", pipes.build(TEXT, "sdxl"))
    for message, arguments in {
        r"^LoRA .*other.safetensors does not fit StableDiffusionPipeline: \d+ of \d+ modules match": {"lora": other},
        "^LoRA file not found: nowhere.safetensors\n\nhint: ": {"lora": "nowhere.safetensors"},
        r"^weight \[1, 2\] does not fit 1 LoRA\n\nhint: ": {"lora": lora, "weight": [1, 2]},
        "^weight nan does not fit 1 LoRA": {"lora": lora, "weight": float("nan")},
        "^unknown solver 'sinus'": {"lora": lora, "solver": "sinus"},
        "^dpm-solver makes 2 network calls a step": {"lora": lora, "solver": "dpm-solver", "steps": 5},
    }.items():
        with pytest.raises(FewstepError, match=message):
            accelerate(pipe, **arguments)
    assert type(pipe) is kind
    assert all(torch.equal(x, before[key]) for key, x in weights(pipe).items())
    with accelerate(pipe, lora), pytest.raises(FewstepError, match=r"^this StableDiffusionPipeline is accelerated al"):
        accelerate(pipe, lora)


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_hooks_that_would_go_unseen_are_refused(pipe, lora):
    pipe.unet.compile()
    with pytest.raises(
        FewstepError, match=r"^the UNet is compiled.*\n\nhint: accelerate it first, or use folded=True$"
    ):
        accelerate(pipe, lora)
    accelerate(pipe, lora, folded=True).undo()
    pipe.unet._compiled_call_impl = None
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(FewstepError, match=r"^the projections of the UNet are fused\n\nhint: call pipe.unfuse"):
        accelerate(pipe, lora)


def test_quantised_weights_are_not_folded_into(pipe, lora):
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    before = weights(pipe)
    with pytest.raises(
        FewstepError, match=r"^the weight of mid_block.*to_q is quantised or offloaded\n\nhint: use fold"
    ):
        accelerate(pipe, lora, folded=True)
    assert all(torch.equal(x, before[key]) for key, x in weights(pipe).items())
    accelerate(pipe, lora).undo()


def test_it_is_behind_the_public_door():
    assert {"accelerate", "FewstepScheduler"} <= set(fewstep.__all__)
    assert fewstep.FewstepScheduler is FewstepScheduler


def their_way(kind: Any) -> Any:
    """The embedded model as diffusers' LCM-LoRA guide says: scheduler changed, LoRA loaded, steps and guidance told.

    original_inference_steps is the LoRA's 1000 / k, and the timesteps are the LoRA's, as its card says; diffusers' own
    are those of k = 20.
    """
    pipe = kind.from_pretrained(FOLDER / MODEL)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=20)
    pipe.load_lora_weights(str(shipped_lora("lcm")))
    pipe.set_progress_bar_config(disable=True)
    return partial(pipe, timesteps=[999, 749, 499, 249], guidance_scale=1.0, output_type="np")


def our_way(kind: Any) -> Any:
    pipe = kind.from_pretrained(FOLDER / MODEL)
    accelerate(pipe, "lcm")
    pipe.set_progress_bar_config(disable=True)
    return partial(pipe, output_type="np")


def test_the_embedded_model_draws_what_diffusers_guide_draws():
    drawn = [
        way(StableDiffusionPipeline)("a cat face", generator=torch.Generator().manual_seed(0)).images[0]
        for way in (their_way, our_way)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() < 1 / 255


def test_a_low_strength_draws_where_diffusers_guide_leaves_no_step():
    image = Image.open(FOLDER / "kit" / "drawings" / "noto-2018" / "1f680.webp").convert("RGB")
    asked = {"prompt": "a rocket", "image": image, "strength": 0.15}
    with pytest.raises((RuntimeError, ValueError)):
        their_way(StableDiffusionImg2ImgPipeline)(**asked)
    notes: list[Event] = []
    with telling(notes.append):
        drawn = our_way(StableDiffusionImg2ImgPipeline)(**asked).images[0]
    assert [note.text.partition(":")[0] for note in notes if isinstance(note, Note)] == [
        "strength 0.15 leaves too few of the trained timesteps (k = 50)"
    ]
    assert 0.01 < np.abs(drawn - np.array(image) / 255).mean() < 0.15  # near the picture it began with, and not it
