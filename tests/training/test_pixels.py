"""Consistency models in pixel space: the two methods' laws on Gaussians, their schedules, and what they may touch."""

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fewstep.configs import DistillConfig, FinetuneConfig, build
from fewstep.diffusion.consistency import boundary_scalings, consistency
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.schedule import NoiseLevel, clean_level, schedule_from_config
from fewstep.diffusion.solvers import SOLVERS
from fewstep.errors import UsageError
from fewstep.lora.files import open_lora
from fewstep.models.load import load_model
from fewstep.models.model import Model
from fewstep.models.text import no_text
from fewstep.training.adapt import Batch
from fewstep.training.losses import lcd_loss, lcf_loss, squared
from fewstep.training.methods import METHODS, Method, method_of
from fewstep.training.methods.consistency import CLEAN
from fewstep.training.methods.ct import (
    CT,
    decay_at,
    doubling_levels,
    root_levels,
    shrinking_steps,
    timestep_grid,
)
from fewstep.training.methods.denoising import Denoising
from fewstep.training.networks import STUDENT, networks_of
from tests.diffusion.gaussian import draws, several_gaussians, slope
from tests.tiny import tiny_images

law = settings(max_examples=40, deadline=None)
SCHEDULE = schedule_from_config({})  # DDPM's own
DATA = several_gaussians()
Z = draws(8, 5, 2, 2)
TINY = ["--steps", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]


def at(t: float) -> NoiseLevel:
    return clean_level(1, torch.float64) if t == CLEAN else SCHEDULE.at(t, torch.float64)


def true(x: Tensor, level: NoiseLevel) -> Tensor:
    """The network's share of the true consistency function, f = c_skip x + c_out x_0."""
    if level.sigma.eq(0).all():
        return torch.full_like(x, 1e6)  # the boundary leaves nothing of it
    c_skip, c_out = boundary_scalings(level.t.view(-1, 1, 1, 1))
    return (DATA.flow(x, level, clean_level(1, torch.float64)) - c_skip * x) / c_out


# --- consistency distillation --------------------------------------------------------------------------------


def cd_residual(psi: str, s: float, t: float) -> float:
    """The root of CD's loss of the true consistency function, from points of the data's own ODE."""
    x_0 = DATA.mean + DATA.std * Z
    eps = (DATA.x(Z, at(s)) - at(s).alpha * x_0) / at(s).sigma  # so that x_s is on the path of x_0
    levels = at(s), at(t)
    loss = lcd_loss(true, true, DATA.denoise, SOLVERS[psi], SCHEDULE, x_0, *levels, eps, squared, consistency)
    return math.sqrt(float(loss))


@pytest.mark.parametrize(("psi", "order"), [("ddim", 1), ("heun", 2), ("dpm-solver++2s", 2), ("dpm-solver-3", 3)])
def test_cds_residual_falls_at_the_solvers_order(psi: str, order: int) -> None:
    """The error of one step of a solver of order p is of order p + 1."""
    steps = [8.0, 16.0, 32.0]
    errors = [cd_residual(psi, 400 + step / 2, 400 - step / 2) for step in steps]
    assert slope(steps, errors) == pytest.approx(order + 1, abs=0.25)
    assert errors[0] < 1e-3


@pytest.mark.parametrize(("s", "t"), [(999, 979), (519, 499), (19, CLEAN), (999, CLEAN)])
def test_cds_residual_vanishes_with_an_exact_solver(s: int, t: int) -> None:
    x_s = DATA.x(Z, at(s))
    x_t = DATA.flow(x_s, at(s), at(t))
    apart = consistency(true, x_s, at(s)) - consistency(true, x_t, at(t))
    assert float(apart.abs().max()) < 1e-10
    other = consistency(DATA.denoise, x_s, at(s)) - consistency(DATA.denoise, x_t, at(t))
    assert float(other.abs().max()) > 1e-4


# --- consistency training ------------------------------------------------------------------------------------


