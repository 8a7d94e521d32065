"""Guidance as an input of the student: embedded as diffusers embeds it, learnt for every scale, free when sampling."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.configs import DistillConfig, FinetuneConfig, build
from fewstep.diffusion.consistency import ConsistencyDenoiser, boundary_scalings
from fewstep.diffusion.guidance import Conditioning, Evaluations, GuidedDenoiser, guidance_embedding, with_guidance
from fewstep.diffusion.prediction import X0
from fewstep.diffusion.sampler import sample, sampling_levels
from fewstep.diffusion.schedule import NoiseLevel, skipping_grid
from fewstep.diffusion.solvers import DDIM, LCM
from fewstep.errors import UsageError
from fewstep.models.load import load_model
from fewstep.models.network import UNetNetwork, embed_guidance
from fewstep.session.plan import plan_sampling
from fewstep.training.losses import lcd_loss, squared
from fewstep.training.methods import METHODS
from fewstep.training.methods.consistency import guidance_range, guidance_scales
from fewstep.training.methods.denoising import Denoising
from fewstep.training.methods.lcd import LCD
from fewstep.training.players import Trainable
from tests.diffusion.gaussian import Gaussian, draws, several_gaussians, stable_diffusion_schedule
from tests.sessions import session
from tests.tiny import stable_diffusion_scheduler, tiny_model, tiny_unet

SCHEDULE = stable_diffusion_schedule()
TINY = ["--steps", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]
K = 50


# --- the embedding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [256, 16, 17])
def test_the_embedding_is_diffusers(width: int) -> None:
    w = torch.tensor([0.0, 0.25, 6.5, 14.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=width)
    assert torch.equal(guidance_embedding(w, width), theirs)
    assert torch.equal(guidance_embedding(w.double(), width), theirs)


def test_a_new_input_leaves_the_output_as_it_is_until_it_has_weights() -> None:
    torch.manual_seed(0)
    unet = tiny_unet().eval()
    x, t, conditioning = torch.randn(2, 4, 8, 8), torch.tensor([999, 19]), Conditioning(torch.randn(2, 5, 16))
    told = with_guidance(conditioning, torch.tensor([1.0, 8.0]))
    network = UNetNetwork(unet)
    with torch.no_grad():
        before = network(x, t, conditioning)
        embed_guidance(unet)
        assert torch.equal(network(x, t, told), before)
        nn.init.normal_(unet.time_embedding.cond_proj.weight)
        assert not torch.equal(network(x, t, told), before)
        theirs = unet(x, t, conditioning.text, timestep_cond=guidance_embedding(torch.tensor([0.0, 7.0]), 256)).sample
        assert torch.equal(network(x, t, told), theirs)


# --- the law: a student that is told w is the student of the teacher guided by 1 + w --------------------------

EMPTY = several_gaussians()
SHIFT = torch.tensor([0.5, 1.0, -0.3, 0.7, -1.0], dtype=torch.float64).view(1, -1, 1, 1)  # of the prompt's mean
PROMPT, NONE = Conditioning(torch.ones(1, 1, 1)), Conditioning(torch.zeros(1, 1, 1))


def guided_data(guidance_scale: Tensor | float) -> Gaussian:
    """Whose denoiser is the teacher's, guided: of one spread, so guidance moves the mean alone."""
    scale = torch.as_tensor(guidance_scale, dtype=torch.float64).view(-1, 1, 1, 1)
    return Gaussian(EMPTY.mean + scale * SHIFT, EMPTY.std)


def level_of(t: Tensor) -> NoiseLevel:
    return SCHEDULE.at(t, torch.float64)


