"""The pieces of the results: which rows are compared, of which prompts, and beside which pictures."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewstep.assets import ACCELERATION, MODEL, STYLES, shipped_lora, shipped_model
from fewstep.configs import CompareConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.evidence import rows_of, sampler_options
from fewstep.evaluate.prompts import prompts_for
from fewstep.evaluate.rows import parse_row
from fewstep.io import cache_dir, read_json, sha256_bytes, write_bytes
from fewstep.lora.files import open_lora
from fewstep.lora.recipe import Recipe
from studies.results.config import FINETUNED, PIECES, STYLE_STEPS, STYLE_WEIGHT, ResultsConfig

SURVEY, NAMES, TYPED, BEST, PLUGIN = 2112, 528, 208, 128, 256  # pictures of a row of each piece
TEACHER = 528  # of the teacher's own pictures, in the first two
PAIRED = 256  # of its pictures from the rows' noise, in the same two, whose tables show LPIPS
SCALES = (1.5, 2.0, 3.0, 5.0)  # guidance at which solvers are tried for their best, beside the teacher's
LORA_SCALES = (1.0, 1.5)  # and the LoRA, which has guidance in it
ROUNDS = 5  # of timing, in the last pass, when nothing else is drawn


def pieces_of(text: str) -> tuple[str, ...]:
    """The pieces that were typed, in the order of the page. Raises UsageError for one there is not."""
    typed = [word.strip() for word in text.split(",")]
    for word in typed:
        if word not in PIECES:
            raise UsageError(f"--pieces {text}: {word!r} is no piece", f"known ones: {','.join(PIECES)}")
    return tuple(piece for piece in PIECES if piece in typed)


def recipe_of_lcm() -> Recipe:
    """What the acceleration that ships says of itself."""
    file = shipped_lora(ACCELERATION)
    assert file is not None
    recipe = open_lora(file).recipe
    assert recipe is not None
    return recipe


def guidance_of(config: ResultsConfig) -> float:
    """The guidance of the teacher, and of every row without the LoRA."""
    model = shipped_model(MODEL)
    assert model is not None
    return config.teacher_guidance or float(read_json(model / "fewstep.json", "sampling recipe")["guidance_scale"])


# --- the jobs -----------------------------------------------------------------------------------------------


def jobs_of(config: ResultsConfig, piece: str) -> dict[str, CompareConfig]:
    """The comparisons of a piece, by name."""
    return JOBS[piece](config)


def survey_jobs(config: ResultsConfig) -> dict[str, CompareConfig]:
    """The four rows that surveys print, of as many pictures as a Fréchet distance needs."""
    rows = rows_of(ACCELERATION, recipe_of_lcm(), guidance_of(config))[:4]
    return {"survey": job(config, rows, SURVEY, named_drawings(), "names", TEACHER, ROUNDS, PAIRED)}


def names_jobs(config: ResultsConfig) -> dict[str, CompareConfig]:
    """All rows, on the names of things."""
    rows = rows_of(ACCELERATION, recipe_of_lcm(), guidance_of(config))
    return {"names": job(config, rows, NAMES, named_drawings(), "names", TEACHER, ROUNDS, PAIRED)}


def typed_jobs(config: ResultsConfig) -> dict[str, CompareConfig]:
    """All rows, on prompts as people type them, of which there are no drawings."""
    rows = rows_of(ACCELERATION, recipe_of_lcm(), guidance_of(config))
    return {"typed": job(config, rows, TYPED, None, "typed", teacher=TYPED)}


def best_jobs(config: ResultsConfig) -> dict[str, CompareConfig]:
    """Each of the survey's rows at several guidances, beside the drawings, which do not depend on one."""
    scales = sorted({*SCALES, guidance_of(config)})
    survey = [row.partition("@")[0] for row in rows_of(ACCELERATION, recipe_of_lcm(), 1.0)[:3]]
    rows = [f"{row}@{scale:g}" for row in survey for scale in scales]
    fast = [f"lcm:4@{scale:g}+{ACCELERATION}:1" for scale in LORA_SCALES]
    return {"best": job(config, (*rows, *fast), BEST, named_drawings(), "names")}


