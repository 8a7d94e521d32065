"""Write docs/pipelines.md, about the pipelines that accelerate works with: `python -m studies.pipelines [FILE]`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fewstep.bridge.accelerate import accelerate
from studies.pages import template, write_page
from tests.pipes import FAMILIES, LCM, ROWS, PipelineRow, build, draw, random_lora

SAME = 1e-4  # a sum on the layers' outputs and one in the weights are rounded differently
WORKS, NONE, FAULTY = "live, folded", "–", "✗"


def cell(row: PipelineRow, family: str) -> str:
    """The modes that work, `live` and `folded`; a dash if diffusers has no such class, a cross if it cannot be built.

    Raises AssertionError if a mode of fewstep does not work.
    """
    if not (row.two if FAMILIES[family].encoders == 2 else row.one):
        return NONE
    if family in row.fails:
        return FAULTY if cannot_be_built(row, family) else "can be built now"
    print(row.title, family, file=sys.stderr)
    with TemporaryDirectory() as folder:
        pipe = build(row, family)
        lora = random_lora(Path(folder) / "lora.safetensors", pipe)
        before = draw(pipe, row, num_inference_steps=2)
        pictures = {folded: accelerated(pipe, row, lora, folded) for folded in (False, True)}
        assert torch.equal(draw(pipe, row, num_inference_steps=2), before), "not undone"
    assert torch.allclose(pictures[False], pictures[True], rtol=0, atol=SAME), "live and folded differ"
    return WORKS


def cannot_be_built(row: PipelineRow, family: str) -> bool:
    """Whether diffusers' class refuses the family's parts."""
    try:
        build(row, family)
    except RuntimeError:
        return True
    return False


def accelerated(pipe: Any, row: PipelineRow, lora: Path, folded: bool) -> torch.Tensor:
    """The picture in the recipe's steps. Raises AssertionError for other steps, or if the LoRA has no effect."""
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        with accelerate(pipe, solver="lcm", steps=LCM.steps, guidance_scale=LCM.guidance_scale):
            without = draw(pipe, row)
        calls.clear()
        with accelerate(pipe, lora, folded=folded):
            pictures = draw(pipe, row)
    finally:
        hook.remove()
    assert len(calls) == LCM.steps, f"{len(calls)} calls"
    assert pictures.isfinite().all()
    assert (pictures - without).abs().max() > 0.01
    return pictures


def table() -> str:
    """Every kind of pipeline in every family, in Markdown."""
    head = ["", *FAMILIES]
    rows = [[row.title, *(cell(row, family) for family in FAMILIES)] for row in ROWS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def page() -> str:
    """docs/pipelines.md."""
    import diffusers

    text = template("pipelines")
    return text.format(table=table(), version=diffusers.__version__, none=NONE, faulty=FAULTY)


if __name__ == "__main__":
    write_page(__doc__, "pipelines.md", page)
