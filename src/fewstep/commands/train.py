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
from fewstep.errors import FewstepError, option
from fewstep.evaluate.curves import plot_curves
from fewstep.evaluate.previews import Previews
from fewstep.events import note
from fewstep.hub.licences import CARD
from fewstep.hub.upload import make_repository, upload
from fewstep.training import run
from fewstep.training.adapt import Trained, result_in
from fewstep.training.card import write_card
from fewstep.training.methods import METHODS
from fewstep.training.progress import check_folder
from fewstep.training.run import Previewer


def distill(config: DistillConfig) -> Result | None:
    """The path of the few-step LoRA or model; None in other processes than the main one."""
    begun(config)
    return ended(config, finished(config, run.distill(config, previewer_of(config))))


def finetune(config: FinetuneConfig) -> Result | None:
    """The path of the style LoRA or fine-tuned model; None in other processes than the main one."""
    begun(config)
    return ended(config, finished(config, run.finetune(config, previewer_of(config))))


def begun(config: AdapterConfig) -> None:
    """Make the repository that the result will go to. Raises FewstepError if it will not be possible."""
    if config.push_to_hub is not None and PartialState().is_main_process:
        check_folder(config)
        make_repository(config.push_to_hub)


def pushed(config: AdapterConfig, repository: str) -> None:
    """Upload the result, its card and its pictures. Raises FewstepError; the run's folder stays as it is."""
    out, result = config.out, result_in(config.out, config)
    files = [result] if result.is_file() else sorted(path for path in result.rglob("*") if path.is_file())
    named = {(path.name if path == result else path.relative_to(result).as_posix()): path for path in files}
    if (best := out / "best.safetensors").exists():
        named["best/lora.safetensors"] = best
    pictures = [*(out / "previews").glob("*.png"), out / "loss.png", out / "quality.png", out / CARD]
    named |= {path.relative_to(out).as_posix(): path for path in sorted(pictures) if path.exists()}
    try:
        note(f"uploaded to {upload(repository, named)}")
    except FewstepError as error:
        raise FewstepError(
            f"the result is in {result}, but was not uploaded: {error.message.marked}",
            f"{error.hint.marked}; then run again with {option('resume')}",
        ) from error


def previewer_of(config: AdapterConfig) -> Previewer | None:
    """What draws and scores previews, if the config asks for them."""
    if config.preview_every is None:
        return None
    prompts = listed_prompts(config.preview_prompts).prompts if config.preview_prompts else ()
    imitates = isinstance(config, DistillConfig) and METHODS[config.method].with_teacher
    return Previews(config, prompts, imitates).draw


def finished(config: AdapterConfig, trained: Trained) -> Trained:
    """The result, with its curves and its card beside it, uploaded if the config asks for it."""
    if PartialState().is_main_process:
        try:
            plot_curves(config.out)
        except FewstepError as error:
            note(f"no loss.png and no quality.png: {error.whole}")
        write_card(config, trained.caption or "a photo")
        if config.push_to_hub is not None:
            pushed(config, config.push_to_hub)
    return trained


def ended(config: AdapterConfig, trained: Trained) -> Result | None:
    """The path of the result, with a note on how to draw with it."""
    if not PartialState().is_main_process:
        return None
    words = ["--model", str(trained.result)]
    if not config.full:
        words = [*([] if config.model == MODEL else ["--model", config.model]), "--lora", str(config.out)]
    typed = [quote(word) for word in words]
    if trained.caption is not None:
        prompt = shorten(re.sub(r'["$`\\!%]', "", trained.caption), 60, placeholder="") or "a photo"
        typed.insert(0, f'"{prompt}"')
    note(f"draw with it: {program()} sample {' '.join(typed)}")
    return Result({"out": str(trained.result)}, str(trained.result))
