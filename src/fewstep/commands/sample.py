"""`fewstep sample`: pictures from prompts, each in a file that carries its recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.configs import SampleConfig
from fewstep.errors import UsageError, option
from fewstep.images import read_bytes, save_png, words_of
from fewstep.session import Picture, PictureRecipe, Session


class Saved(NamedTuple):
    """A picture and its file."""

    file: Path
    picture: Picture

    @property
    def document(self) -> dict[str, Any]:
        """What --json says of it."""
        return {"file": str(self.file), **self.picture.recipe}


def sample(config: SampleConfig) -> Iterator[Saved]:
    """The pictures of `config`, each as soon as it is saved under config.out."""
    if config.out.exists() and not config.out.is_dir():
        raise UsageError(f"{option('out')} {config.out} is a file", f"give {option('out')} a folder")
    draw = config.draw(read_bytes)
    with Session.open(config.where) as session:
        for picture in session.draw(draw):
            name_files(picture.recipe, config)
            yield Saved(save_picture(picture, config.out), picture)


def name_files(recipe: PictureRecipe, config: SampleConfig) -> None:
    """Write into the recipe what the files of the pictures it was started from are called."""
    for start, file in (
        (recipe["image"], config.image),
        (recipe["mask"], config.mask),
        (recipe["control_image"], config.control_image),
    ):
        if start is not None:
            start["file"] = str(file)


def save_picture(picture: Picture, folder: Path) -> Path:
    """Where the picture was saved: a PNG named for its prompt and seed, with its recipe inside; never over another."""
    path = folder / f"{words_of(picture.recipe['prompt'])}-{picture.recipe['seed']}.png"
    return save_png(path, picture.pixels, picture.recipe)
