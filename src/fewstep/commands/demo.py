"""`fewstep demo`: all of fewstep on the embedded model, in minutes, as pictures, a table and one report.html."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from fewstep.assets import ACCELERATION, KIT, MODEL, STYLES, shipped_kit
from fewstep.commands.program import program
from fewstep.commands.result import Result
from fewstep.configs import DemoConfig, DistillConfig, Draw, build
from fewstep.engines import for_changing_loras
from fewstep.errors import FewstepError, UsageError, number_of, option
from fewstep.evaluate.report import figure, heading, page, paragraph, preformatted, table, text_table
from fewstep.events import note
from fewstep.io import atomic_folder, refuse_file
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.networks import load_efficientnet
from fewstep.metrics.reference import agreement_with, load_reference
from fewstep.session import Picture, Session
from fewstep.sheets import SheetRow, grid
from fewstep.training import run as training

SOLVERS = (("ddim", 32), ("dpm-solver", 16), ("dpm-solver++", 8), ("lcm", 4), ("lcm", 2), ("lcm", 1))
SUBJECTS = {  # prompt -> (style, code point) of the real drawing it names; the best-drawn things come first
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
SHEET_THINGS = 8  # the first SUBJECTS are on the sheet
STYLED = ("castle", "fish", "rocket", "cat face", "umbrella", "mushroom", "robot", "house")
STYLE_WEIGHT = 0.8  # with 1.0 for the acceleration, as in Figure 3 of the LCM-LoRA report
STYLELESS = ("rocket", "robot", "castle", "umbrella", "mushroom", "house", "panda", "guitar")
BATCH_SIZE = 16
K = 50  # of the LoRA that the demo distils, and of the one it is compared with: all are sampled at the same timesteps
DISTILLING = {"k": K, "batch_size": BATCH_SIZE, "rank": 16, "learning_rate": 1e-3, "warmup": 5,
              "ema": 0.9}  # fmt: skip
COLUMNS = ("solver", "steps", "NFE", "ms a picture", "speed-up", "recognised")


class TimedPictures(NamedTuple):
    """The pictures of one way of sampling, and their time."""

    pictures: list[Picture]
    seconds: float  # per picture: text, network and decoder

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as RGB images."""
        return [picture.image for picture in self.pictures]


class Part(NamedTuple):
    """One part of the demo: its sheet, and its text in the report."""

    name: str
    sheet: Image.Image
    blocks: tuple[str, ...]


def demo(config: DemoConfig) -> Result:
    """Run the demo, with its results in config.out. The text is the table, the files and commands to try next."""
    begun = time.perf_counter()
    refuse_file(config.out)
    if config.out.exists() and any(config.out.iterdir()) and not (config.out / "report.html").is_file():
        raise UsageError(
            f"{option('out')} {config.out} holds something else than a demo", f"choose another {option('out')}"
        )
    engine = for_changing_loras(config.engine)
    session = Session(MODEL, (), engine=engine, dtype=config.dtype, device=config.device)
    with atomic_folder(config.out) as folder:
        note("1 of 3: the same prompts from the same noise, with four solvers")
        solvers, rows = compare_solvers(session, config)
        note("2 of 3: style LoRAs alone, and added to the acceleration, which was trained without them")
        styles = combine_styles(session, config)
        note("3 of 3: a distillation from scratch, on drawings that ship with fewstep")
        distilled = distil_anew(session, config, folder)
        minutes = (time.perf_counter() - begun) / 60
        write(folder, (solvers, styles, distilled), config, minutes)
    files = [str(path) for path in sorted(config.out.glob("*.*"))]
    look = f"This took {minutes:.1f} minutes. Look at {config.out / 'report.html'} first, then try:"
    text = "\n\n".join(["", text_table(COLUMNS, rows), "\n".join(files), look, "\n".join(next_commands(config))])
    return Result({"minutes": minutes, "files": files, "columns": COLUMNS, "rows": rows}, text)


def next_commands(config: DemoConfig) -> list[str]:
    """Commands to try after the demo, spelled as the demo itself was typed."""
    drawings, fewstep = shipped_kit() / "drawings", program()
    return [
        f'  {fewstep} sample "a happy red robot"',
        f'  {fewstep} sample "emoji of castle" --lora noto-mono:0.8 --lora lcm',
        f"  {fewstep} distill --model {MODEL} --data {drawings} --steps 1000 --out {config.out / 'longer'}",
    ]


def draw(session: Session, prompts: Sequence[str], config: DemoConfig, **options: object) -> TimedPictures:
    """Pictures of the prompts with seeds 0, 1, ..., and seconds per picture. One picture first warms the machine up."""
    request = build(Draw, prompts=tuple(prompts), seed=config.seed, **options)
    plan = session.plan(request)
    list(session.pictures(request.model_copy(update={"prompts": request.prompts[:1]}), plan))
    begun = time.perf_counter()
    pictures = list(session.pictures(request, plan))
    return TimedPictures(pictures, (time.perf_counter() - begun) / len(pictures))


def compare_solvers(session: Session, config: DemoConfig) -> tuple[Part, list[list[str]]]:
    """The LCM-LoRA report's table for the embedded model: time and recognised pictures per solver; its rows as text."""
    results = []
    for solver, steps in SOLVERS:
        session.plug((ACCELERATION,) if solver == "lcm" else ())
        results.append(draw(session, tuple(SUBJECTS), config, solver=solver, steps=steps))
    recognised = recogniser()
    rows, lines = [], []
    for (solver, steps), result in zip(SOLVERS, results, strict=True):
        nfe, milliseconds = f"{result.pictures[0].recipe['nfe']:g}", f"{1000 * result.seconds:.0f}"
        speed_up = f"{results[0].seconds / result.seconds:.1f}x"
        rows.append([solver, str(steps), nfe, milliseconds, speed_up, recognised(result.pictures)])
        lines.append(
            SheetRow(
                solver,
                f"{number_of(steps, 'step')}, {nfe} NFE\n{milliseconds} ms a picture",
                result.images[:SHEET_THINGS],
            )
        )
    sheet = grid(lines, tuple(SUBJECTS)[:SHEET_THINGS])
    return Part("solvers", sheet, (*SOLVERS_TEXT, table(COLUMNS, rows, marked=[3]))), rows