@law
@given(st.integers(2, 151), st.integers(0, 10**6))
def test_cts_gradient_is_cds_with_the_score_of_the_data(levels: int, place: int) -> None:
    """Theorem 2 of arXiv 2303.01469, which is exact where f is linear, as of a Gaussian: with DDIM as the solver.

    The mean over the images that may be behind x_s is that over two of them, one deviation to each side.
    """
    grid = timestep_grid(levels, 1000)
    t, s = list(pairwise(grid))[place % (levels - 1)]
    x_s, (alpha, sigma) = DATA.x(Z, at(s)), (at(s).alpha, at(s).sigma)
    spread = DATA.std * sigma / DATA.spread(at(s))  # of x_0, given x_s
    shift = torch.zeros(1, 5, 1, 1, dtype=torch.float64, requires_grad=True)

    def student(x: Tensor, level: NoiseLevel) -> Tensor:
        return 0.9 * true(x, level) + shift

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, shift)[0]

    both = [DATA.denoise(x_s, at(s)) + sign * spread for sign in (1, -1)]
    trained = [
        gradient(lcf_loss(student, true, x_0, at(s), at(t), (x_s - alpha * x_0) / sigma, squared)) for x_0 in both
    ]
    x_0 = both[0]
    distilled = gradient(
        lcd_loss(student, true, DATA.denoise, SOLVERS["ddim"], SCHEDULE, x_0, at(s), at(t), (x_s - alpha * x_0) / sigma,
                 squared)
    )  # fmt: skip
    torch.testing.assert_close((trained[0] + trained[1]) / 2, distilled, rtol=1e-9, atol=1e-9)
    assert float(distilled.abs().max()) > 1e-4


def test_the_number_of_levels_is_the_papers() -> None:
    """Of CIFAR-10: s_0 = 2, s_1 = 150 in 800,000 iterations, mu_0 = 0.9; of iCT: 10, 1,280 in 400,000."""
    counts = [root_levels(k, 800_000, 2, 150) for k in (0, 1, 400_000, 800_000)]
    assert counts == [2, 3, 107, 151]
    assert [decay_at(n, 2, 0.9) for n in (2, 151)] == pytest.approx([0.9, 0.9 ** (2 / 151)])
    assert decay_at(151, 2, 0.0) == 0
    stages = [doubling_levels(50_000 * stage, 400_000, 10, 1280) for stage in range(9)]
    assert stages == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    assert doubling_levels(49_999, 400_000, 10, 1280) == 11


@law
@given(st.integers(1, 3000), st.integers(2, 50), st.integers(0, 400))
def test_the_grid_becomes_finer_and_never_coarser(steps: int, first: int, more: int) -> None:
    for count in (root_levels, doubling_levels):
        counts = [count(k, steps, first, first + more) for k in range(steps)]
        assert counts == sorted(counts)
        assert first <= counts[0]
        assert counts[-1] <= first + more + 1
        decays = [decay_at(n, first, 0.95) for n in counts]
        assert 0.9 < decays[0] <= decays[-1] < 1


@law
@given(st.integers(2, 1001))
def test_a_grid_goes_from_the_clean_level_to_the_last_timestep(levels: int) -> None:
    grid = timestep_grid(levels, 1000)
    assert (grid[0], grid[-1], len(grid)) == (CLEAN, 999, levels)
    lengths = [s - t for t, s in pairwise(grid)]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


@law
@given(st.integers(2, 1001), st.integers(1, 1000))
def test_shrinking_steps_go_a_share_of_the_way_to_the_clean_level(levels: int, T: int) -> None:
    starts, ends = shrinking_steps(levels, T)
    assert starts.tolist() == list(range(T))
    lengths, ways = starts - ends, starts - CLEAN
    assert (lengths >= 1).all()  # so every step goes down
    assert (ends >= CLEAN).all()
    exact = ways / (levels - 1)
    assert ((lengths - exact >= -1e-3) & (lengths - exact < 1)).all()
    assert (ends.diff() >= 0).all()


