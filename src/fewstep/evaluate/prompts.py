"""The prompts of a comparison: from a file, from the captions of real images, or from the drawings that ship."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.prompts import OF, Prompt, Prompts, listed_prompts, read_prompts, shipped_prompts
from fewstep.data.sources import Listing, list_samples
from fewstep.errors import FewstepError, option


def prompts_for(file: Path | None, reference: str | Path | None) -> Prompts:
    """The prompts of a file or of a shipped list; without one, the captions of the reference images, else of the
    shipped drawings.

    Captions of a reference are shuffled, always in the same order, so that the first few are of all kinds.
    """
    if file is not None:
        return listed_prompts(file)
    if reference is None:
        return shipped_prompts()
    path = Path(reference)
    table = path if path.suffix.lower() == ".jsonl" else path / "metadata.jsonl"
    samples = reference_images(reference, captioned=True).samples
    prompts = list(read_prompts(table)) if table.is_file() else [Prompt(sample.captions[0]) for sample in samples]
    random.Random(0).shuffle(prompts)
    return Prompts(tuple(prompts), f"captions of {reference}, shuffled")


def numbers_of(texts: Sequence[str]) -> Tensor:
    """The number of each picture's prompt, (N,), by first appearance."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return torch.tensor([number[text] for text in texts])


def reference_images(reference: str | Path, captioned: bool = False) -> Listing:
    """The images of --reference, and notes about files that are left out. Errors name --reference.

    captioned: whether captions are needed. If not, a folder may hold only images.
    """
    try:
        return list_samples(reference, captioned)
    except FewstepError as error:
        message = f"{option('reference')} {reference}: {error.message.marked}"
        raise FewstepError(message, error.hint.marked) from None


def things() -> dict[str, str]:
    """Concept -> its name in words, for the drawings that ship."""
    return {str(prompt.concept): prompt.text.partition(OF)[2] for prompt in shipped_prompts().prompts}


def bare_prompts() -> tuple[Prompt, ...]:
    """A prompt with the name of each thing among the drawings that ship. It names no style; the model chooses one."""
    return tuple(Prompt(thing, "none", concept) for concept, thing in things().items())


def styled_prompts(style: str, words: str = "") -> tuple[Prompt, ...]:
    """A prompt for each thing among the drawings that ship. words: name the style; "" if a LoRA gives the style."""
    return tuple(Prompt(f"{words} emoji of {thing}".strip(), style, concept) for concept, thing in things().items())
