"""`fewstep data`: what is in a source of captioned images, and the images and captions encoded for a model."""

from collections.abc import Sequence
from shlex import quote
from typing import Any

from fewstep.commands.check_text import as_text
from fewstep.commands.program import program
from fewstep.commands.result import Result
from fewstep.configs import DataCheckConfig, DataEncodeConfig
from fewstep.data.cache import encode
from fewstep.data.check import Intake, Report, check
from fewstep.data.sources import listed
from fewstep.data.sources.filters import filters_of, write_skipped
from fewstep.errors import number_of, printable
from fewstep.events import note
from fewstep.io import cache_dir, explaining, refuse_file
from fewstep.models.load import load_model, pick_device, takes_text
from fewstep.models.model import Model
from fewstep.models.quiet import quiet
from fewstep.training.adapt import framing_of

EXAMPLES = 5  # keys that a finding names
PICTURE = "check.png"


def data_check(config: DataCheckConfig) -> Result:
    """What is in the source, with a picture of it in --out."""
    if config.out is not None:
        from fewstep.evaluate.plots import check_matplotlib

        check_matplotlib()
    model = load_model(config.model, device="meta", safety=False)
    [source] = config.source
    report = check(source, filters_of(config), intake_of(model))
    files: dict[str, str] = {}
    if config.out is not None:
        from fewstep.commands.check_picture import draw_report

        with explaining(config.out):
            config.out.mkdir(parents=True, exist_ok=True)
            if report.looks:
                files["picture"] = str(draw_report(config.out / PICTURE, report, source))
        if report.broken:
            files["skipped"] = str(write_skipped(config.out, report.broken))
    document = document_of(report, source) | files
    return Result(document, as_text(document))


def data_encode(config: DataEncodeConfig) -> Result:
    """How much was encoded, and where it lies."""
    if config.out is not None:
        refuse_file(config.out)
    [source] = config.source
    samples = listed(config, source, takes_text(config.model), config.out)
    model = load_model(config.model, device=pick_device(config.device), safety=False)
    encoded = encode(samples, model, framing_of(model, config), config.out, config.workers)
    place = config.out or cache_dir()
    if config.out is not None:
        note(f"train on it, here or elsewhere: {program()} distill --model {config.model} --data {quote(str(place))}")
    document = {"source": source, "samples": len(encoded), "size": config.size or model.size, "folder": str(place)}
    return Result(document, f"{number_of(len(encoded), 'sample')} of {printable(source)}, encoded in {place}")


def intake_of(model: Model) -> Intake:
    """How the model takes images and captions."""

    @quiet()
    def lengths(captions: Sequence[str]) -> list[int]:
        found = model.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"] if captions else []
        return [len(tokens) for tokens in found]

    if not model.takes_text:
        return Intake(lengths, 0, model.size, False)
    positions = model.text_encoder.config.max_position_embeddings
    return Intake(lengths, min(model.tokenizer.model_max_length, positions), model.size)


def document_of(report: Report, source: str) -> dict[str, Any]:
    """The report in JSON's types."""
    looks = report.looks

    def keys(found: Sequence[Any]) -> dict[str, Any]:
        named = [look.name_in(source) for look in found]
        return {"count": len(named), "examples": named[:EXAMPLES]}

    def sets(found: Sequence[Sequence[Any]]) -> dict[str, Any]:
        named = [[look.name_in(source) for look in group] for group in found]
        return {"count": sum(len(group) - 1 for group in named), "examples": named[:EXAMPLES]}

    document: dict[str, Any] = {"source": source, "images": len(looks), "left_out": report.left_out}
    document["broken"] = {
        "count": len(report.broken),
        "examples": [{"key": one.key, "reason": str(one.error.message)} for one in report.broken[:EXAMPLES]],
    }
    if not looks:
        return document
    by_area = sorted(looks, key=lambda look: look.width * look.height)
    document |= {
        "size": {
            "smallest": [by_area[0].width, by_area[0].height],
            "median": list(report.median),
            "largest": [by_area[-1].width, by_area[-1].height],
        },
        "trained_at": report.size,
        "below": keys(sorted(report.below, key=lambda look: look.smaller_side)),
        "smaller_sides": histogram([look.smaller_side for look in looks], report.size),
        "shapes": report.shapes,
        "cut_away": {"squares": round(report.cut_away(False), 4), "buckets": round(report.cut_away(True), 4)},
        "formats": {kind: sum(look.format == kind for look in looks) for kind in sorted({x.format for x in looks})},
        "turned": keys([look for look in looks if look.turned]),
        "transparent": keys([look for look in looks if look.transparent]),
        "animated": keys([look for look in looks if look.animated]),
        "doubles": sets(report.doubles),
        "alike": None if report.alike is None else sets(report.alike),
        "captions": captions_of(report),
    }
    return document


def captions_of(report: Report) -> dict[str, Any] | None:
    """What is to be said of the captions; None for a model without text."""
    if not report.lengths:
        return None
    longest = max(range(len(report.lengths)), key=report.lengths.__getitem__)
    return {
        "count": len(report.captions),
        "empty": report.empty,
        "too_long": report.too_long,
        "limit": report.limit,
        "longest": report.lengths[longest],
        "median_tokens": sorted(report.lengths)[len(report.lengths) // 2],
        "repeated": {
            "count": sum(count for _, count in report.repeated),
            "examples": [{"caption": text, "images": count} for text, count in report.repeated[:EXAMPLES]],
        },
    }


def histogram(sides: Sequence[int], size: int) -> list[dict[str, int]]:
    """How many of the sides lie in which range, by doublings around the training size; each begins at `from`."""
    starts = [0, *(int(size * 2.0**power) for power in range(-2, 4))]
    ends = [*starts[1:], max(max(sides), starts[-1]) + 1]
    bins = [
        {"from": start, "to": end, "images": sum(start <= side < end for side in sides)}
        for start, end in zip(starts, ends, strict=True)
    ]
    filled = [number for number, one in enumerate(bins) if one["images"]]
    return bins[filled[0] : filled[-1] + 1]