def test_the_easy_curriculum_begins_as_a_denoiser_and_shortens_its_steps() -> None:
    """Its stages are as long as each other, and the first has one step from every timestep to the clean level."""
    config = config_of("ct", train_steps=400, last_levels=8, curriculum="easy", weighting="inverse-noise")
    method = CT(SimpleNamespace(schedule=SCHEDULE, embeds_guidance=False), config)
    assert [method.levels(step) - 1 for step in (0, 99, 100, 199, 200, 299, 300, 399)] == [1, 1, 2, 2, 4, 4, 8, 8]
    time = (torch.arange(1000) + 0.5) / 1000
    batch = Batch(
        torch.zeros(1000, 1, 1, 1), no_text(1000), no_text(1000), torch.zeros(1000, 1, 1, 1), time, time, time
    )
    first = method.pair(batch, 0)
    assert set(first.ends.tolist()) == {CLEAN}
    assert first.s.t.flatten().tolist() == list(range(1000))
    torch.testing.assert_close(
        first.weight * first.s.sigma / (first.weight * first.s.sigma)[0], torch.ones(1000, 1, 1, 1)
    )
    assert float(first.weight.mean()) == pytest.approx(1, rel=1e-4)
    assert method.pair(batch, 399).ends[[999, 7, 0]].tolist() == [874, 6, CLEAN]
    decays = [method.target_decay(finished) for finished in (1, 100, 101, 400)]
    assert decays == pytest.approx([0.95 ** (1 / 2)] * 2 + [0.95 ** (1 / 3), 0.95 ** (1 / 9)])


def config_of(method: str, **values: object) -> DistillConfig:
    common = {"model": "m", "data": "d", "out": "o", "method": method, "device": "cpu", "batch_size": 2}
    return build(DistillConfig, **(common | values))


@pytest.mark.parametrize("curriculum", ["square-root", "doubling"])
def test_pairs_are_neighbours_of_the_steps_own_grid(curriculum: str) -> None:
    config = config_of("ct", train_steps=100, weighting="inverse-step", curriculum=curriculum)
    method = CT(SimpleNamespace(schedule=SCHEDULE, embeds_guidance=False), config)
    time = (torch.arange(600) + 0.5) / 600
    batch = Batch(torch.zeros(600, 1, 1, 1), no_text(600), no_text(600), torch.zeros(600, 1, 1, 1), time, time, time)
    for step in (0, 1, 50, 99):
        pair = method.pair(batch, step)
        steps = sorted(set(zip(pair.ends.tolist(), pair.s.t.long().tolist(), strict=True)))
        assert steps == list(pairwise(timestep_grid(method.levels(step), 1000)))
        assert torch.equal(pair.t.sigma.flatten() == 0, pair.ends == CLEAN)
        weighted = pair.weight * (pair.s.sigma / pair.s.alpha - pair.t.sigma / pair.t.alpha)
        torch.testing.assert_close(weighted, weighted[:1].expand_as(weighted), rtol=1e-3, atol=0)
    assert method.target_decay(1) == pytest.approx(0.95 if curriculum == "square-root" else 0.95 ** (2 / 3))
    assert method.target_decay(100) > 0.99


def test_the_target_moves_by_the_decay_of_its_step(tiny_pixels_folder: Path, tmp_path: Path) -> None:
    method = made("ct", load_model(str(tiny_pixels_folder)), tmp_path, full=True, train_steps=10)
    with networks_of(method.model, method.config, False) as networks, torch.no_grad():
        trainable = method.players(networks)[STUDENT].trainable
        name, own = next(iter(trainable.parameters.items()))
        before = own.clone()
        own += 1
        for step in (1, 2, 10):
            shadow = trainable.averages["target"].shadow[name]
            expected = own + method.target_decay(step) * (shadow - own)
            trainable.averages["target"].update(trainable.parameters, step)
            torch.testing.assert_close(shadow, expected)
        assert not torch.equal(shadow, before)


# --- hygiene -------------------------------------------------------------------------------------------------


def made(name: str, model: Model, out: Path, **values: object) -> Method:
    common = {"out": out, "train_steps": 2} | ({} if values.get("full") else {"rank": 2})
    if name == "denoising":
        config = {"model": "m", "data": "d", "device": "cpu", "batch_size": 2}
        return Denoising(model, build(FinetuneConfig, **(config | common | values)))
    config = config_of(name, **(common | values))
    return method_of(config)(model, config)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("name", ["cd", "ct", "denoising"])
