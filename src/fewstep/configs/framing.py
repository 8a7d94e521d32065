"""The options of how images become the pictures that a model is trained on."""

from typing import Annotated

from pydantic import Field

from fewstep.configs.base import Config


class FramingOptions(Config):
    """How images become the pictures that a model is trained on, which are encoded once and kept."""

    buckets: bool = False
    """Keep the shapes of images: each is cut to the nearest of several shapes of the area of --size squared. All
    samples of a step have one shape. By default all are cut to squares."""
    random_crops: Annotated[int, Field(ge=0, le=64)] = 0
    """Cut so many pictures of each image, at random places, of which each visit takes one; 0 = one at the centre. They
    take as many times the space and the time to encode."""
    random_flip: bool = False
    """Keep each picture mirrored too; each visit takes one of the two. It takes twice the space and time to encode."""
    sample_latents: bool = False
    """Draw latents from the autoencoder's posterior at each visit, as the published scripts do, instead of its mean."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads that read and cut images ahead of the encoder; by default one for each processor. They change no
    result."""
