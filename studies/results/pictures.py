"""The pictures of the page and of the README: the same prompts from the same noise, row under row."""

from collections.abc import Sequence

from PIL import Image

from fewstep.configs import CompareConfig
from fewstep.evaluate.rows import RowSpec, loras_of, parse_row
from fewstep.evaluate.setup import Setup, draw_row, setup_of
from fewstep.io import write_bytes
from fewstep.sheets import SheetRow, grid, small_jpeg
from studies.results.config import ResultsConfig

ACROSS, TYPED, CELL = 8, 24, 112  # pictures in a row, prompts of the sheet of typed ones, pixels of a picture
LARGEST = {"typed": 220_000, "plugin": 120_000, "readme": 90_000}  # bytes of the files
STARTS = ("ddim:32", "lcm:4+", "lcm,")  # what the rows of the typed sheet begin with, and how they are called
CALLED = {"ddim:32": ("DDIM, 32 steps", "64 NFE"), "lcm:4+": ("with lcm, 4 steps", "4 NFE"),
          "lcm,": ("without, 4 steps", "4 NFE")}  # fmt: skip


def pictures_of(config: ResultsConfig, piece: str, jobs: dict[str, CompareConfig]) -> None:
    """Write the pictures of a piece, if it has any, from what its rows drew."""
    if piece == "typed":
        (job,) = jobs.values()
        save(config, "readme", typed_sheet(job, ACROSS))
        sheets = [typed_sheet(job, TYPED)]
    elif piece == "plugin":
        sheets = [rows_sheet(job, ACROSS) for job in jobs.values()]
    else:
        return
    save(config, piece, stacked(sheets))


def rows_sheet(job: CompareConfig, count: int) -> Image.Image:
    """The first pictures of all rows of a comparison."""
    specs = list(map(parse_row, job.rows))
    names = [(f"{spec.solver}:{spec.steps}", note_of(spec)) for spec in specs]
    setup = small_setup(job, count)
    return sheet(setup, specs, names, setup.texts[:count])


def small_setup(job: CompareConfig, count: int) -> Setup:
    """For the first pictures of a comparison, in whole batches, which are drawn already."""
    images = min(-(-count // job.batch_size) * job.batch_size, job.images)
    return setup_of(job.model_copy(update={"images": images, "teacher_images": 0}))


def note_of(spec: RowSpec) -> str:
    """The guidance and the LoRAs of a row, in two lines."""
    guidance = "" if spec.guidance_scale is None else f"guidance {spec.guidance_scale:g}"
    return "\n".join(filter(None, (guidance, " + ".join(spec.loras))))


def typed_sheet(job: CompareConfig, count: int) -> Image.Image:
    """So many typed prompts: DDIM in 32 steps, the LoRA in four, and its sampler in four without it."""
    specs = list(map(parse_row, job.rows))
    chosen = [next(spec for spec in specs if is_row(spec, start)) for start in STARTS]
    setup = small_setup(job, count)
    names = [CALLED[start] for start in STARTS]
    return sheet(setup, chosen, names, setup.texts[:count])


def is_row(spec: RowSpec, start: str) -> bool:
    """Whether it is the row that is shown: of those without the LoRA the one of four unguided steps."""
    return spec.text.startswith(start) and (start != "lcm," or (spec.steps, spec.guidance_scale) == (4, 1.0))


def sheet(
    setup: Setup, specs: Sequence[RowSpec], names: Sequence[tuple[str, str]], texts: Sequence[str]
) -> Image.Image:
    """Bands of ACROSS prompts; in each the rows one under another."""
    images = []
    for spec in specs:
        setup.session.plug(loras_of(spec, setup.config.model))
        images.append(draw_row(setup, spec).pictures.first(len(texts)))
    bands = []
    for first in range(0, len(texts), ACROSS):
        part = slice(first, first + ACROSS)
        rows = [SheetRow(name, note, row[part]) for (name, note), row in zip(names, images, strict=True)]
        bands.append(grid(rows, texts[part], CELL))
    setup.session.close()
    return stacked(bands)


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """One under another, on white."""
    whole = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), "white")
    top = 0
    for one in sheets:
        whole.paste(one, (0, top))
        top += one.height
    return whole


def save(config: ResultsConfig, name: str, image: Image.Image) -> None:
    """The picture as a small JPEG beside the page."""
    write_bytes(config.out.parent / "pictures" / f"results-{name}.jpg", small_jpeg(image, LARGEST[name]))
