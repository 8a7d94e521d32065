"""export: what diffusers draws from the folder is what fewstep draws from the model and its LoRAs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from fewstep.bridge.export import export
from fewstep.configs import ExportConfig, build
from fewstep.lora.layers import initial, shape_of
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.load import load_model
from fewstep.models.stepping import STEPPINGS, scheduler_of, write_scheduler
from fewstep.session.plan import SOLVERS
from tests.sessions import pictures
from tests.tiny import tiny_model

LCD = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20)
PROMPT = "a red cat"
RECIPES = {
    "lcm": LCD,
    "ddim": Recipe(method="hyper-sd", solver="ddim", steps=4, guidance_scale=1.0),
    "dpm-solver++": Recipe(method="denoising", guidance_scale=3.0),
    "tcd": Recipe(method="tcd", solver="tcd", steps=4, guidance_scale=1.0, k=20),
}

# np.array(tensor) inside diffusers' DPM-Solver schedulers, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def a_lora(path: Path, model: Path, recipe: Recipe, seed: int, metadata: dict[str, str] | None = None) -> Path:
    """A random LoRA of the model's UNet, large enough to be seen."""
    layers = {n: s for n, s in load_model(str(model)).layers().items() if not n.startswith("text")}
    torch.manual_seed(seed)
    shapes = {name: shape for name, layer in layers.items() if (shape := shape_of(layer)) is not None}
    updates = {n: LowRank(u.A, torch.randn_like(u.B) * 0.1) for n, u in initial(shapes, 2, seed).items()}
    save_adapter(path, Adapter(updates), recipe, torch.float32, "kohya", metadata or {})
    return path


