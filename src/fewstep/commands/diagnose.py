"""`fewstep diagnose RUN`: why a run's pictures are blurry, pale or burnt, from what it recorded."""

from pathlib import Path
from typing import Any

from fewstep.commands.result import Result
from fewstep.configs import DiagnoseConfig
from fewstep.data.sources import list_samples
from fewstep.errors import FewstepError, UsageError, option, spelled
from fewstep.io import read_lines, read_object
from fewstep.lora.recipe import Recipe
from fewstep.training.card import recipe_in
from fewstep.training.diagnosis import Fault, Record, diagnosed
from fewstep.training.progress import METRICS, QUALITY

NOTHING = "nothing that is recorded looks wrong"


def diagnose(config: DiagnoseConfig) -> Result:
    """The findings about each run."""
    records = {run: record_of(Path(run)) for run in config.runs}
    found = {run: diagnosed(record) for run, record in records.items()}
    documents = [
        {"run": run, "findings": [{name: spelled(text) for name, text in f._asdict().items()} for f in findings]}
        for run, findings in found.items()
    ]
    texts = [in_words(run, found[run], bool(record.quality)) for run, record in records.items()]
    return Result(documents[0] if len(documents) == 1 else documents, "\n\n".join(texts))


def in_words(run: str, findings: list[Fault], previews: bool) -> str:
    """The findings about a run, for people. previews: whether it had any."""
    parts = [f"{one.rule}: {one.figure}.\n  why: {one.reason}.\n  change: {one.change}." for one in findings]
    if not previews:
        parts.append(f"It has no previews: with {option('preview_every')} the pictures themselves are judged too.")
    return "\n".join([run, *(parts or [f"{NOTHING}."])] if findings or previews else [run, f"{NOTHING}.", *parts])


def record_of(run: Path) -> Record:
    """What a run left in its folder. Raises FewstepError for a folder that holds no result of one."""
    if not (run / "config.json").is_file():
        raise UsageError(f"{run} is no run: it has no config.json", "name the folder that distill or finetune wrote")
    config = read_object(run / "config.json", "the run's config")
    metrics, scheduler = read_lines(run / METRICS), scheduler_of(config)
    result = run / ("model" if config.get("full") else "lora.safetensors")
    if not result.exists() and not metrics:
        raise FewstepError(f"{run} has recorded nothing yet", "wait for its first steps")
    recipe = recipe_in(result) if result.exists() else begun_recipe(config, int(metrics[-1]["step"]), scheduler or {})
    return Record(config, recipe, metrics, read_lines(run / QUALITY), captions_of(config), scheduler)


def begun_recipe(config: dict[str, Any], steps: int, scheduler: dict[str, Any]) -> Recipe:
    """What the recipe of a run without a result would be after these steps, as far as its config says it."""
    lowest = config.get("guidance_scale")
    return Recipe(
        method=config.get("method", "denoising"),
        k=config.get("k"),
        teacher_guidance_scale=lowest and (lowest, config.get("guidance_scale_max") or lowest),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        training={
            "steps": steps,
            "planned_steps": config.get("train_steps"),
            "batch_size": config.get("batch_size", 1) * config.get("accumulate", 1),
        },
    )


def captions_of(config: dict[str, Any]) -> list[str]:
    """The captions of the run's data; none where it cannot be read any more, or is not on this machine."""
    data = config.get("data")
    if not isinstance(data, str) or not Path(data).exists():
        return []
    try:
        return [caption for sample in list_samples(data, captioned=True).samples for caption in sample.captions]
    except FewstepError:
        return []


def scheduler_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """The scheduler's config of the run's model; None of a model that is no folder on this machine."""
    path = Path(str(config.get("model"))).expanduser() / "scheduler" / "scheduler_config.json"
    return read_object(path, "scheduler config") if path.is_file() else None
