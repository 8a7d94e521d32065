"""`fewstep demo`: the whole story on the embedded model, in minutes, as pictures, a table and one report.html."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from fewstep.assets import ACCELERATION, KIT, MODEL, STYLES, shipped_kit
from fewstep.configs import DemoConfig, DistillConfig, Grid, SampleConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.report import figure, heading, page, paragraph, preformatted, table, text_table
from fewstep.evaluate.sheets import Row, grid
from fewstep.events import note, program
from fewstep.io import atomic_folder
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.networks import load_efficientnet
from fewstep.metrics.reference import agreement_with, load_reference
from fewstep.pipeline import Picture, Pipeline, load_pipeline
from fewstep.training import distill

SOLVERS = (("ddim", 32), ("dpm-solver", 16), ("dpm-solver++", 8), ("lcm", 4), ("lcm", 2), ("lcm", 1))
SUBJECTS = {  # label in a prompt: (style, code point) of the pair it names; what it draws best comes first
    "noto emoji of panda": ("noto", "1f43c"),
    "gradient emoji of red heart": ("fluent-color", "2764"),
    "emojione emoji of christmas tree": ("emojione", "1f384"),
    "black and white outline emoji of cat face": ("emojione-bw", "1f431"),
    "noto emoji of sunflower": ("noto", "1f33b"),
    "blob emoji of smiling face with sunglasses": ("noto-blob", "1f60e"),
    "flat emoji of automobile": ("fluent-flat", "1f697"),
    "3d glossy emoji of red apple": ("fluent-3d", "1f34e"),
    "3d glossy emoji of strawberry": ("fluent-3d", "1f353"),
    "flat emoji of octopus": ("fluent-flat", "1f419"),
    "twemoji emoji of rocket": ("twemoji", "1f680"),
    "gradient emoji of robot": ("fluent-color", "1f916"),
    "emojione emoji of doughnut": ("emojione", "1f369"),
    "twemoji emoji of hamburger": ("twemoji", "1f354"),
    "black and white outline emoji of umbrella": ("emojione-bw", "2602"),
    "emojione emoji of soccer ball": ("emojione", "26bd"),
    "noto 2018 emoji of tropical fish": ("noto-2018", "1f420"),
    "3d glossy emoji of guitar": ("fluent-3d", "1f3b8"),
    "flat emoji of cactus": ("fluent-flat", "1f335"),
    "noto emoji of house": ("noto", "1f3e0"),
    "twemoji emoji of mushroom": ("twemoji", "1f344"),
    "black and white outline emoji of key": ("emojione-bw", "1f511"),
    "gradient emoji of pizza": ("fluent-color", "1f355"),
    "noto 2018 emoji of ghost": ("noto-2018", "1f47b"),
}
SHOWN = 8  # of them on the sheet
STYLED = ("castle", "fish", "rocket", "cat face", "umbrella", "mushroom", "robot", "house")
STYLE_WEIGHT = 0.8  # beside the acceleration's 1.0: the report's Figure 3
STYLELESS = ("rocket", "robot", "castle", "umbrella", "mushroom", "house", "panda", "guitar")
GRID: Grid = "quadratic"  # of what the demo distils, and of what it is held against
BATCH_SIZE = 16
DISTILLING = {"k": 100, "grid": GRID, "batch_size": BATCH_SIZE, "rank": 16, "learning_rate": 1e-3, "warmup": 5,
              "ema": 0.9}  # fmt: skip
COLUMNS = ("solver", "steps", "NFE", "ms a picture", "speed-up", "recognised")


class Drawn(NamedTuple):
    """What one way of sampling gave."""

    pictures: list[Picture]
    seconds: float  # a picture: text, network and decoder

    @property
    def images(self) -> list[Image.Image]:
        """As RGB images."""
        return [picture.image for picture in self.pictures]


class Part(NamedTuple):
    """One part of the story: its sheet, and what the report says around it."""

    name: str
    sheet: Image.Image
    blocks: tuple[str, ...]


def run(config: DemoConfig) -> None:
    """Play the story; the table, the files and the next commands go to stdout."""
    begun = time.perf_counter()
    if config.out.exists() and not (config.out / "report.html").is_file():
        raise UsageError(f"--out {config.out} holds other things than a demo", "choose another --out")
    with atomic_folder(config.out) as folder:
        say("1/3 the same prompts from the same noise, with four solvers")
        solvers, rows = compare_solvers(config)
        say("2/3 style LoRAs alone, and beside the acceleration that never met them")
        styles = combine_styles(config)
        say("3/3 a distillation from scratch, on drawings that ship")
        distilled = distil_anew(config, folder)
        seconds = time.perf_counter() - begun
        write(folder, (solvers, styles, distilled), config, seconds)
    print(f"\n{text_table(COLUMNS, rows)}\n")
    for path in sorted(config.out.glob("*.*")):
        print(path)
    print(f"\nThis took {seconds / 60:.1f} minutes. Look at {config.out / 'report.html'} first, then try:\n")
    print("\n".join(next_commands(config)))


def say(text: str) -> None:
    """Tell where the story is, on stderr."""
    print(f"\n== {text}", file=sys.stderr, flush=True)


def next_commands(config: DemoConfig) -> list[str]:
    """What to try after the demo, to be typed as the demo itself was."""
    drawings, fewstep = shipped_kit() / "drawings", program()
    return [
        f'  {fewstep} sample "a happy red robot"',
        f'  {fewstep} sample "emoji of castle" --lora noto-mono:0.8 --lora lcm',
        f"  {fewstep} distill --model {MODEL} --data {drawings} --steps 1000 --out {config.out / 'longer'}",
    ]


def draw(pipeline: Pipeline, prompts: Sequence[str], config: DemoConfig, **options: object) -> Drawn:
    """Pictures of the prompts, seeds 0, 1, ..., and the seconds each took; a first one warms the machine up."""
    wanted = build(SampleConfig, model=MODEL, prompts=tuple(prompts), seed=config.seed, **options)
    plan = pipeline.plan(wanted)
    list(pipeline.pictures(wanted.model_copy(update={"prompts": wanted.prompts[:1]}), plan))
    begun = time.perf_counter()
    pictures = list(pipeline.pictures(wanted, plan))
    return Drawn(pictures, (time.perf_counter() - begun) / len(pictures))


def pipeline_of(config: DemoConfig, *loras: str) -> Pipeline:
    """The embedded model with these LoRAs."""
    return load_pipeline(MODEL, loras, config.dtype, config.device)


def compare_solvers(config: DemoConfig) -> tuple[Part, list[list[str]]]:
    """The report's table on the embedded model: time and recognisability of every solver, and its rows as text."""
    plain, fast = pipeline_of(config), pipeline_of(config, ACCELERATION)
    drawn = [
        draw(fast if solver == "lcm" else plain, tuple(SUBJECTS), config, solver=solver, steps=steps)
        for solver, steps in SOLVERS
    ]
    recognised = recogniser()
    rows, lines = [], []
    for (solver, steps), result in zip(SOLVERS, drawn, strict=True):
        nfe, milliseconds = f"{result.pictures[0].recipe['nfe']:g}", f"{1000 * result.seconds:.0f}"
        speed_up = f"{drawn[0].seconds / result.seconds:.1f}x"
        rows.append([solver, str(steps), nfe, milliseconds, speed_up, recognised(result.pictures)])
        lines.append(
            Row(
                solver,
                f"{steps} step{'s' * (steps > 1)}, {nfe} NFE\n{milliseconds} ms a picture",
                result.images[:SHOWN],
            )
        )
    sheet = grid(lines, tuple(SUBJECTS)[:SHOWN])
    return Part("solvers", sheet, (*SOLVERS_TOLD, table(COLUMNS, rows, marked=[3]))), rows