def drawn_by_diffusers(folder: Path, steps: int, guidance_scale: float, seed: int, **call) -> torch.Tensor:
    """Pixels (3, H, W) in [-1, 1] of the folder's own pipeline."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    call |= {"num_inference_steps": steps, "guidance_scale": guidance_scale, "generator": generator}
    return pipe(PROMPT, output_type="pt", **call).images[0] * 2 - 1


def drawn_by_us(model: Path, loras: tuple[str, ...], seed: int) -> torch.Tensor:
    return pictures(model, PROMPT, loras, seed=seed)[0].pixels


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("solver", "grid"), [("lcm", None), ("lcm", "quadratic"), ("ddim", None), ("dpm-solver++", None)]
)
def test_diffusers_draws_the_same_image(tmp_path, solver, grid, prediction):
    model = tiny_model(tmp_path / "base", prediction_type=prediction)
    fast = a_lora(tmp_path / "fast.safetensors", model, RECIPES[solver].model_copy(update={"grid": grid}), 1)
    style = a_lora(tmp_path / "style.safetensors", model, Recipe(method="denoising"), 2, {"license": "MIT"})
    loras = (f"{fast}:1.0", f"{style}:0.7,mid=-0.3")
    facts = export(build(ExportConfig, model=str(model), loras=loras, out=tmp_path / "out"))
    ours = drawn_by_us(model, loras, 3)
    told = {"timesteps": facts["timesteps"]} if grid else {}
    theirs = drawn_by_diffusers(tmp_path / "out", facts["steps"], facts["guidance_scale"], 3, **told)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert (ours - drawn_by_us(model, (f"{fast}:1.0",), 3)).abs().max() > 0.01  # the style is seen
    torch.testing.assert_close(drawn_by_us(tmp_path / "out", (), 3), ours, rtol=0, atol=1e-4)


def test_tcd_differs_only_in_where_it_ends(tmp_path, tiny_model_folder):
    """Their TCDScheduler ends at table level 0 (alpha_bar 0.99915), ours at the clean end."""
    fast = a_lora(tmp_path / "fast.safetensors", tiny_model_folder, RECIPES["tcd"], 1)
    facts = export(build(ExportConfig, model=str(tiny_model_folder), loras=(str(fast),), out=tmp_path / "out"))
    theirs = drawn_by_diffusers(tmp_path / "out", 4, 1.0, 3, **STEPPINGS["tcd"].call)
    assert (facts["scheduler"], facts["steps"]) == ("TCDScheduler", 4)
    torch.testing.assert_close(drawn_by_us(tiny_model_folder, (str(fast),), 3), theirs, rtol=0, atol=0.05)


def test_the_folder_says_what_is_in_it(fewstep, tmp_path, tiny_model_folder):
    style = a_lora(tmp_path / "style.safetensors", tiny_model_folder, Recipe(method="denoising"), 2, {"license": "MIT"})
    fast = a_lora(tmp_path / "fast.safetensors", tiny_model_folder, LCD, 1)
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    (base / "README.md").write_text("licence: openrail")
    done = fewstep("export", "--lora", f"{style}:0.8", "--lora", fast, "--json", model=base, out=tmp_path / "four")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["scheduler"], told["steps"], told["guidance_scale"]) == ("LCMScheduler", 4, 1.0)
    card = (tmp_path / "four" / "README.md").read_text(encoding="utf-8")
    for words in ("| 0.8 | style.safetensors |", "| MIT |", "its file does not name one", "num_inference_steps=4",
                  "guidance_scale=1", "999, 759, 499, 259", 'from_pretrained("four")'):  # fmt: skip
        assert words in card
    assert str(tmp_path) not in card
    assert (tmp_path / "four" / "README-base.md").read_text() == "licence: openrail"
    recipe = load_model(str(tmp_path / "four")).recipe
    assert recipe is not None
    assert (recipe.method, recipe.steps, recipe.guidance_scale, recipe.k) == ("lcd", 4, 1.0, 20)


def test_every_variant_is_folded_and_stale_weights_are_left_out(tmp_path, tiny_model_folder):
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    plain = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(plain)
    save_file({k: w.half() for k, w in weights.items()}, base / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    for stale in (base / "unet" / "diffusion_pytorch_model.bin", base / "model-ema.ckpt"):
        stale.write_bytes(b"weights as they were")
    fast = a_lora(tmp_path / "fast.safetensors", base, LCD, 1)
    export(build(ExportConfig, model=str(base), loras=(f"{fast}:2",), out=tmp_path / "out"))
    exact, half = (
        load_file(tmp_path / "out" / "unet" / f"diffusion_pytorch_model{variant}.safetensors")
        for variant in ("", ".fp16")
    )
    changed = [key for key in weights if not torch.equal(exact[key], weights[key])]
    assert len(changed) > 20
    for key in changed:
        torch.testing.assert_close(half[key].float(), exact[key], rtol=2e-3, atol=1e-3)
    assert not list((tmp_path / "out").rglob("*.bin")) + list((tmp_path / "out").rglob("*.ckpt"))


def test_without_a_lora_it_is_the_models_own_recipe(tmp_path, tiny_model_folder):
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    (base / "fewstep.json").write_text(LCD.model_copy(update={"steps": 2, "k": 10}).model_dump_json())
    facts = export(build(ExportConfig, model=str(base), out=tmp_path / "out"))
    assert (facts["scheduler"], facts["steps"], facts["lora"]) == ("LCMScheduler", 2, [])
    theirs = drawn_by_diffusers(tmp_path / "out", 2, 1.0, 5)
    torch.testing.assert_close(drawn_by_us(base, (), 5), theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (LCD.model_copy(update={"solver": "ddim", "k": 300}), "diffusers' DDIMScheduler steps at "),
        (LCD.model_copy(update={"solver": "heun", "k": None}), "the heun solver of this model's recipe has no counter"),
    ],
)
def test_what_diffusers_cannot_step_is_refused(fewstep, tmp_path, tiny_model_folder, recipe, message):
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    (base / "fewstep.json").write_text(recipe.model_copy(update={"steps": 2}).model_dump_json())
    done = fewstep("export", model=base, out=tmp_path / "out")
    assert (done.code, done.out) == (1, "")
    assert done.error.startswith(message)
    assert done.hint
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced(fewstep, tmp_path):
    (tmp_path / "out").mkdir()
    done = fewstep("export", out=tmp_path / "out")
    assert (done.code, done.error) == (2, f"--out {tmp_path / 'out'} already exists")
    assert fewstep("export", out=tmp_path / "x", to="gguf").code == 2


@pytest.mark.parametrize("solver", STEPPINGS)
def test_schedulers_are_written_in_json_that_every_program_reads(tmp_path, tiny_model_folder, solver):
    shutil.copy(tiny_model_folder / "model_index.json", tmp_path)
    scheduler = scheduler_of(tiny_model_folder, "epsilon", solver, [999, 749, 499, 249], 50)[1]
    write_scheduler(tmp_path, scheduler, False)
    text = (tmp_path / "scheduler" / "scheduler_config.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    back = type(scheduler).from_pretrained(tmp_path / "scheduler")
    assert {k: v for k, v in back.config.items() if k[0] != "_"} == {
        k: v for k, v in scheduler.config.items() if k[0] != "_"
    }


def test_every_stepping_is_a_solver():
    assert STEPPINGS.keys() <= SOLVERS.keys()
    assert STEPPINGS.keys() == RECIPES.keys()
