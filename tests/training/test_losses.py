"""The LCD loss against the published method's formulas, written out independently with diffusers' tables."""

import pytest
import torch
from diffusers import DDIMScheduler

from fewstep.diffusion.consistency import consistency
from fewstep.diffusion.guidance import Conditioning, GuidedDenoiser
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.schedule import clean_level, schedule_from_config
from fewstep.diffusion.solvers import SOLVERS
from fewstep.diffusion.solvers.ddim import jump_to
from fewstep.models.network import UNetNetwork
from fewstep.training.losses import lcd_loss, lcf_loss, pseudo_huber, squared
from tests.tiny import tiny_unet


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_lcd_loss_is_the_published_methods(prediction_type: str) -> None:
    torch.manual_seed(0)
    unet = tiny_unet().eval()
    network = UNetNetwork(unet)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    schedule, bar = schedule_from_config(scheduler.config), scheduler.alphas_cumprod
    x_0, eps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    text, empty = torch.randn(3, 5, 16), torch.randn(1, 5, 16).expand(3, -1, -1)
    s = torch.tensor([19, 499, 999])
    t = (s - 20).clamp(min=0)
    w = 7.5

    # The published method: LCM's scalings, guided x_0 and eps extrapolated, one DDIM step, pseudo-Huber.
    def shape(v: torch.Tensor) -> torch.Tensor:
        return v.view(-1, 1, 1, 1)

    def x_0_and_eps(x, steps, text):
        out, a, b = unet(x, steps, text).sample, shape(bar[steps] ** 0.5), shape((1 - bar[steps]) ** 0.5)
        if prediction_type == "epsilon":
            return (x - b * out) / a, out
        return a * x - b * out, a * out + b * x

    def scalings(steps):
        scaled = shape(steps / 0.1)
        return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5

    with torch.no_grad():
        noisy = shape(bar[s] ** 0.5) * x_0 + shape((1 - bar[s]) ** 0.5) * eps
        skip, out = scalings(s)
        student = skip * noisy + out * x_0_and_eps(noisy, s, text)[0]
        (x_c, e_c), (x_u, e_u) = x_0_and_eps(noisy, s, text), x_0_and_eps(noisy, s, empty)
        x_g, e_g = x_c + w * (x_c - x_u), e_c + w * (e_c - e_u)
        stepped = shape(bar[t] ** 0.5) * x_g + shape((1 - bar[t]) ** 0.5) * e_g
        skip, out = scalings(t)
        aim = skip * stepped + out * x_0_and_eps(stepped, t, text)[0]
        published = (((student - aim) ** 2 + 0.001**2) ** 0.5 - 0.001).mean()

        def denoiser(**more):
            return GuidedDenoiser(network, prediction_named(prediction_type), Conditioning(text), **more)

        ours = lcd_loss(
            denoiser(),
            denoiser(),
            denoiser(empty=Conditioning(empty), guidance_scale=1 + w),
            SOLVERS["ddim"],
            schedule,
            x_0,
            schedule.at(s),
            schedule.at(t),
            eps,
            lambda d: pseudo_huber(d, 0.001),
        )
    torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-6)


def test_the_target_and_the_teacher_get_no_gradient() -> None:
    schedule = schedule_from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
    a, b, c = (torch.tensor(1.0, requires_grad=True) for _ in range(3))
    x = torch.randn(2, 1, 2, 2)
    loss = lcd_loss(
        lambda x, level: a * x,
        lambda x, level: b * x,
        lambda x, level: c * x,
        SOLVERS["dpm-solver++2s"],
        schedule,
        x,
        schedule.at([99, 999]),
        schedule.at([79, 979]),
        torch.randn_like(x),
        lambda d: pseudo_huber(d, 0.001),
    )
    loss.backward()
    assert a.grad is not None
    assert b.grad is None
    assert c.grad is None


def test_pseudo_huber_is_quadratic_near_zero_and_absolute_far_away() -> None:
    d = torch.tensor([1e-6], dtype=torch.float64)
    torch.testing.assert_close(pseudo_huber(d, 0.001), d**2 / 0.002, rtol=1e-3, atol=0)
    torch.testing.assert_close(pseudo_huber(d * 1e9, 0.001), torch.tensor([1000.0 - 0.001], dtype=torch.float64))