def teacher(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """The exact x_0 network of the prompt's data, or of all data for the empty one."""
    return guided_data(conditioning.text[:, 0, 0]).denoise(x.double(), level_of(t))


def solved(x: Tensor, s: int, data: Gaussian, k: int) -> Tensor:
    """The clean end by the teacher's DDIM steps of k: what distillation with Psi = DDIM teaches to reach at once."""
    levels = sampling_levels(SCHEDULE, list(range(s, -1, -k)), torch.float64)
    return sample(data.denoise, DDIM(), SCHEDULE, levels, x.double(), lambda: x)


class ToldStudent(nn.Module):
    """The x_0 network whose consistency function is `solved` of the teacher guided by 1 + w, row by row."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))  # added to every w

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.w is not None
        c_skip, c_out = boundary_scalings(t.double().view(-1, 1, 1, 1))
        scales = 1 + conditioning.w.double() + self.off
        pairs = zip(x, t, scales, strict=True)
        ends = torch.cat([solved(row[None], int(s), guided_data(scale), K) for row, s, scale in pairs])
        return ((ends - c_skip * x) / c_out).where(c_out > 0, ends)


SCALES = torch.tensor([1.5, 6.0])


def mixed_loss(told: Tensor) -> float:
    """The loss where guidance is 1.5 and 6 in turn, and the student is told these scales."""
    grid = torch.tensor(skipping_grid(K))[1:]
    scales, wished = (one.repeat(len(grid))[: len(grid)] for one in (SCALES, told))
    rows = len(grid)
    denoisers = [GuidedDenoiser(ToldStudent(), X0(), with_guidance(PROMPT.expand(rows), wished)) for _ in range(2)]
    guided = GuidedDenoiser(teacher, X0(), PROMPT.expand(rows), NONE.expand(rows), scales)
    levels = level_of(grid), level_of(grid - K)
    x_0, eps = draws(rows, 5, 2, 2), draws(rows, 5, 2, 2, seed=1)
    with torch.no_grad():
        return float(lcd_loss(*denoisers, guided, DDIM(), SCHEDULE, x_0, *levels, eps, squared))


def test_two_scales_give_the_two_guided_teachers_students() -> None:
    assert mixed_loss(SCALES) < 1e-24
    assert mixed_loss(SCALES.flip(0)) > 1e-3


@pytest.mark.parametrize("scale", [1.5, 6.0])
def test_one_step_at_a_scale_is_that_teachers_own_sampling(scale: float) -> None:
    x, evaluations, of_teacher = draws(2, 5, 2, 2), Evaluations(), Evaluations()
    levels = sampling_levels(SCHEDULE, [999], torch.float64)
    told = GuidedDenoiser(ToldStudent(), X0(), with_guidance(PROMPT.expand(2), scale), evaluations=evaluations)
    guided = GuidedDenoiser(teacher, X0(), PROMPT.expand(2), NONE.expand(2), scale, of_teacher)
    grid = sampling_levels(SCHEDULE, skipping_grid(K)[::-1], torch.float64)
    with torch.no_grad():
        one_step = sample(ConsistencyDenoiser(told), LCM(), SCHEDULE, levels, x, lambda: x)
        many = sample(guided, DDIM(), SCHEDULE, grid, x, lambda: x)
    torch.testing.assert_close(one_step, many, rtol=1e-10, atol=1e-10)
    assert (evaluations.rows, of_teacher.rows) == (2, 2 * 2 * 1000 // K)


class ToldNetworks:
    """The networks of a run, all of them exact."""

    def __init__(self, off: float) -> None:
        self.student, self.teacher = ToldStudent(off), teacher

    def trainable(self, name: str, w_embedding: bool = False) -> Trainable:
        assert w_embedding
        return Trainable(self.student, dict(self.student.named_parameters()), {})

    def network(self, name: str) -> ToldStudent:
        return self.student


@pytest.mark.parametrize(("off", "small"), [(0.0, True), (0.5, False)])
def test_the_method_tells_the_student_the_scale_that_guides_the_teacher(off: float, small: bool) -> None:
    """The right student's loss is nothing but rounding, whatever scales are drawn; one of other scales has more."""
    config = distilling(k=K, loss="l2", target="student", guidance_scale=1.0, guidance_scale_max=8.0)
    method: Any = LCD(
        SimpleNamespace(schedule=SCHEDULE, prediction=X0(), embeds_guidance=False, takes_text=True), config
    )
    player = method.players(ToldNetworks(off))["student"]
    rows = 12
    batch = SimpleNamespace(
        x_0=draws(rows, 5, 2, 2), eps=draws(rows, 5, 2, 2, seed=1), conditioning=PROMPT.expand(rows),
        empty=NONE.expand(rows), time=torch.linspace(0, 0.99, rows), guidance=torch.linspace(0, 1, rows),
    )  # fmt: skip
    loss = player.loss(player.trainable.module, batch, 0)
    assert (loss.item() < 1e-8) == small
    if not small:
        loss.backward()
        assert player.trainable.module.off.grad > 0


def distilling(**values: object) -> DistillConfig:
    return build(DistillConfig, model="m", data="d", out="o", full=True, w_embedding=True, **values)


# --- a run, and what it leaves --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_model_folder: Path, tiny_data_folder: Path) -> Path:
    """A model folder by distill --full --w-embedding, whose new weights are then made large enough to be seen."""
    from fewstep.cli import main

    out = tmp_path_factory.mktemp("student")
    words = ["distill", *TINY, "--full", "--w-embedding", "--k", "50", "--guidance-scale", "2", "--guidance-scale-max",
             "9", "--model", tiny_model_folder, "--data", tiny_data_folder, "--out", out]  # fmt: skip
    assert main(list(map(str, words))) == 0
    weights = out / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    new = "time_embedding.cond_proj.weight"
    assert tensors[new].abs().max() > 0
    tensors[new] = torch.randn(tensors[new].shape, generator=torch.Generator().manual_seed(0)).half() * 0.3
    save_file(tensors, weights, {"format": "pt"})
    return out / "model"


def latents_by_us(model: Path, seed: int, **options: object) -> tuple[Tensor, dict[str, Any]]:
    """Latents of one picture, and its recipe."""
    with session(model) as opened:
        watched: Any = opened
        found, decode = [], watched._decode
        watched._decode = lambda latents: (found.append(latents), decode(latents))[1]
        (picture,) = opened.draw("a red cat", seed=seed, **options)
        return found[0], dict(picture.recipe)


def latents_by_diffusers(kind: Any, model: Path, seed: int, **call: object) -> Tensor:
    pipe = kind.from_pretrained(model, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    latents: Tensor = pipe("a red cat", output_type="latent", generator=generator, **call).images
    return latents


@pytest.mark.parametrize("guidance_scale", [2.0, 7.5])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_folder_is_one_of_diffusers_lcm_pipeline(student: Path, guidance_scale: float, steps: int) -> None:
    ours, recipe = latents_by_us(student, 3, steps=steps, guidance_scale=guidance_scale)
    assert (recipe["nfe"], recipe["guidance_scale"]) == (steps, guidance_scale)
    call = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    theirs = latents_by_diffusers(LatentConsistencyModelPipeline, student, 3, **call)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    other, _ = latents_by_us(student, 3, steps=steps, guidance_scale=guidance_scale + 1)
    assert (ours - other).abs().max() > 1e-2


def test_the_folder_says_what_it_is(student: Path, tiny_model_folder: Path) -> None:
    assert json.loads((student / "model_index.json").read_text())["_class_name"] == "LatentConsistencyModelPipeline"
    assert type(DiffusionPipeline.from_pretrained(student, local_files_only=True).scheduler) is LCMScheduler
    model = load_model(str(student))
    assert model.embeds_guidance
    assert not load_model(str(tiny_model_folder)).embeds_guidance
    assert model.recipe is not None
    assert (model.recipe.solver, model.recipe.k, model.recipe.guidance_scale) == ("lcm", 50, 7.5)
    assert model.recipe.teacher_guidance_scale == (2, 9)
    assert model.recipe.training["w_embedding"] is True


def test_sampling_costs_one_row_a_step_and_says_what_has_no_effect(fewstep, student: Path, tmp_path: Path) -> None:
    common = {"model": student, "steps": 2, "device": "cpu", "json": True, "out": tmp_path}
    for scale, outside in ((1, True), (2, False), (9, False), (12, True)):
        done = fewstep("sample", "a cat", guidance_scale=scale, **common | {"out": tmp_path / "at"})
        assert done.code == 0, done.err
        assert json.loads(done.out)["images"][0]["nfe"] == 2
        words = f"note: guidance {scale} is outside 2 to 9, which this model was trained for"
        assert (words in done.err) == outside, done.err
        assert "too strong" not in done.err
    done = fewstep("sample", "a cat", negative_prompt="red", **common)
    assert "the negative prompt has no effect with a model that takes guidance as an input: --nag-scale 5" in done.err
    (picture,) = tmp_path.glob("*.png")
    redrawn = fewstep("sample", "--redraw", picture, "--json", out=tmp_path / "again")
    assert redrawn.code == 0, redrawn.err
    (image,) = json.loads(redrawn.out)["images"]
    assert (image["guidance_scale"], image["nfe"]) == (7.5, 2)


def test_an_export_is_one_of_diffusers_lcm_pipeline_too(fewstep, student: Path, tmp_path: Path) -> None:
    done = fewstep("export", "--json", model=student, out=tmp_path / "lcm")
    assert done.code == 0, done.err
    assert json.loads(done.out)["guidance_scale"] == 7.5
    ours, _ = latents_by_us(student, 5)
    call = {"num_inference_steps": 4, "guidance_scale": 7.5}
    theirs = latents_by_diffusers(LatentConsistencyModelPipeline, tmp_path / "lcm", 5, **call)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents_by_us(tmp_path / "lcm", 5)[0], ours, rtol=0, atol=1e-4)
    assert "takes guidance as an input" in (tmp_path / "lcm" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("options", [["--full"], ["--rank", "2"]], ids=["full", "lora"])
def test_lcf_goes_on_from_such_a_model_in_its_own_range(
    fewstep, options: list[str], student: Path, tiny_data_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lcf"
    done = fewstep("distill", *TINY, "--method", "lcf", *options, model=student, data=tiny_data_folder, out=out)
    assert done.code == 0, done.err
    model, lora = (out / "model", []) if "--full" in options else (student, ["--lora", out / "lora.safetensors"])
    done = fewstep("sample", "cat", *lora, "--device", "cpu", "--json", model=model, out=tmp_path / "images")
    assert done.code == 0, done.err
    image = json.loads(done.out)["images"][0]
    assert (image["nfe"], image["guidance_scale"], image["solver"]) == (4, 7.5, "lcm")


# --- published models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder in the layout of SimianLuo/LCM_Dreamshaper_v7, with no recipe of ours."""
    plain = tiny_model(tmp_path_factory.mktemp("published") / "plain", unet={"time_cond_proj_dim": 256})
    parts = StableDiffusionPipeline.from_pretrained(plain, local_files_only=True).components
    parts["scheduler"] = LCMScheduler.from_config(stable_diffusion_scheduler().config)
    folder = plain.parent / "lcm"
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def test_a_published_lcm_is_sampled_as_its_makers_do(published: Path) -> None:
    ours, recipe = latents_by_us(published, 1)
    assert (recipe["solver"], recipe["steps"], recipe["nfe"], recipe["guidance_scale"]) == ("lcm", 4, 4, 8.0)
    assert recipe["timesteps"] == [999, 759, 499, 259]
    theirs = latents_by_diffusers(
        LatentConsistencyModelPipeline, published, 1, num_inference_steps=4, guidance_scale=8.0
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# --- what cannot be -------------------------------------------------------------------------------------------


def test_a_lora_cannot_learn_a_new_input(
    fewstep, tiny_model_folder: Path, tiny_data_folder: Path, tmp_path: Path
) -> None:
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": tmp_path / "out"}
    done = fewstep("distill", *TINY, "--w-embedding", **common)
    assert (done.code, done.error, done.hint) == (2, "--w-embedding needs --full", "give both, or leave it out")
    done = fewstep("distill", *TINY, "--full", "--w-embedding", "--guidance-scale", "4", **common)
    assert done.error == "--w-embedding learns a range of guidance, and --guidance-scale is 4 alone"
    assert done.hint == "add --guidance-scale-max, or leave both out for 3 to 15"
    done = fewstep("distill", *TINY, "--full", "--w-embedding", "--method", "lcf", **common)
    assert (done.error, done.hint) == (
        "--w-embedding: no effect with --method lcf",
        "leave it out, or use --method lcd",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lcd", "tcd", "pcm", "finetune"])
def test_such_a_model_is_no_teacher(name: str, published: Path, tmp_path: Path) -> None:
    model, common = load_model(str(published)), {"model": "m", "data": "d", "out": tmp_path}
    if name == "finetune":
        kind, config = Denoising, build(FinetuneConfig, **common)
    else:
        kind, config = METHODS[name], build(DistillConfig, method=name, **common)
    with pytest.raises(
        UsageError, match=r"lcm takes guidance as an input: it is already a few-step model\n\nhint: .*lcf"
    ):
        kind(model, config)


def test_the_range_is_lcms_own_unless_another_is_asked_for() -> None:
    assert guidance_range(distilling()) == (3, 15)
    assert guidance_range(distilling(guidance_scale_max=12.0)) == (8.5, 12)
    assert guidance_range(build(DistillConfig, model="m", data="d", out="o")) == (8.5, 8.5)
    places = torch.tensor([0.0, 0.5])
    assert torch.equal(guidance_scales(distilling(), places, torch.device("cpu")), torch.tensor([3.0, 9.0]))


def test_plans_count_one_row_a_step() -> None:
    plan = plan_sampling(SCHEDULE, [], "lcm", 4, 7.5, embeds_guidance=True)
    assert (plan.nfe, plan.guidance_scale) == (4, 7.5)
    assert plan_sampling(SCHEDULE, [], "ddim", 4, 7.5).nfe == 8
