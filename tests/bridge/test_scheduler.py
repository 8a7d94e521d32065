"""FewstepScheduler: inside a diffusers pipeline it draws what fewstep's own loop draws, for every solver."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, StableDiffusionPipeline
from torch import Tensor

import fewstep
from fewstep.bridge.scheduler import FewstepScheduler
from fewstep.diffusion.consistency import ConsistencyDenoiser
from fewstep.diffusion.guidance import Conditioning, GuidedDenoiser
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.sampler import ImageNoise, sample, sampling_levels
from fewstep.diffusion.schedule import trailing_grid
from fewstep.diffusion.solvers import SOLVERS
from fewstep.errors import FewstepError, UsageError
from fewstep.events import Event, Note, telling
from fewstep.models.network import UNetNetwork
from fewstep.session.plan import plan_sampling
from tests.pipes import STABLE_DIFFUSION, parts_of

ZERO_SNR = STABLE_DIFFUSION | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
SEEDS, STEPS, SCALE = (5, 6), 6, 3.0
SHAPE = (4, 8, 8)


def pipeline(family: str, **config: Any) -> StableDiffusionPipeline:
    parts = parts_of(family)
    parts["scheduler"] = FewstepScheduler.from_config(parts["scheduler"].config, **config)
    pipe = StableDiffusionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 16, generator=draw), torch.randn(2, 5, 16, generator=draw)


def their_loop(pipe: StableDiffusionPipeline, **changes: Any) -> Tensor:
    text, empty = embeddings()
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call = {"num_inference_steps": STEPS, "guidance_scale": SCALE} | changes
    latents: Tensor = pipe(
        prompt_embeds=text, negative_prompt_embeds=empty, generator=generators, output_type="latent", **call
    ).images
    return latents


@torch.no_grad()
def our_loop(pipe: StableDiffusionPipeline, solver: str, grid: str = "auto") -> Tensor:
    schedule = pipe.scheduler.schedule
    plan = plan_sampling(schedule, [], solver, STEPS, SCALE, grid=grid)
    text, empty = (Conditioning(part) for part in embeddings())
    prediction = prediction_named(pipe.scheduler.config.prediction_type)
    denoise: Any = GuidedDenoiser(UNetNetwork(pipe.unet), prediction, text, empty, SCALE)
    noise = ImageNoise(SEEDS, SHAPE)
    levels = sampling_levels(schedule, plan.timesteps)
    return sample(
        ConsistencyDenoiser(denoise) if plan.consistency else denoise, plan.solver, schedule, levels, noise(), noise
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_a_pipeline_draws_what_our_loop_draws(family, solver):
    pipe = pipeline(family, solver=solver)
    theirs = their_loop(pipe)
    assert theirs.isfinite().all()
    torch.testing.assert_close(theirs, our_loop(pipe, solver), rtol=0, atol=1e-4)
    torch.testing.assert_close(their_loop(pipe), theirs, rtol=0, atol=0)  # nothing is left of the run before


@pytest.mark.parametrize("grid", ["lcm", "quadratic", "trailing", "leading", "linspace"])
def test_every_grid(grid):
    pipe = pipeline("sd15", solver="dpm-solver++", grid=grid)
    torch.testing.assert_close(their_loop(pipe), our_loop(pipe, "dpm-solver++", grid), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["dpm-solver++", "heun", "euler-a", "lcm"])
def test_a_start_at_pure_noise(solver):
    pipe = pipeline("sd21", solver=solver, rescale_betas_zero_snr=True)
    theirs = their_loop(pipe)
    assert theirs.isfinite().all()
    torch.testing.assert_close(theirs, our_loop(pipe, solver), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_from_the_middle_ends_at_what_the_network_says(solver):
    """Whatever the level it begins at, inner ones too: if x_0 is known, x_0 is what comes out."""
    scheduler = FewstepScheduler(**STABLE_DIFFUSION, solver=solver, prediction_type="sample")
    draw = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, *SHAPE, generator=draw), torch.randn(2, *SHAPE, generator=draw)
    for begin in range(STEPS):
        scheduler.set_timesteps(STEPS)
        scheduler.set_begin_index(begin)
        x = scheduler.add_noise(x_0, eps, scheduler.timesteps[begin : begin + 1].repeat(2))
        for t in scheduler.timesteps[begin:]:
            x, _ = scheduler.step(x_0, t, x, generator=draw, return_dict=False)
        torch.testing.assert_close(x, x_0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["dpm-solver-3", "dpm-solver++3m", "euler-a"])
@pytest.mark.parametrize("begin", range(4))
def test_a_copy_amid_a_run_goes_on_by_itself(solver, begin):
    """Between steps of the solver as if nothing had been; amid one at first order, as whoever begins there."""
    scheduler = FewstepScheduler(**STABLE_DIFFUSION, solver=solver, prediction_type="sample")
    scheduler.set_timesteps(STEPS)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps[:begin]:
        x = scheduler.step(x * 0.3, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
    ends = []
    for one in (deepcopy(scheduler), scheduler):
        there = x
        for t in one.timesteps[begin:]:
            there = one.step(there * 0.3, t, there, generator=torch.Generator().manual_seed(1)).prev_sample
        ends.append(there)
    assert torch.equal(*ends) or begin % one.solver.calls
    torch.testing.assert_close(*ends, rtol=0, atol=0.5)


def test_it_begins_at_the_timestep_it_is_told():
    scheduler = FewstepScheduler(**STABLE_DIFFUSION, solver="heun")
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.tolist() == [999, 666, 666, 332, 332, 166]  # the last two: first order, to the clean end
    assert [scheduler.index_for_timestep(t) for t in (999, 666, torch.tensor(332), 166)] == [0, 2, 4, 5]
    with pytest.raises(ValueError, match=r"^timestep 7 is not one of \[999, "):
        scheduler.index_for_timestep(7)


def test_timesteps_of_the_callers_choice():
    pipe = pipeline("sd15", solver="dpm-solver")
    chosen = their_loop(pipe, timesteps=[999, 600, 300])
    assert pipe.scheduler.timesteps[::2].tolist() == [999, 600, 300]
    assert pipe.scheduler.num_inference_steps == 6
    assert chosen.isfinite().all()


def test_it_is_saved_and_loaded_alone_and_with_a_pipeline(tmp_path: Path):
    pipe = pipeline("sd21", solver="tcd", grid="trailing", k=10)
    config = {k: v for k, v in pipe.scheduler.config.items() if k[0] != "_"}
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    pipe.save_pretrained(tmp_path / "pipe")
    for back in (
        FewstepScheduler.from_pretrained(tmp_path / "scheduler"),
        StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", safety_checker=None).scheduler,
        FewstepScheduler.from_config(pipe.scheduler.config),
    ):
        assert isinstance(back, fewstep.FewstepScheduler)
        assert {k: v for k, v in back.config.items() if k[0] != "_"} == config
        assert (back.config.solver, back.grid, back.config.k) == ("tcd", "trailing", 10)
        assert back.config.beta_schedule == "scaled_linear"
    theirs = DDIMScheduler.from_config(pipe.scheduler.config)
    assert theirs.config.prediction_type == "v_prediction"
    assert theirs.config.steps_offset == 1  # what it has no use for is kept


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, LCMScheduler])
def test_it_takes_the_config_of_other_schedulers(kind):
    ours = FewstepScheduler.from_config(kind(**STABLE_DIFFUSION).config)
    assert torch.equal(ours.schedule.alpha_bar, FewstepScheduler(**STABLE_DIFFUSION).schedule.alpha_bar)


def test_noise_and_velocity_equal_diffusers():
    ours, theirs = FewstepScheduler(**STABLE_DIFFUSION), DDIMScheduler(**STABLE_DIFFUSION)
    x_0, eps, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    torch.testing.assert_close(ours.add_noise(x_0, eps, t), theirs.add_noise(x_0, eps, t), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.get_velocity(x_0, eps, t), theirs.get_velocity(x_0, eps, t), rtol=0, atol=1e-5)
    video = ours.add_noise(x_0[..., None], eps[..., None], t)
    torch.testing.assert_close(video[..., 0], ours.add_noise(x_0, eps, t))
    assert ours.add_noise(x_0.half(), eps.half(), t).dtype == torch.float16
    assert ours.scale_model_input(x_0, 3) is x_0
    assert len(ours) == 1000


@pytest.mark.parametrize("config", [{}, {"rescale_betas_zero_snr": True}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_betas_and_their_product_equal_diffusers(config):
    config = STABLE_DIFFUSION | {"prediction_type": "v_prediction"} | config
    ours, theirs = FewstepScheduler(**config), DDIMScheduler(**config)
    for name in ("betas", "alphas_cumprod"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    given = [0.1, 0.3, 0.2]
    torch.testing.assert_close(FewstepScheduler(trained_betas=given).betas, torch.tensor(given))


def test_more_steps_than_the_training_grid_has():
    scheduler = FewstepScheduler(**STABLE_DIFFUSION, solver="lcm", grid="quadratic", k=100)
    with pytest.raises(UsageError, match=r"^steps 12 is too many for the quadratic grid, which has 10 timesteps"):
        scheduler.set_timesteps(12)
    events: list[Event] = []
    with telling(events.append):
        scheduler.set_timesteps(6, strength=0.5)
    text = "strength 0.5 leaves too few of the trained timesteps (k = 100): the steps lie between them"
    assert events == [Note(text)]
    assert scheduler.timesteps.tolist() == trailing_grid(6, 500)


def test_a_step_says_its_estimate_and_keeps_the_type():
    scheduler = FewstepScheduler(**STABLE_DIFFUSION, solver="ddim", prediction_type="sample")
    scheduler.set_timesteps(2)
    x, x_0 = torch.randn(1, *SHAPE).half(), torch.randn(1, *SHAPE).half()
    done = scheduler.step(x_0, scheduler.timesteps[0], x)
    assert done.prev_sample.dtype == torch.float16
    assert torch.equal(done.pred_original_sample, x_0)


def test_what_cannot_be():
    with pytest.raises(UsageError, match=r"^unknown solver 'sinus'\n\nhint: known ones: ddim, "):
        FewstepScheduler(solver="sinus")
    with pytest.raises(
        UsageError, match=r"^unknown grid 'karras'\n\nhint: known ones: auto, lcm, quadratic, trailing, "
    ):
        FewstepScheduler(grid="karras")
    with pytest.raises(FewstepError, match=r"^epsilon prediction on a zero-terminal-SNR schedule"):
        FewstepScheduler(**ZERO_SNR | {"prediction_type": "epsilon"})
    with pytest.raises(UsageError, match=r"^dpm-solver divides by alpha"):
        FewstepScheduler(**ZERO_SNR, solver="dpm-solver")
    scheduler = FewstepScheduler(**STABLE_DIFFUSION, solver="dpm-solver-3")
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(torch.zeros(1, 4, 2, 2), 999, torch.zeros(1, 4, 2, 2))
    with pytest.raises(UsageError, match=r"^dpm-solver-3 makes 3 network calls a step.*\n\nhint: use a multiple of 3$"):
        scheduler.set_timesteps(4)
    with pytest.raises(UsageError, match=r"^timesteps \[1000, 3\] are not all inside 0 to 999\n\nhint: "):
        scheduler.set_timesteps(timesteps=[1000, 3])
    with pytest.raises(UsageError, match=r"^neither num_inference_steps nor timesteps is given"):
        scheduler.set_timesteps()
