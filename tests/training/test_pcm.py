"""Phased consistency: phases and their edges, the published method's formulas, exact students of a Gaussian."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.configs import DistillConfig, build
from fewstep.diffusion.sampler import sample, sampling_levels
from fewstep.diffusion.schedule import NoiseLevel, clean_level, skipping_grid
from fewstep.diffusion.solvers import DDIM
from fewstep.diffusion.solvers.ddim import jump_to
from fewstep.errors import UsageError
from fewstep.lora.files import open_lora
from fewstep.lora.recipe import Recipe
from fewstep.session.plan import plan_sampling
from fewstep.training.losses import lcd_loss, squared
from fewstep.training.methods.consistency import CLEAN, Pair, level_at
from fewstep.training.methods.pcm import PCM, check_phases, phase_edges, phase_ends
from tests.diffusion.gaussian import draws, several_gaussians, stable_diffusion_schedule

law = settings(max_examples=40, deadline=None)
SCHEDULE = stable_diffusion_schedule()
DATA = several_gaussians()
Z = draws(2, 5, 2, 2)
GRIDS = [
    (k, phases) for k in (1, 5, 20, 25, 30, 100, 125) for phases in (1, 2, 3, 4, 5, 8, 50) if 1000 // k % phases == 0
]
TINY = ["--rank", "2", "--steps", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]


def at(t: float) -> NoiseLevel:
    return clean_level(1, torch.float64) if t == CLEAN else SCHEDULE.at(t, torch.float64)


def end_of(s: int, phases: int, k: int) -> int:
    return int(phase_ends(torch.tensor([s]), phases, k, SCHEDULE))


@pytest.mark.parametrize(("k", "phases"), GRIDS)
def test_phases_are_as_long_as_each_other_and_begin_where_others_end(k: int, phases: int) -> None:
    grid, edges = torch.tensor(skipping_grid(k)), phase_edges(phases, k, 1000)
    ends = phase_ends(grid, phases, k, SCHEDULE)
    found, counts = ends.unique(return_counts=True)
    assert edges[0] == grid[-1]
    assert set(edges) <= set(grid.tolist())
    assert found.tolist() == [CLEAN, *sorted(edges)[:-1]]
    assert counts.tolist() == [len(grid) // phases] * phases
    below = torch.tensor([CLEAN, *edges])
    assert ends.tolist() == [int(below[below < s].max()) for s in grid]


@pytest.mark.parametrize("phases", [1, 2, 5, 10, 25, 50])
def test_phases_are_the_published_methods(phases: int) -> None:
    """Its edges by index on the grid of 50, of which it takes timestep 0 for the lowest: the clean level here."""
    starts = np.floor(np.linspace(0, 50, num=phases, endpoint=False)).astype(int)
    for index in range(50):
        start = starts[starts <= index].max()
        assert end_of(20 * index + 19, phases, 20) == 20 * start - 1


@law
@given(st.sampled_from(GRIDS), st.integers(0, 2**32))
def test_edges_are_fixed_points(grid: tuple[int, int], seed: int) -> None:
    k, phases = grid
    config = build(DistillConfig, model="m", data="d", out="o", method="pcm", k=k, phases=phases)
    method = PCM(SimpleNamespace(schedule=SCHEDULE, embeds_guidance=False, takes_text=True), config)
    edges = torch.tensor([*phase_edges(phases, k, 1000)[1:], CLEAN])
    at_edges, x = level_at(SCHEDULE, edges), draws(phases, 4, 2, 2, seed=seed).float()
    pair = Pair(level_at(SCHEDULE, edges + k), at_edges, edges, 1.0)
    jump = method.jump(pair, SimpleNamespace(x_0=x))
    assert torch.equal(jump(lambda x_t, level: torch.full_like(x_t, 1e6), x, at_edges), x)
    assert not torch.equal(jump(lambda x_t, level: torch.full_like(x_t, 1e6), x, pair.s), x)


@pytest.mark.parametrize("k", [20, 100])
def test_one_phase_is_lcd_without_boundary_scalings(k: int) -> None:
    """c_skip = 0 and c_out = 1, and at the clean level x itself; the target by DDIM."""
    x_0, eps = draws(1000 // k, 5, 2, 2), draws(1000 // k, 5, 2, 2, seed=1)
    grid = torch.tensor(skipping_grid(k))
    s = SCHEDULE.at(grid, torch.float64)
    t = [at(int(one)) for one in grid - k]
    levels = s, NoiseLevel(*(torch.cat(parts) for parts in zip(*t, strict=True)))
    end = level_at(SCHEDULE, phase_ends(grid, 1, k, SCHEDULE))

    def student(x: Tensor, level: NoiseLevel) -> Tensor:
        return 0.9 * DATA.denoise(x, level) + 0.01 * x

    def plain(denoise, x, level):
        return torch.where(level.sigma == 0, x, denoise(x, level))

    common = (student, student, DATA.denoise, DDIM(), SCHEDULE, x_0, *levels, eps, squared)
    phased, one = lcd_loss(*common, jump_to(end)), lcd_loss(*common, plain)
    torch.testing.assert_close(phased, one, rtol=1e-12, atol=0)
    assert one > 1e-6


def exact(phases: int, k: int):
    """The network of the true phased student: its DDIM jump to the end of a phase is the ODE's own solution."""

    def denoise(x: Tensor, s: NoiseLevel) -> Tensor:
        end = at(end_of(int(s.t), phases, k))
        reached, ratio = DATA.flow(x, s, end), end.sigma / s.sigma
        return (reached - ratio * x) / (end.alpha - ratio * s.alpha)

    return denoise