def plugin_jobs(config: ResultsConfig) -> dict[str, CompareConfig]:
    """A fine-tuned model and two styles: alone in many steps, with the LoRA, and with it at weight 0."""
    options, guidance = sampler_options(recipe_of_lcm()), f"{guidance_of(config):g}"
    with_lcm, without = f"lcm:4+{{style}}{ACCELERATION}:1", f"lcm{options}:4@1+{{style}}{ACCELERATION}:0"
    jobs = {}
    for name in (FINETUNED, *STYLES):
        alone = f"dpm-solver++:{STYLE_STEPS}@{guidance}" + ("" if name == FINETUNED else f"+{name}:1")
        style = "" if name == FINETUNED else f"{name}:{STYLE_WEIGHT}+"
        rows = alone, with_lcm.format(style=style), without.format(style=style)
        model = str(finetuned_model()) if name == FINETUNED else MODEL
        jobs[name] = job(config, rows, PLUGIN, some_drawings(name, PLUGIN), model=model)
    return jobs


JOBS: dict[str, Callable[[ResultsConfig], dict[str, CompareConfig]]] = {
    "survey": survey_jobs,
    "names": names_jobs,
    "typed": typed_jobs,
    "best": best_jobs,
    "plugin": plugin_jobs,
}


def job(
    config: ResultsConfig,
    rows: Sequence[str],
    images: int,
    reference: Path | None,
    prompts: str | None = None,
    teacher: int = 0,
    timing_rounds: int = 0,
    lpips: int = 0,
    model: str = MODEL,
) -> CompareConfig:
    """What `fewstep compare` would be told."""
    share = config.images
    return build(CompareConfig, model=model, rows=tuple(rows), reference=reference, images=max(8, int(share * images)),
                 prompt_file=prompts, teacher_images=int(share * teacher), lpips_images=lpips,
                 timing_rounds=timing_rounds, teacher_guidance=guidance_of(config), batch_size=config.batch_size,
                 dtype=config.dtype, device=config.device)  # fmt: skip


def plain(job: CompareConfig) -> CompareConfig | None:
    """The job's rows that the LCM-LoRA is no part of, not even at 0; None if there are none."""
    rows = tuple(row for row in job.rows if not any(is_lcm(lora) for lora in parse_row(row).loras))
    return job.model_copy(update={"rows": rows, "timing_rounds": 0}) if rows else None


def is_lcm(lora: str) -> bool:
    """Whether a row's LoRA is the acceleration that ships."""
    return lora.rpartition(":")[0] == ACCELERATION


# --- the drawings -------------------------------------------------------------------------------------------


def drawings(name: str) -> Path:
    """The table of real drawings of that name."""
    return cache_dir() / "emoji" / "images" / f"{name}.jsonl"


def named_drawings() -> Path:
    """Two drawings of each thing that `names` names, in styles at random: as many as a Fréchet distance needs."""
    rows = read_rows(drawings("base"))
    random.Random(0).shuffle(rows)
    things = {prompt.concept for prompt in prompts_for(Path("names"), None).prompts}
    of_thing: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of_thing.setdefault(row["concept"], []).append(row)
    named = [one for thing, found in of_thing.items() if thing in things for one in found[:2]]
    more = [one for thing, found in of_thing.items() if thing in things for one in found[2:]]
    return subset("named", (named + more)[:SURVEY])


def some_drawings(name: str, count: int) -> Path:
    """Some of the drawings of that name."""
    rows = read_rows(drawings(name))
    return subset(name, random.Random(0).sample(rows, min(count, len(rows))))


def read_rows(table: Path) -> list[dict[str, Any]]:
    """The lines of a table."""
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def subset(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """A table of these rows beside the whole one, named by its content."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = drawings(f"{name}-{sha256_bytes(content)[:12]}")
    if not file.is_file():
        write_bytes(file, content)
    return file


def finetuned_model() -> Path:
    """The folder of the model that the acceleration LoRA has never seen."""
    return cache_dir() / "emoji" / FINETUNED / "model"


def check_inputs(names: Sequence[str]) -> None:
    """Raise FewstepError naming the first input that is not there, and what makes it."""
    needs = {"typed": (), "plugin": (FINETUNED, *STYLES)}
    for table in (drawings(name) for piece in names for name in needs.get(piece, ("base",))):
        if not table.is_file():
            raise FewstepError(
                f"the real drawings are not there: {table}", "make them: python -m recipes.emoji.dataset"
            )
    if "plugin" in names and not (finetuned_model() / "unet").is_dir():
        raise FewstepError(
            f"the fine-tuned model is not there: {finetuned_model()}",
            "make it: python -m recipes.emoji.build --until fxemoji; or leave plugin out of --pieces",
        )
