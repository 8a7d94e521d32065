"""The pieces of the results: which rows are compared and which weights are tried, of which images."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.assets import ACCELERATION, MODEL, STYLES
from fewstep.configs import CompareConfig, TuneConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.prompts import OF, reference_images
from fewstep.io import cache_dir, sha256_bytes, write_bytes
from fewstep.sheets import small_jpeg
from studies.results.config import BARE, FINETUNED, LCM_STEPS, PIECES, STYLE_STEPS, STYLE_WEIGHT, WEIGHTS, ResultsConfig
from studies.results.jobs import measured

FAST = f"lcm:{{steps}}@1+{ACCELERATION}:1"
TABLE_ROWS = (
    "ddim:32@best",
    "dpm-solver:16@best",
    "dpm-solver++:8@best",
    *(FAST.format(steps=steps) for steps in (4, 2)),
)
CONTROL_ROWS = (
    "ddim:32@best",
    *(FAST.format(steps=steps) for steps in (4, 1, 8)),
    "ddim:4@best",
    BARE,  # what LCM's sampler does by itself
    f"lcm,grid=lcm:4@1+{ACCELERATION}:1",  # and the LoRA where LCM spaces its timesteps
    "dpm-solver++,grid=quadratic:8@best",  # and others where lcm does
)
LABEL_ROWS = (
    "ddim:32@best",
    "dpm-solver++:8@best",
    *(FAST.format(steps=steps) for steps in (4, 2)),
    BARE,
)
FINETUNED_ROWS = ("dpm-solver++:25@best", *(FAST.format(steps=steps) for steps in (4, 2)))
CONTROL_IMAGES, GRID_IMAGES = 2112, 128
# guidance scales that solvers are tried at: of the model; of it with one style's LoRA; of one fine-tuned to a style
GUIDANCE, STYLE_GUIDANCE, FINETUNED_GUIDANCE = "1,1.25,1.5,2", "1,1.25,1.5,2,3,4,6", "1,1.25,1.5,2,3"
TIMING_ROUNDS = 7  # in the last pass, when nothing else is drawn
LARGEST = 75_000  # bytes of a picture file; there are eight


def pieces_of(text: str) -> tuple[str, ...]:
    """The pieces that were typed, in the order of the page. Raises UsageError for one there is not."""
    typed = [word.strip() for word in text.split(",")]
    for word in typed:
        if word not in PIECES:
            raise UsageError(f"--pieces {text}: {word!r} is no piece", f"known ones: {','.join(PIECES)}")
    return tuple(piece for piece in PIECES if piece in typed)


def drawings(name: str) -> Path:
    """The table of real drawings of that name."""
    return cache_dir() / "emoji" / "images" / f"{name}.jsonl"


def finetuned_model() -> Path:
    """The folder of the model that the acceleration LoRA has never seen."""
    return cache_dir() / "emoji" / FINETUNED / "model"


def check_inputs(names: Sequence[str]) -> None:
    """Raise FewstepError naming the first input that is not there, and what makes it."""
    needs = {"figure3": STYLES, "grid": (), "finetuned": (FINETUNED,)}
    for table in (drawings(name) for piece in names for name in needs.get(piece, ("base",))):
        if not table.is_file():
            raise FewstepError(
                f"the real drawings are not there: {table}", "make them: python -m recipes.emoji.dataset"
            )
    if "finetuned" in names and not (finetuned_model() / "unet").is_dir():
        raise FewstepError(
            f"the fine-tuned model is not there: {finetuned_model()}",
            "make it: python -m recipes.emoji.build --until fxemoji; or leave it out of --pieces",
        )


def table_piece(config: ResultsConfig) -> dict[str, Any]:
    """LCM-LoRA and the solvers at the steps they are known for."""
    job = comparison(config, TABLE_ROWS, drawings("base"), config.images, config.seed_sets)
    return only(config, "table", job)


def controls_piece(config: ResultsConfig) -> dict[str, Any]:
    """LCM-LoRA at other steps, without the LoRA, at equal steps without it, and on the other grid."""
    job = comparison(config, CONTROL_ROWS, drawings("base"), min(config.images, CONTROL_IMAGES))
    return only(config, "controls", job)


def labels_piece(config: ResultsConfig) -> dict[str, Any]:
    """The same where prompts leave the style open, which has to be decided in the few steps too."""
    file, count = labels(drawings("base"))
    job = comparison(config, LABEL_ROWS, drawings("base"), min(config.images, count))
    return only(config, "labels", job.model_copy(update={"prompt_file": file}))


def labels(table: Path) -> tuple[Path, int]:
    """A prompt file, named by its content, of what captions say after the style, each thing once; and how many."""
    lines = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(lines)
    things = {line["concept"]: line | {"text": line["text"].partition(OF)[2]} for line in lines}
    rows = [json.dumps({key: thing[key] for key in ("text", "style", "concept")}) for thing in things.values()]
    content = "\n".join(rows).encode()
    file = cache_dir() / "results" / f"labels-{sha256_bytes(content)[:16]}.jsonl"
    write_bytes(file, content)
    return file, len(rows)


def figure3_piece(config: ResultsConfig) -> dict[str, Any]:
    """Each style alone by its steps, at the guidance that is best for it at most of them, and with lcm."""

    def job(style: str, rows: Sequence[str]) -> CompareConfig:
        return comparison(config, rows, drawings(style), few(config, drawings(style)), guidance_grid=STYLE_GUIDANCE)

    searches = measured(config, [job(style, (alone(style, STYLE_STEPS[0], "best"),)) for style in STYLES])
    best = [search.document["rows"][0] for search in searches]
    jobs = [job(style, style_rows(style, row["guidance_scale"])) for style, row in zip(STYLES, best, strict=True)]
    return {
        style: {
            "guidance_search": row["guidance_search"],
            "comparison": done.document,
            "picture": picture(config, f"figure3-{style}", done.sheet),
        }
        for style, row, done in zip(STYLES, best, measured(config, jobs), strict=True)
    }


def alone(style: str, steps: int, guidance: str) -> str:
    """The row of a style without acceleration."""
    return f"dpm-solver++:{steps}@{guidance}+{style}:1"


def style_rows(style: str, guidance: float) -> tuple[str, ...]:
    """The rows of Figure 3; the first is what the others are held against."""
    return (
        *(alone(style, steps, f"{guidance:g}") for steps in STYLE_STEPS),
        *(f"lcm:{steps}@1+{style}:{STYLE_WEIGHT}+{ACCELERATION}:1" for steps in LCM_STEPS),
    )


def grid_piece(config: ResultsConfig) -> dict[str, Any]:
    """Weights of each style with weights of lcm."""
    jobs = [
        build(TuneConfig, style=style, acceleration=ACCELERATION, model=MODEL, grid=WEIGHTS, rounds=0,
              images=min(config.images, GRID_IMAGES), batch_size=config.batch_size, dtype=config.dtype,
              device=config.device)
        for style in STYLES
    ]  # fmt: skip
    return {
        style: {"tuning": done.document, "picture": picture(config, f"grid-{style}", done.sheet)}
        for style, done in zip(STYLES, measured(config, jobs), strict=True)
    }


def finetuned_piece(config: ResultsConfig) -> dict[str, Any]:
    """A fine-tuned model alone, and with the lcm that was made of another."""
    reference = drawings(FINETUNED)
    job = comparison(config, FINETUNED_ROWS, reference, few(config, reference), model=str(finetuned_model()),
                     guidance_grid=FINETUNED_GUIDANCE)  # fmt: skip
    return only(config, "finetuned", job)


def only(config: ResultsConfig, name: str, job: CompareConfig) -> dict[str, Any]:
    """A piece that is one comparison."""
    (done,) = measured(config, [job])
    return {"comparison": done.document, "picture": picture(config, name, done.sheet)}


MEASURED: dict[str, Callable[[ResultsConfig], dict[str, Any]]] = {
    "table": table_piece,
    "controls": controls_piece,
    "labels": labels_piece,
    "figure3": figure3_piece,
    "grid": grid_piece,
    "finetuned": finetuned_piece,
}


def few(config: ResultsConfig, reference: Path) -> int:
    """As many images as there are real ones, or fewer if fewer were asked for."""
    return min(config.images, len(reference_images(reference).samples))


def comparison(
    config: ResultsConfig,
    rows: Sequence[str],
    reference: Path,
    images: int,
    seed_sets: int = 1,
    model: str = MODEL,
    guidance_grid: str = GUIDANCE,
) -> CompareConfig:
    """What `fewstep compare` would be told; another guidance grid only where none was typed."""
    return build(CompareConfig, model=model, rows=tuple(rows), reference=reference, images=images, seed_sets=seed_sets,
                 guidance_grid=config.guidance_grid or guidance_grid, timing_rounds=TIMING_ROUNDS,
                 batch_size=config.batch_size, dtype=config.dtype, device=config.device)  # fmt: skip


def picture(config: ResultsConfig, name: str, sheet: Path) -> str:
    """The sheet as a JPEG of at most LARGEST bytes beside the page, and its path from there."""
    path = f"pictures/results-{name}.jpg"
    with Image.open(sheet) as image:
        write_bytes(config.out.parent / path, small_jpeg(image, LARGEST))
    return path