@pytest.mark.parametrize(("k", "phases"), [(20, 1), (20, 2), (20, 5), (25, 4), (25, 8), (100, 10)])
def test_ddim_at_the_edges_is_the_deterministic_sampler(k: int, phases: int) -> None:
    """One step a phase ends at the ODE's own solution, whatever their number."""
    levels = sampling_levels(SCHEDULE, phase_edges(phases, k, 1000), torch.float64)
    x = DATA.x(Z, levels[0])
    clean = sample(exact(phases, k), DDIM(), SCHEDULE, levels, x, lambda: pytest.fail("no noise is drawn"))
    torch.testing.assert_close(clean, DATA.mean + DATA.std * Z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("k", "phases"), [(20, 1), (20, 5), (25, 4)])
@pytest.mark.parametrize("s", [999, 799, 599, 99])
def test_the_true_phased_student_is_where_distillation_ends(k: int, phases: int, s: int) -> None:
    """With the exact Psi the student arrives alike from s and from t; one of other phases does not."""
    s = s // k * k + k - 1
    end, x_s = at(end_of(s, phases, k)), DATA.x(Z, at(s))
    x_t = DATA.flow(x_s, at(s), at(s - k))

    def apart(student) -> float:
        jump = jump_to(end)
        return float((jump(student, x_s, at(s)) - jump(student, x_t, at(s - k))).abs().max())

    assert apart(exact(phases, k)) < 1e-10
    if end_of(s, 50 if k == 20 else 40, k) != end_of(s, phases, k):
        assert apart(DATA.denoise) > 1e-4


def test_what_does_not_divide_is_refused_with_what_does() -> None:
    for k, phases in GRIDS:
        check_phases(phases, k, 1000)
    with pytest.raises(
        UsageError, match=r"phases 4 does not .* 50 timesteps at k 20\n\nhint: use k 25, or phases 2 or 5$"
    ):
        check_phases(4, 20, 1000)
    with pytest.raises(UsageError, match=r"hint: use k 1, or phases 50$"):
        check_phases(1000, 20, 1000)
    with pytest.raises(UsageError, match=r"hint: use phases 2 or 5$"):  # no k has a grid that 3 divides
        check_phases(3, 100, 1000)


def test_a_count_that_does_not_divide_is_one_line(
    fewstep, tiny_model_folder: Path, tiny_data_folder: Path, tmp_path
) -> None:
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": tmp_path / "out"}
    done = fewstep("distill", *TINY, "--method", "pcm", "--phases", "4", **common)
    assert done.code == 2
    assert done.error == "--phases 4 does not divide the training grid, which has 50 timesteps at --k 20"
    assert done.hint == "use --k 25, or --phases 2 or 5"
    done = fewstep("distill", *TINY, "--phases", "5", **common)
    assert done.error == "--phases: no effect with --method lcd"
    done = fewstep("distill", *TINY, "--method", "pcm", "--grid", "quadratic", **common)
    assert done.error == "--grid: no effect with --method pcm"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("guidance", [1, 3])
def test_a_phased_lora_is_sampled_at_its_edges(
    fewstep, guidance: int, tiny_model_folder, tiny_data_folder, tmp_path
) -> None:
    """Without guidance in it, as its model is: with guidance, so that a negative prompt has its effect."""
    done = fewstep("distill", *TINY, "--method", "pcm", "--k", "25", "--phases", "4", model=tiny_model_folder,
                   data=tiny_data_folder, out=tmp_path / "pcm", guidance_scale=guidance)  # fmt: skip
    assert done.code == 0, done.err
    lora = tmp_path / "pcm" / "lora.safetensors"
    recipe = open_lora(lora).recipe
    assert recipe is not None
    assert (recipe.method, recipe.solver, recipe.steps, recipe.k) == ("pcm", "ddim", 4, 25)
    assert recipe.edges == (999, 749, 499, 249)
    assert recipe.teacher_guidance_scale == (guidance, guidance)
    common = {"model": tiny_model_folder, "lora": lora, "out": tmp_path / "images"}
    done = fewstep("sample", "cat", "--negative-prompt", "red", "--device", "cpu", "--json", **common)
    assert done.code == 0, done.err
    image = json.loads(done.out)["images"][0]
    assert (image["solver"], image["timesteps"]) == ("ddim", [999, 749, 499, 249])
    assert (image["guidance_scale"], image["nfe"]) == ((7.5, 8) if guidance == 1 else (1.0, 4))
    assert ("no effect" in done.err) == (guidance == 3)
    assert "too strong" not in done.err


def test_a_plan_notes_steps_that_jump_over_an_edge() -> None:
    recipe = Recipe(method="pcm", solver="ddim", steps=4, guidance_scale=1.0, k=25, edges=phase_edges(4, 25, 1000))
    for steps in (4, 8, 20, 40):
        assert "jump over" not in " ".join(plan_sampling(SCHEDULE, [recipe], steps=steps).notes)
    for steps in (1, 2, 3, 6):
        (text,) = plan_sampling(SCHEDULE, [recipe], steps=steps).notes
        assert text == (
            "this LoRA was trained in 4 phases, which begin at 999, 749, 499, 249, but these steps jump over some of"
            " them: use 4 steps or a multiple"
        )
    assert "jump" not in " ".join(plan_sampling(SCHEDULE, [recipe], "lcm", 2).notes)
    (text,) = plan_sampling(SCHEDULE, [recipe], steps=4, strength=0.6).notes
    assert text.endswith("jump over some of them")