def test_hygiene(name: str, full: bool, tiny_pixels_folder: Path, tmp_path: Path) -> None:
    """At step 0 the student is the model, to the bit; only its own weights get gradients; the model stays."""
    model = load_model(str(tiny_pixels_folder))
    base = {key: x.clone() for key, x in model.unet.state_dict().items()}
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one = torch.tensor([0.9, 0.1])
    batch = Batch(x, no_text(2), no_text(2), x.flip(0), one, one, one)
    method = made(name, model, tmp_path, full=full)
    with networks_of(model, method.config, method.with_teacher) as networks:
        (player,) = method.players(networks).values()
        levels = torch.tensor([999.0, 499.0])
        with torch.no_grad():
            assert torch.equal(player.trainable.module(x, levels, no_text(2)), model.unet(x, levels).sample)
            zero = clean_level(2)

            def student(x_t: Tensor, level: NoiseLevel) -> Tensor:
                output = player.trainable.module(x_t, level.t, no_text(2))
                return prediction_named(model.prediction_type).to_x_0(output, x_t, level)

            assert torch.equal(consistency(student, x, zero), x)
        own = list(player.trainable.parameters.values())
        player.loss(player.trainable.module, batch, 1).backward(inputs=own)
        with_gradient = {id(p) for p in [*own, *model.unet.parameters()] if p.grad is not None}
        assert with_gradient == {id(p) for p in own}
    assert all(torch.equal(x, base[key]) for key, x in model.unet.state_dict().items())


# --- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without captions."""
    folder = tiny_images(tmp_path_factory.mktemp("data"), 6)
    for caption in folder.glob("*.txt"):
        caption.unlink()
    return folder


@pytest.mark.parametrize(
    ("command", "recipe", "timesteps"),
    [
        (["finetune"], ("denoising", "auto", None, None), None),
        (["distill", "--method", "cd", "--psi", "heun", "--k", "50"], ("cd", "lcm", 50, "lcm"), [999, 749, 499, 249]),
        (["distill", "--method", "ct"], ("ct", "lcm", None, "trailing"), [999, 749, 499, 249]),
        (["distill", "--method", "ct", "--curriculum", "doubling", "--target", "student", "--weighting",
          "inverse-step"], ("ct", "lcm", None, "trailing"), [999, 749, 499, 249]),
        (["distill", "--method", "ct", "--curriculum", "easy", "--weighting", "inverse-noise"],
         ("ct", "lcm", None, "trailing"), [999, 749, 499, 249]),
        (["distill", "--method", "tcd", "--guidance-scale", "1"], ("tcd", "tcd", 20, "lcm"), [999, 759, 499, 259]),
    ],
)  # fmt: skip
def test_a_whole_model_is_trained_saved_and_drawn_with(
    fewstep, command, recipe, timesteps, images: Path, tiny_pixels_folder: Path, tmp_path: Path
) -> None:
    done = fewstep(*command, *TINY, "--full", model=tiny_pixels_folder, data=images, out=tmp_path / "run")
    assert done.code == 0, done.err
    folder = tmp_path / "run" / "model"
    assert f"draw with it: fewstep sample --model {folder}" in done.err.replace("python -m ", "")
    assert sorted(path.name for path in folder.iterdir()) == ["fewstep.json", "model_index.json", "scheduler", "unet"]
    written = json.loads((folder / "fewstep.json").read_text())
    assert tuple(written[key] for key in ("method", "solver", "k", "grid")) == recipe
    assert isinstance(DDPMPipeline.from_pretrained(folder), DDPMPipeline)
    done = fewstep("sample", "--json", model=folder, out=tmp_path / "images", device="cpu")
    assert done.code == 0, done.err
    picture = json.loads(done.out)["images"][0]
    assert picture["guidance_scale"] == 1
    assert timesteps is None or picture["timesteps"] == timesteps


def test_a_lora_of_a_model_in_pixel_space(fewstep, images: Path, tiny_pixels_folder: Path, tmp_path: Path) -> None:
    common = {"model": tiny_pixels_folder}
    done = fewstep("distill", *TINY, "--method", "cd", "--rank", "2", data=images, out=tmp_path / "run", **common)
    assert done.code == 0, done.err
    lora = tmp_path / "run" / "lora.safetensors"
    for weight in (0, 30):
        common |= {"lora": f"{lora}:{weight}", "solver": "lcm", "steps": 1}
        drawn = fewstep("sample", "--json", out=tmp_path, device="cpu", **common)
        assert drawn.code == 0, drawn.err
    one, other = (Image.open(tmp_path / name).tobytes() for name in ("image-0.png", "image-0-2.png"))
    assert one != other


