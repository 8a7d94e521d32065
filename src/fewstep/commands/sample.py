"""`fewstep sample`: pictures from prompts, each in a file that carries its recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.commands.redraw import redrawn, tell_changed_loras
from fewstep.configs import Draw, SampleConfig, build
from fewstep.configs.draw import no_prompt
from fewstep.data.prompts import read_prompts
from fewstep.images import read_bytes, save_image, words_of
from fewstep.io import refuse_file
from fewstep.models.load import takes_text
from fewstep.session import Picture, PictureRecipe, Session
from fewstep.sheets import Cell, contact_columns, contact_sheet, small

SHEET = "sheet"  # the name of the contact sheet's file


class Saved(NamedTuple):
    """A picture and its file."""

    file: Path
    picture: Picture | None = None  # None is the contact sheet

    @property
    def document(self) -> dict[str, Any]:
        """The picture's entry in the output of --json."""
        recipe: dict[str, Any] = dict(self.picture.recipe) if self.picture else {}
        return {"file": str(self.file), **recipe}


def sample(config: SampleConfig) -> Iterator[Saved]:
    """The pictures of `config`, each as soon as it is saved under config.out, then their contact sheet."""
    refuse_file(config.out)
    if config.redraw is not None:
        config = redrawn(config)
    draw = draw_of(config)
    cells: list[Cell] = []
    with Session.open(config.where) as session:
        if config.redraw is not None:
            tell_changed_loras(config, session)
        for picture in session.draw(draw):
            name_files(picture.recipe, config)
            yield Saved(save_picture(picture, config), picture)
            if config.sheet:
                cells.append(Cell(small(picture.image), picture.recipe["prompt"], picture.recipe["seed"]))
    if cells:
        sheet = contact_sheet(cells, contact_columns(len(cells), draw.count))
        yield Saved(save_image(config.out / SHEET, sheet, config.format))


def draw_of(config: SampleConfig) -> Draw:
    """The request: the typed prompts, then those of --prompts. A model that takes no text needs none."""
    draw = config.draw(read_bytes)
    if config.prompt_file is None:
        if draw.prompts:
            return draw
        if takes_text(config.model):
            raise no_prompt()
        return draw.model_copy(update={"prompts": ("",)})
    more = tuple(prompt.text for prompt in read_prompts(config.prompt_file))
    return build(Draw, **draw.model_dump(exclude={"prompts"}), prompts=(*draw.prompts, *more))


def name_files(recipe: PictureRecipe, config: SampleConfig) -> None:
    """Add to the recipe the names of the picture files from which the picture was started."""
    for start, file in (
        (recipe["image"], config.image),
        (recipe["mask"], config.mask),
        (recipe["control_image"], config.control_image),
    ):
        if start is not None:
            start["file"] = str(file)


def save_picture(picture: Picture, config: SampleConfig) -> Path:
    """Save the picture with its recipe in a new file, named after prompt and seed. Returns the file's path."""
    path = config.out / f"{words_of(picture.recipe['prompt'])}-{picture.recipe['seed']}"
    return save_image(path, picture.image, config.format, picture.recipe)
