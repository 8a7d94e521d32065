"""What a person looks at while the teacher learns: forty prompts, drawn and labelled on one sheet."""

from pathlib import Path

from captions import main_caption
from names import is_held_out
from PIL import Image, ImageDraw, ImageFont

from fewstep.configs import SampleConfig, build
from fewstep.io import atomic_path
from fewstep.models.load import Model
from fewstep.pipeline import Pipeline

SHEET_STYLES = ("fluent-3d", "noto", "twemoji", "emojione-bw")
SHEET_CONCEPTS = {  # each is held out in one of the four styles
    "1f60e": "smiling face with sunglasses",
    "1f419": "octopus",
    "1f43c": "panda",
    "1f369": "doughnut",
    "1f697": "automobile",
    "1f33b": "sunflower",
    "1f384": "Christmas tree",
    "1f3bb": "violin",
}
OWN_WORDS = (
    "a red apple",
    "cute dog, 3d style",
    "flat blue house",
    "rocket flying to the moon",
    "birthday cake with candles",
    "robot",
    "red heart, twitter style",
    "angry cat, blob",
)


def sheet_prompts() -> dict[str, bool]:
    """Prompt -> whether its pair of style and concept was kept from training; 8 concepts a style, then own words."""
    pairs = {
        main_caption(style, label): is_held_out(code, style)
        for style in SHEET_STYLES
        for code, label in SHEET_CONCEPTS.items()
    }
    return pairs | dict.fromkeys(OWN_WORDS, False)


def save_samples(model: Model, path: Path, steps: int = 20, guidance_scale: float = 4.0) -> None:
    """Draw the sheet's prompts with DPM-Solver++(2M), seeds 0, 1, ..., and write them as one PNG."""
    prompts = sheet_prompts()
    options = {"solver": "dpm-solver++", "steps": steps, "guidance_scale": guidance_scale}
    config = build(SampleConfig, prompts=tuple(prompts), model=str(model.folder), **options)
    pipeline = Pipeline(model, loras=(), recipes=())
    pictures = [picture.image for picture in pipeline.pictures(config, pipeline.plan(config))]
    labels = [prompt + " *" * held_out for prompt, held_out in prompts.items()]
    with atomic_path(path) as temporary:
        contact_sheet(pictures, labels).save(temporary, "PNG")


def contact_sheet(pictures: list[Image.Image], labels: list[str], columns: int = 8) -> Image.Image:
    """The pictures in rows, each over its label; a star marks what was kept from training."""
    font, gap, words = ImageFont.load_default(11), 6, 30
    width, height = pictures[0].width + gap, pictures[0].height + words
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % columns * width, i // columns * height
        sheet.paste(picture, (x + gap // 2, y))
        pen.multiline_text((x + gap // 2, y + picture.height + 1), wrapped(label, 24), "black", font, spacing=1)
    return sheet


def wrapped(text: str, length: int) -> str:
    """The text in two lines of about `length` letters, the rest cut."""
    if len(text) <= length:
        return text
    at = text.rfind(" ", 0, length + 1)
    at = at if at > 0 else length
    return f"{text[:at]}\n{text[at:].strip()[:length]}"
