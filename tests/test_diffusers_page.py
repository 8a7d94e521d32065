"""docs/diffusers.md: its examples run, on tiny models, and are shorter than those they were."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep import accelerate
from fewstep.bridge.scheduler import FewstepScheduler
from tests import pipes
from tests.pipes import random_lora, row_named

PAGE = (Path(__file__).parents[1] / "docs" / "diffusers.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### (.+?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STAND_INS = {  # the class an example loads: the row and family it is given
    "DiffusionPipeline": ("text-to-image", "sdxl"),
    "AutoPipelineForImage2Image": ("image-to-image", "sd15"),
    "AutoPipelineForInpainting": ("inpainting, UNet of 9 channels", "sd15"),
    "StableDiffusionControlNetPipeline": ("ControlNet", "sd15"),
    "StableDiffusionXLAdapterPipeline": ("T2I-Adapter", "sdxl"),
    "AnimateDiffPipeline": ("AnimateDiff", "sd15"),
}
STEPS = {"AnimateDiff": 5}

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def nameless(path: Path, pipe: Any) -> None:
    """A LoRA file without a recipe, as others write them."""
    path.parent.mkdir(exist_ok=True)
    weights = load_file(random_lora(path, pipe, without="text_encoder"))
    save_file(weights, path)


def motion_lora(path: Path, pipe: Any) -> None:
    """One for the motion modules."""
    path.parent.mkdir(exist_ok=True)
    name = next(n for n, _ in pipe.unet.named_modules() if n.endswith("attn1.to_q") and "motion_modules" in n)
    width = pipe.unet.get_submodule(name).in_features
    save_file({f"{name}.lora.down.weight": torch.ones(1, width), f"{name}.lora.up.weight": torch.ones(width, 1)}, path)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A folder with the files the page names, and loaders that give tiny models; UNet calls are counted."""
    monkeypatch.chdir(tmp_path)
    calls: list[int] = []

    def loader(title: str, family: str) -> Callable[..., Any]:
        def from_pretrained(name: str, dtype: object = None, **parts: Any) -> Any:
            pipe = pipes.build(row_named(title), family, **parts)
            pipe.unet.register_forward_hook(lambda *_: calls.append(1))
            monkeypatch.setattr(type(pipe), "to", lambda self, device: self)
            return pipe

        return from_pretrained

    for kind, (title, family) in STAND_INS.items():
        monkeypatch.setattr(getattr(diffusers, kind), "from_pretrained", loader(title, family))
    for kind, part in {
        "ControlNetModel": pipes.controlnet(pipes.parts_of("sd15")["unet"]),
        "T2IAdapter": pipes.t2i_adapter(True),
        "MotionAdapter": pipes.motion_adapter(False),
    }.items():
        monkeypatch.setattr(getattr(diffusers, kind), "from_pretrained", lambda name, dtype=None, part=part: part)
    monkeypatch.setattr("diffusers.utils.load_image", lambda name: pipes.picture())
    for family, files in {"sdxl": ("lcm-lora-sdxl/pytorch_lora_weights", "papercut"),
                          "sd15": ("lcm-lora-sdv1-5/pytorch_lora_weights",)}.items():  # fmt: skip
        for file in files:
            nameless(Path(f"{file}.safetensors"), pipes.build(row_named("text-to-image"), family))
    motion_lora(Path("zoom-in/diffusion_pytorch_model.safetensors"), pipes.build(row_named("AnimateDiff"), "sd15"))
    return calls


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_examples_run_in_few_steps(title: str, stage: list[int]) -> None:
    names: dict[str, Any] = {}
    exec(compile(EXAMPLES[title], title, "exec"), names)
    assert len(stage) == STEPS.get(title, 4)
    assert isinstance(names["pipe"].scheduler, FewstepScheduler)
    assert names["pipe"].scheduler.config.solver == "lcm"
    assert title != "AnimateDiff" or Path("animation.gif").stat().st_size > 0


def test_they_are_shorter() -> None:
    """Statements as counted in the page's table."""
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert {title for title, *_ in rows} == EXAMPLES.keys()
    assert len(EXAMPLES) == 7
    for title, theirs, ours in rows:
        assert len(ast.parse(EXAMPLES[title]).body) == int(ours) < int(theirs)


def test_the_other_code_of_the_page_runs(tmp_path: Path) -> None:
    pipe = pipes.build(row_named("text-to-image"), "sd15")
    names = {"pipe": pipe, "accelerate": accelerate, "lora": random_lora(tmp_path / "fast.safetensors", pipe)}
    others = [block for block in BLOCKS if block not in EXAMPLES.values()][1:]  # the first needs SDXL, as its examples
    assert len(others) == 2
    for block in others:
        exec(compile(block, "page", "exec"), names)