Recognised = Callable[[Sequence[Picture]], str]


def recogniser() -> Recognised:
    """A function that counts the recognised pictures of SUBJECTS, as text; "-" without the network's package."""
    try:
        network = load_efficientnet()
    except FewstepError as error:
        note(f"recognised pictures are not counted: {error.whole}")
        return lambda pictures: "-"
    reference = load_reference(shipped_kit() / "reference.safetensors")
    styles, concepts = zip(*SUBJECTS.values(), strict=True)

    def recognised(pictures: Sequence[Picture]) -> str:
        features = torch.cat([network(picture.pixels[None]) for picture in pictures])
        result = agreement_with(Pictures(features, styles, concepts), reference)
        return f"{sum(result.hits)} of {result.count}"

    return recognised


def combine_styles(session: Session, config: DemoConfig) -> Part:
    """Each shipped style alone in 20 steps, and at weight 0.8 with the acceleration in 4 steps."""
    rows = []
    for style in STYLES:
        prompts = [f"emoji of {thing}" for thing in STYLED]
        session.plug((style,))
        slow = draw(session, prompts, config, solver="dpm-solver++", steps=20)
        session.plug((f"{style}:{STYLE_WEIGHT}", ACCELERATION))
        fast = draw(session, prompts, config)
        notes = [f"{1000 * result.seconds:.0f} ms a picture" for result in (slow, fast)]
        rows.append(SheetRow(style, f"dpm-solver++, 20 steps\n{notes[0]}", slow.images))
        rows.append(SheetRow(f"{STYLE_WEIGHT} {style}", f"+ 1.0 {ACCELERATION}, 4 steps\n{notes[1]}", fast.images))
    return Part("styles", grid(rows, STYLED), STYLES_TEXT)


def distil_anew(session: Session, config: DemoConfig, folder: Path) -> Part:
    """Four-step pictures before and after a short distillation of the model on the kit's drawings."""
    run_folder, steps = folder / "run", config.distill_steps
    distilling = {"train_steps": steps, "checkpoint_every": steps, "seed": config.seed, "device": config.device}
    recipe = session.facts.recipe
    guidance_scale = recipe and recipe.guidance_scale
    data = shipped_kit() / "drawings"
    training.distill(
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
    variants = {
        "before": ((), "4 steps, no LoRA"),
        "after": ((str(lora),), f"4 steps, distilled just now\non {BATCH_SIZE * steps:,} samples"),
        "shipped": ((ACCELERATION,), f"4 steps, the {ACCELERATION} that ships,\ndistilled for longer"),
    }
    options = {"solver": "lcm", "k": K, "steps": 4, "guidance_scale": 1.0}
    rows = []
    for name, (loras, text) in variants.items():
        session.plug(loras)
        rows.append(SheetRow(name, text, draw(session, STYLELESS, config, **options).images))
    return Part("distilled", grid(rows, STYLELESS), DISTILLED_TEXT)


def write(folder: Path, parts: Sequence[Part], config: DemoConfig, minutes: float) -> None:
    """Save the parts' sheets and the report."""
    footer = f"Made by fewstep demo on this machine in {minutes:.1f} minutes, with the small model that ships."
    blocks = [paragraph(footer, faint=True)]
    for part in parts:
        part.sheet.save(folder / f"{part.name}.png", "PNG")
        blocks += [*part.blocks, figure(part.sheet, f"contact sheet: {part.name}")]
    blocks += [heading("Try next"), preformatted("\n".join(next_commands(config)))]
    text = page("fewstep: four steps on a small real model", blocks)
    (folder / "report.html").write_text(text, encoding="utf-8")


SOLVERS_TEXT = (
    heading("Four steps instead of thirty-two"),
    paragraph(
        "Each column has one prompt and one noise. DDIM, DPM-Solver and DPM-Solver++ draw with the bare model and"
        " guidance, so every step evaluates the network twice (NFE 2). lcm is the same model with its acceleration"
        " LoRA. Guidance is distilled into it, so a step evaluates the network once."
    ),
    paragraph(
        f"The sheet shows {SHEET_THINGS} things that this small model draws well; {len(SUBJECTS)} are counted. A"
        " picture is recognised if its nearest real drawing in another style, by EfficientNet features, shows the same"
        " one of 1,644 things. With so few pictures, only large differences between solvers mean something.",
        faint=True,
    ),
)
STYLES_TEXT = (
    heading("Added to a style"),
    paragraph(
        "There are two style LoRAs, trained on drawings that the model had never seen. The acceleration LoRA was"
        f" distilled from the bare model, without the styles. Their sum, {STYLE_WEIGHT} style + 1.0 acceleration, draws"
        " the style in four steps."
    ),
)
DISTILLED_TEXT = (
    heading("Distilled just now"),
    paragraph(
        f"This is fewstep distill, from scratch, on the few hundred real drawings in the shipped {KIT}. The student"
        " learns to jump to the end of the guided teacher's path. The prompts name no style. Before the distillation,"
        " four steps end in a pale mixture of all styles."
    ),
)
