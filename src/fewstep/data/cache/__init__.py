"""The cache of latents and text embeddings: made once for an image, a cut and a model, and shared by runs."""

from fewstep.data.cache.encoded import Encoded
from fewstep.data.cache.encoding import captions_of, encode, facts_of
from fewstep.data.cache.index import INDEX, read_index

__all__ = ["INDEX", "Encoded", "captions_of", "encode", "facts_of", "read_index"]
