"""`fewstep distill` and `fewstep finetune`: training, then a note on how to draw with the result."""

import re
from shlex import quote
from textwrap import shorten

from accelerate import PartialState

from fewstep.assets import MODEL
from fewstep.commands.program import program
from fewstep.commands.result import Result
from fewstep.configs import AdapterConfig, DistillConfig, FinetuneConfig
from fewstep.data.prompts import listed_prompts
from fewstep.errors import FewstepError
from fewstep.evaluate.curves import plot_curves
from fewstep.evaluate.previews import Previews
from fewstep.events import note
from fewstep.training import run
from fewstep.training.adapt import Trained
from fewstep.training.methods import METHODS
from fewstep.training.run import Previewer


def distill(config: DistillConfig) -> Result | None:
    """The path of the few-step LoRA or model; None in other processes than the main one."""
    return ended(config, run.distill(config, previewer_of(config)))


def finetune(config: FinetuneConfig) -> Result | None:
    """The path of the style LoRA or fine-tuned model; None in other processes than the main one."""
    return ended(config, run.finetune(config, previewer_of(config)))


def previewer_of(config: AdapterConfig) -> Previewer | None:
    """What draws and scores previews, if the config asks for them."""
    if config.preview_every is None:
        return None
    prompts = listed_prompts(config.preview_prompts).prompts if config.preview_prompts else ()
    imitates = isinstance(config, DistillConfig) and METHODS[config.method].with_teacher
    return Previews(config, prompts, imitates).draw


def ended(config: AdapterConfig, trained: Trained) -> Result | None:
    """The path of the result, with a note on how to draw with it."""
    if not PartialState().is_main_process:
        return None
    try:
        plot_curves(config.out)
    except FewstepError as error:
        note(f"no loss.png and no quality.png: {error.whole}")
    words = ["--model", str(trained.result)]
    if not config.full:
        words = [*([] if config.model == MODEL else ["--model", config.model]), "--lora", str(config.out)]
    typed = [quote(word) for word in words]
    if trained.caption is not None:
        prompt = shorten(re.sub(r'["$`\\!%]', "", trained.caption), 60, placeholder="") or "a photo"
        typed.insert(0, f'"{prompt}"')
    note(f"draw with it: {program()} sample {' '.join(typed)}")
    return Result({"out": str(trained.result)}, str(trained.result))