Recognised = Callable[[Sequence[Picture]], str]


def recogniser() -> Recognised:
    """A function that counts the recognised among SUBJECTS' pictures, as text; "-" without the network's package."""
    try:
        network = load_efficientnet()
    except FewstepError as error:
        note(f"what is recognised is not counted: {error.message}; {error.hint}")
        return lambda pictures: "-"
    reference = load_reference(shipped_kit() / "reference.safetensors")
    styles, concepts = zip(*SUBJECTS.values(), strict=True)

    def recognised(pictures: Sequence[Picture]) -> str:
        features = torch.cat([network(picture.pixels[None]) for picture in pictures])
        result = agreement_with(Pictures(features, styles, concepts), reference)
        return f"{sum(result.hits)} of {result.count}"

    return recognised


def combine_styles(config: DemoConfig) -> Part:
    """Each shipped style alone at 20 steps, and 0.8 of it with the acceleration at 4."""
    rows = []
    for style in STYLES:
        prompts = [f"emoji of {thing}" for thing in STYLED]
        slow = draw(pipeline_of(config, style), prompts, config, solver="dpm-solver++", steps=20)
        fast = draw(pipeline_of(config, f"{style}:{STYLE_WEIGHT}", ACCELERATION), prompts, config)
        notes = [f"{1000 * drawn.seconds:.0f} ms a picture" for drawn in (slow, fast)]
        rows.append(Row(style, f"dpm-solver++, 20 steps\n{notes[0]}", slow.images))
        rows.append(Row(f"{STYLE_WEIGHT} {style}", f"+ 1.0 {ACCELERATION}, 4 steps\n{notes[1]}", fast.images))
    return Part("styles", grid(rows, STYLED), STYLES_TOLD)