def test_the_teacher_draws_what_it_is_distilled_on(fewstep, tiny_pixels_folder: Path, tmp_path: Path) -> None:
    common = {"model": tiny_pixels_folder, "out": tmp_path / "run", "rank": 2}
    done = fewstep("distill", *TINY, "--method", "cd", "--synthetic", "--images", "4", **common)
    assert done.code == 0, done.err
    assert f"draw with it: fewstep sample --model {tiny_pixels_folder}" in done.err.replace("python -m ", "")
    recipe = open_lora(tmp_path / "run" / "lora.safetensors").recipe
    assert recipe is not None
    assert recipe.training["synthetic"]["guidance_scale"] == 1
    assert recipe.training["synthetic"]["prompts"] is None
    (tmp_path / "list.txt").write_text("a cat")
    common["out"] = tmp_path / "other"
    done = fewstep("distill", *TINY, "--method", "cd", "--synthetic", prompts=tmp_path / "list.txt", **common)
    assert done.error == f"--prompts: {tiny_pixels_folder} draws without a prompt"


@pytest.mark.parametrize(
    ("typed", "error", "hint"),
    [
        (["distill"], "--method lcd distils guidance, but {} takes no text to guide by",
         "use --method cd, or add --guidance-scale 1"),
        (["distill", "--full", "--w-embedding"], "--method lcd distils guidance, but {} takes no text to guide by",
         "use --method cd, or add --guidance-scale 1"),
        (["distill", "--method", "cd", "--guidance-scale", "4"], "--guidance-scale: no effect with --method cd",
         "leave it out, or use --method lcd"),
        (["distill", "--method", "ct", "--psi", "heun"], "--psi: no effect with --method ct",
         "leave it out, or use --method lcd"),
        (["distill", "--method", "cd", "--psi", "dpm-solver++2m"],
         "--psi dpm-solver++2m is multistep, and without history it is only DDIM",
         "use ddim, dpm-solver or dpm-solver++ (single-step)"),
        (["distill", "--last-levels", "10"], "--last-levels: no effect with --method lcd",
         "leave it out, or use --method ct"),
        (["distill", "--method", "ct", "--first-levels", "20", "--last-levels", "10"],
         "--first-levels 20 is above --last-levels 10", "make --last-levels the larger one"),
        (["distill", "--method", "ct", "--curriculum", "easy", "--first-levels", "4"],
         "--curriculum easy begins with steps to the clean level, so it takes no --first-levels",
         "leave out --first-levels"),
        (["finetune", "--modules", "cross-attention"],
         "--modules cross-attention: the network of {} has no such layers", "use --modules all"),
        (["finetune", "--size", "17"], "--size 17 is not a multiple of 2", "use 16"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(
    fewstep, typed, error, hint, images: Path, tiny_pixels_folder: Path, tmp_path: Path
) -> None:
    done = fewstep(*typed, *TINY, model=tiny_pixels_folder, data=images, out=tmp_path / "out")
    assert done.code == 2
    assert done.error == error.format(tiny_pixels_folder)
    assert done.hint == hint
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_more_levels_than_timesteps_are_refused(tiny_pixels_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_pixels_folder))
    short = SimpleNamespace(schedule=range(100), embeds_guidance=False)
    with pytest.raises(UsageError, match=r"^last_levels 150 is more than the schedule's 100 timesteps\n\nhint: use at"):
        CT(short, config_of("ct"))
    assert CT(model, config_of("ct", out=tmp_path)).config.last_levels == 150


def test_a_model_with_text_keeps_its_guidance(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Neither method distils guidance, so sampling needs it, and a negative prompt has its effect."""
    model = load_model(str(tiny_model_folder))
    for name in ("cd", "ct"):
        assert made(name, model, tmp_path).recipe(6).guidance_scale == 7.5
    assert {"cd", "ct"} <= METHODS.keys()
