"""`fewstep sample`: pictures from prompts, each in a file that carries its recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.configs import SampleConfig
from fewstep.errors import UsageError
from fewstep.images import read_bytes, save_png, words_of
from fewstep.session import Picture, Session

FILES = ("image", "mask", "control_image")  # options that name a picture to start from


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
        raise UsageError(f"--out {config.out} is a file", "give --out a folder")
    draw = config.draw(read_bytes)
    names = {name: str(path) for name in FILES if (path := getattr(config, name)) is not None}
    with Session.open(config.where) as session:
        for picture in session.draw(draw):
            picture = picture._replace(recipe=picture.recipe | names)
            yield Saved(save_picture(picture, config.out), picture)


def save_picture(picture: Picture, folder: Path) -> Path:
    """Where the picture was saved: a PNG named for its prompt and seed, with its recipe inside; never over another."""
    path = folder / f"{words_of(picture.recipe['prompt'])}-{picture.recipe['seed']}.png"
    return save_png(path, picture.pixels, picture.recipe)