def test_the_lcf_loss_is_the_papers() -> None:
    """Both points are the same image and noise, and no teacher is asked: only student and target are called."""
    torch.manual_seed(0)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule, bar = schedule_from_config(scheduler.config), scheduler.alphas_cumprod
    network = UNetNetwork(tiny_unet().eval())
    x_0, eps, text = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 5, 16)
    s = torch.tensor([19, 499, 999])
    t = (s - 20).clamp(min=0)

    def boundary(at):
        a, b, scaled = (x.view(-1, 1, 1, 1) for x in (bar[at] ** 0.5, (1 - bar[at]) ** 0.5, at / 0.1))
        noisy = a * x_0 + b * eps
        clean = (noisy - b * network(noisy, at, Conditioning(text))) / a
        return 0.25 / (scaled**2 + 0.25) * noisy + scaled / (scaled**2 + 0.25) ** 0.5 * clean

    denoiser = GuidedDenoiser(network, prediction_named("epsilon"), Conditioning(text))
    with torch.no_grad():
        ours = lcf_loss(denoiser, denoiser, x_0, schedule.at(s), schedule.at(t), eps, squared)
        expected = ((boundary(s) - boundary(t)) ** 2).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_the_tcd_loss_is_zero_where_jumps_agree_already() -> None:
    """Of one image every jump along the ODE is exact, so that all losses vanish; a wrong student's does not."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule, x_0, eps = schedule_from_config(scheduler.config), torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    s = torch.tensor([999, 999, 499, 19])
    t = (s - 20).clamp(min=0)
    m = torch.tensor([979, 0, 123, 0])

    def loss(student):
        levels, end = (schedule.at(x) for x in (s, t)), schedule.at(m)
        return lcd_loss(student, exact, exact, SOLVERS["ddim"], schedule, x_0, *levels, eps, squared, jump_to(end))

    def exact(x, level):
        return x_0

    torch.testing.assert_close(loss(exact), torch.tensor(0.0), rtol=0, atol=1e-6)
    assert loss(lambda x, level: x_0 + 0.1) > 1e-4


@pytest.mark.parametrize("psi", ["ddim", "dpm-solver", "dpm-solver-3", "dpm-solver++2s", "heun"])
@pytest.mark.parametrize("kind", ["lcd", "tcd", "lcf"])
def test_a_last_step_to_the_clean_level_aims_at_the_image_itself(psi, kind) -> None:
    """Whatever solver: nothing divides by a sigma of 0, and of one image the aim holds none of the noise."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule, x_0, eps = schedule_from_config(scheduler.config), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    levels = schedule.at(torch.tensor([99, 19])), clean_level().expand(2)
    shift = torch.tensor(0.1, requires_grad=True)

    def exact(x, level):
        return x_0

    def student(x, level):
        return x_0 + shift

    if kind == "lcf":
        loss = lcf_loss(student, exact, x_0, *levels, eps, squared)
    else:
        jump = consistency if kind == "lcd" else jump_to(levels[1])
        loss = lcd_loss(student, exact, exact, SOLVERS[psi], schedule, x_0, *levels, eps, squared, jump)
    loss.backward()
    assert loss.item() == pytest.approx(0.01, rel=0.01)
    assert shift.grad.item() == pytest.approx(0.2, rel=0.01)


def test_the_tcd_loss_ends_where_the_published_method_does() -> None:
    """TCD's jump by diffusers' own scheduler: what its `step` gives at eta = 0 is where both jumps end."""
    torch.manual_seed(0)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    schedule, bar = schedule_from_config(scheduler.config), scheduler.alphas_cumprod
    network, text = UNetNetwork(tiny_unet().eval()), torch.randn(1, 5, 16)
    x_0, eps = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    s, t, m = 499, 479, 259

    def stepped(x, start, end):
        scheduler.num_inference_steps = 1  # so that a step goes from any timestep to any other
        scheduler.config.num_train_timesteps, kept = start - end, scheduler.config.num_train_timesteps
        out = scheduler.step(network(x, torch.tensor([start]), Conditioning(text)), start, x).prev_sample
        scheduler.config.num_train_timesteps = kept
        return out

    denoiser = GuidedDenoiser(network, prediction_named("epsilon"), Conditioning(text))
    with torch.no_grad():
        x_s = bar[s] ** 0.5 * x_0 + (1 - bar[s]) ** 0.5 * eps
        expected = ((stepped(x_s, s, m) - stepped(stepped(x_s, s, t), t, m)) ** 2).mean()
        *levels, end = (schedule.at(torch.tensor([x])) for x in (s, t, m))
        three = denoiser, denoiser, denoiser
        ours = lcd_loss(*three, SOLVERS["ddim"], schedule, x_0, *levels, eps, squared, jump_to(end))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-8)