def distil_anew(config: DemoConfig, folder: Path) -> Part:
    """Four-step pictures before and after a short distillation of the model on the drawings of the kit."""
    run_folder, steps = folder / "run", config.distill_steps
    distilling = {"train_steps": steps, "checkpoint_every": steps, "seed": config.seed, "device": config.device}
    guidance_scale = pipeline_of(config).recipes[0].guidance_scale
    data = shipped_kit() / "drawings"
    distill.run(
        build(
            DistillConfig,
            model=MODEL,
            data=data,
            out=run_folder,
            guidance_scale=guidance_scale,
            **DISTILLING,
            **distilling,
        )
    )
    lora = (run_folder / "lora.safetensors").replace(folder / "lora.safetensors")
    shutil.rmtree(run_folder)
    told = {
        "before": ((), "4 steps, no LoRA"),
        "after": ((str(lora),), f"4 steps, distilled just now\non {BATCH_SIZE * steps:,} samples"),
        "shipped": ((ACCELERATION,), f"4 steps, the {ACCELERATION} that ships,\ndistilled for longer"),
    }
    options = {"solver": "lcm", "grid": GRID, "steps": 4, "guidance_scale": 1.0}
    rows = [
        Row(name, note, draw(pipeline_of(config, *loras), STYLELESS, config, **options).images)
        for name, (loras, note) in told.items()
    ]
    return Part("distilled", grid(rows, STYLELESS), DISTILLED_TOLD)


def write(folder: Path, parts: Sequence[Part], config: DemoConfig, seconds: float) -> None:
    """Save the parts' sheets and the report."""
    told = f"Made by fewstep demo on this machine in {seconds / 60:.1f} minutes, with the small model that ships."
    blocks = [paragraph(told, faint=True)]
    for part in parts:
        part.sheet.save(folder / f"{part.name}.png", "PNG")
        blocks += [*part.blocks, figure(part.sheet, f"contact sheet: {part.name}")]
    blocks += [heading("Try next"), preformatted("\n".join(next_commands(config)))]
    text = page("fewstep: four steps on a small real model", blocks)
    (folder / "report.html").write_text(text, encoding="utf-8")


SOLVERS_TOLD = (
    heading("Four steps instead of thirty-two"),
    paragraph(
        "Each column is one prompt and one noise. DDIM, DPM-Solver and DPM-Solver++ draw with the model as it is,"
        " guided, so every step is two rows through the network (NFE). lcm is the same model with its acceleration"
        " LoRA: guidance is distilled into it, and a step is one row."
    ),
    paragraph(
        f"Shown are {SHOWN} things that this small model draws well; {len(SUBJECTS)} are counted. Recognised are"
        " pictures whose nearest real drawing in another style shows the same thing, among 1,644 things, by"
        " EfficientNet features. So few pictures tell two solvers apart only roughly.",
        faint=True,
    ),
)
STYLES_TOLD = (
    heading("Plugged in beside a style"),
    paragraph(
        "Two style LoRAs, trained on drawings the model had never seen. The acceleration LoRA was distilled from the"
        f" bare model and never met them. Added up, {STYLE_WEIGHT} style + 1.0 acceleration, they draw the style in"
        " four steps."
    ),
)
DISTILLED_TOLD = (
    heading("Distilled just now"),
    paragraph(
        f"fewstep distill, from nothing, on the few hundred real drawings in the shipped {KIT}: the student learns to"
        " jump to the end of the guided teacher's path. These prompts name no style: before, four steps end"
        " in a pale mixture of all."
    ),
)
