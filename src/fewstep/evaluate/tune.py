"""`fewstep tune`: finds the weights in tau' = l1 style + l2 acceleration by measuring pictures."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fewstep import __version__
from fewstep.assets import STYLES, shipped_kit
from fewstep.configs import Draw, TuneConfig, build
from fewstep.data.prompts import Prompt, Prompts
from fewstep.engines import for_changing_loras
from fewstep.errors import FewstepError, Line, UsageError, number_of, option
from fewstep.evaluate.candidates import (
    BLOCKS,
    Scored,
    WeightPair,
    block_moves,
    coarse,
    grid_of,
    nearest,
    neighbours,
    ranked,
    spacing,
    typed,
    within_error,
)
from fewstep.evaluate.measure import drawings_for, labelled_pictures
from fewstep.evaluate.prompts import prompts_for, reference_images, styled_prompts
from fewstep.evaluate.protocol import prompts_sha256, surroundings
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures, draw
from fewstep.events import note
from fewstep.io import atomic_folder, read_json, refuse_file, write_json
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.estimate import estimate, share
from fewstep.metrics.features import features_of, read_real
from fewstep.metrics.frechet import Statistics, distance_to, statistics
from fewstep.metrics.networks import EfficientNet, Inception, load_efficientnet, load_inception
from fewstep.metrics.reference import Reference, agreement_with, load_reference
from fewstep.models.model import parts_sha256
from fewstep.models.references import parse_reference
from fewstep.session import Plan, Session
from fewstep.sheets import SheetRow, captioned, grid, sized

CELL_PICTURES, CELL = 4, 128  # pictures of a pair on the sheets, two by two; pixels of a side
SCORE = (
    "score: the smallest distance to the style; among the pairs within one standard error of it (the error of the"
    " difference, paired by prompt and noise), the best agreement"
)
ERRORS = "errors: one standard error, jackknife over groups of images"
CLIP = "CLIP score left out: no package carries CLIP's weights; agreement takes its place"
COLUMNS = ("pair", "found in", "style distance", "behind the nearest", "within error", "agreement %", "rank")


class Judges(NamedTuple):
    """The tools that measure how near images are to a style, and whether they show their concept."""

    network: Inception | EfficientNet
    style: Statistics  # statistics of the network's features of real images in the style
    style_source: str  # those images, in words
    efficientnet: EfficientNet | None  # for agreement; None = without agreement
    drawings: Reference | None
    notes: tuple[str, ...]


class TriedPair(NamedTuple):
    """A pair that was drawn."""

    scored: Scored
    found_in: str  # grid, round 1, ..., blocks
    pictures: RowPictures
    chance: float | None  # the agreement of drawings picked at random; None = not measured


class Tuning(NamedTuple):
    """The document, and the sheets of pictures."""

    document: dict[str, Any]  # as in table.json
    sheets: dict[str, Image.Image]  # name -> sheet


def tune(config: TuneConfig) -> dict[str, Any]:
    """The document {"protocol", "candidates", "best"}. It and the sheets are written to config.out, or nothing is."""
    axes = grid_of(config.grid)
    check_out(config.out)
    for lora in (config.style, config.acceleration):
        if (reference := parse_reference(lora)).weight != 1 or reference.blocks:
            raise UsageError(f"{lora} has a weight, but tune finds the weights", "name the LoRA without a weight")
        _ = reference.file  # raises for a missing file before anything is drawn
    tuning = tuned(config, axes)
    with atomic_folder(config.out) as folder:
        for name, sheet in tuning.sheets.items():
            sheet.save(folder / f"{name}.png", "PNG")
        (folder / "table.md").write_text(markdown(tuning.document) + "\n", encoding="utf-8")
        write_json(folder / "table.json", tuning.document)
    return tuning.document


def check_out(out: Path) -> None:
    """Raise UsageError for a file, and for a folder that holds something other than an earlier tuning."""
    refuse_file(out)
    if not out.exists() or not any(out.iterdir()):
        return
    table = out / "table.json"
    if not table.is_file() or "candidates" not in read_json(table, "table"):
        raise UsageError(f"{option('out')} {out} holds something else than a tuning", f"choose another {option('out')}")


def tuned(config: TuneConfig, axes: tuple[Sequence[float], Sequence[float]]) -> Tuning:
    """Draw, measure and rank everything."""
    listed = prompts_of(config)
    prompts = tuple(islice(cycle(listed.prompts), config.images))
    engine = for_changing_loras(config.engine)
    session = Session(config.model, (), engine=engine, dtype=config.dtype, device=config.device)
    config = config.model_copy(update={"dtype": session.engine.dtype})  # as the protocol has it
    size, device = session.facts.size, session.engine.device
    around = surroundings(parts_sha256(session.facts.path), device)
    judges = load_judges(config, prompts, size, device)
    for text in judges.notes:
        note(text)

    def attempted(pair: WeightPair, found_in: str) -> TriedPair:
        return attempt(session, config, judges, prompts, around, pair, found_in)

    tried = search(config, axes, attempted)
    order = ranked([one.scored for one in tried])
    protocol = protocol_of(config, judges, around, listed, prompts, size, tried)
    entries = [entry(config, one, order) for one in tried]
    best = entries[[one.scored for one in tried].index(order[0])]
    document = {
        "protocol": protocol,
        "candidates": entries,
        "best": {"lora": best["lora"], "typed": typed(best["lora"])},
    }
    return Tuning(document, sheets_of(config, axes, tried, order))


def prompts_of(config: TuneConfig) -> Prompts:
    """The requested prompts; for a style that ships, one for each thing among the shipped drawings."""
    if config.prompt_file is not None or config.reference is not None:
        return prompts_for(config.prompt_file, config.reference)
    if config.style not in STYLES:
        raise UsageError(
            f"the look of the style {config.style} is not known",
            f"name a folder of images in this style with {option('reference')}",
        )
    return Prompts(styled_prompts(config.style), "the things in the drawings that ship, without a style")


def load_judges(config: TuneConfig, prompts: Sequence[Prompt], size: int, device: torch.device) -> Judges:
    """FID's network with --reference; without it, the shipped statistics of EfficientNet's features for the style."""
    if config.reference is None:
        network = load_efficientnet(device)
        drawings = load_reference(shipped_kit() / "reference.safetensors")
        style = drawings.statistics[config.style].expanded()
        return Judges(network, style, f"{style.count} drawings of {config.style}", network, drawings, (CLIP,))
    inception = load_inception(device)
    real_images, left_out, _ = reference_images(config.reference)
    real = read_real(real_images, str(config.reference), size, inception)
    style = statistics([real.features], inception.label)
    style_source = f"{len(real.features)} images of {real.source} (sha256 {real.sha256})"
    try:
        if not any(prompt.style and prompt.concept for prompt in prompts):
            raise FewstepError(
                "the prompts have no style and concept", f"{option('prompt_file')} takes a .jsonl file with both"
            )
        return Judges(
            inception, style, style_source, load_efficientnet(device), drawings_for(prompts), (CLIP, *left_out)
        )
    except FewstepError as error:
        note = f"agreement left out: {error.whole}"
        return Judges(inception, style, style_source, None, None, (CLIP, *left_out, note))


# --- searching ----------------------------------------------------------------------------------------------


def search(
    config: TuneConfig, axes: tuple[Sequence[float], Sequence[float]], attempt: Callable[[WeightPair, str], TriedPair]
) -> list[TriedPair]:
    """All tried pairs, in order: the grid, the rounds, the blocks. Each part starts from the best pair before it."""
    tried: dict[WeightPair, TriedPair] = {}

    def best_after(pairs: Sequence[WeightPair], found_in: str) -> WeightPair:
        for pair in pairs:
            if pair not in tried:
                tried[pair] = attempt(pair, found_in)
        return ranked([one.scored for one in tried.values()])[0].pair

    best = best_after(coarse(axes), "grid")
    steps = spacing(axes[0]), spacing(axes[1])
    for number in range(config.rounds):
        steps = steps[0] / 2, steps[1] / 2
        best = best_after(neighbours(best, steps), f"round {number + 1}")
    if config.blocks:
        for (lora, step), block in (
            (one, block) for one in zip(WeightPair._fields, steps, strict=True) for block in BLOCKS
        ):
            best = best_after(block_moves(best, lora, block, step), "blocks")
    return list(tried.values())


def attempt(
    session: Session,
    config: TuneConfig,
    judges: Judges,
    prompts: Sequence[Prompt],
    around: dict[str, Any],
    pair: WeightPair,
    found_in: str,
) -> TriedPair:
    """Draw the pair, and measure the distance of its images to the style and their agreement."""
    pictures = draw_pair(session, config, prompts, around, pair)
    features = features_of(judges.network, pictures)
    distance = estimate(lambda images: distance_to(features[images], judges.style), len(features))
    agreement, chance = None, None
    if judges.efficientnet and judges.drawings:
        labelled = seen(judges, features, pictures, prompts)
        result = agreement_with(labelled, judges.drawings)
        agreement, chance = share(result.hits), result.chance
    return TriedPair(Scored(pair, distance, agreement), found_in, pictures, chance)


def draw_pair(
    session: Session, config: TuneConfig, prompts: Sequence[Prompt], around: dict[str, Any], pair: WeightPair
) -> RowPictures:
    """The images of a pair of weights. Every pair has the same prompts and seeds."""
    loras = pair.loras(config.style, config.acceleration)
    session.plug(loras)
    texts = tuple(prompt.text for prompt in prompts)
    wish = build(Draw, prompts=texts, steps=config.steps, batch_size=config.batch_size)
    return draw(session, plan_of(config, session, wish), wish, around, " ".join(loras))


def plan_of(config: TuneConfig, session: Session, wish: Draw) -> Plan:
    """The plan for the pair. Raises UsageError if neither a LoRA nor the model is an acceleration."""
    if not any(recipe.accelerates for recipe in session.recipes):
        raise UsageError(
            f"{option('acceleration')} {config.acceleration} is not known as an acceleration",
            f"see fewstep inspect {config.acceleration}",
        )
    return session.plan(wish)


def seen(judges: Judges, features: Tensor, pictures: RowPictures, prompts: Sequence[Prompt]) -> Pictures:
    """EfficientNet's features of the images, with the styles and concepts of their prompts."""
    assert judges.efficientnet is not None
    own = features if judges.network is judges.efficientnet else features_of(judges.efficientnet, pictures)
    labelled = labelled_pictures(own, prompts)
    assert labelled is not None  # load_judges has made sure
    return labelled


# --- writing ------------------------------------------------------------------------------------------------


def entry(config: TuneConfig, one: TriedPair, order: Sequence[Scored]) -> dict[str, Any]:
    """A pair, as in table.json. None: not measured."""
    pair, distance, agreement = one.scored
    first = nearest(order)
    behind = distance.less(first.distance)
    return {
        "lora": list(pair.loras(config.style, config.acceleration)),
        "style_weight": pair.style.of,
        "style_blocks": dict(pair.style.blocks),
        "acceleration_weight": pair.acceleration.of,
        "acceleration_blocks": dict(pair.acceleration.blocks),
        "found_in": one.found_in,
        "style_distance": distance.value,
        "style_distance_error": distance.error,
        "behind": behind.value,
        "behind_error": behind.error,
        "within_error": within_error(one.scored, first),
        "agreement": agreement.value if agreement else None,
        "agreement_error": agreement.error if agreement else None,
        "rank": order.index(one.scored) + 1,
    }


def protocol_of(
    config: TuneConfig,
    judges: Judges,
    around: dict[str, Any],
    listed: Prompts,
    prompts: Sequence[Prompt],
    size: int,
    tried: Sequence[TriedPair],
) -> dict[str, Any]:
    """Everything that the numbers depend on, as data."""
    plan = tried[0].pictures.plan
    networks = {network.label: network.sha256 for network in (judges.network, judges.efficientnet) if network}
    return {
        "fewstep": __version__,
        **{key: around[key] for key in ("versions", "machine")},
        "model": {"name": config.model, "sha256": around["model_sha256"]},
        "style": tried[0].pictures.loras[0] | {"weight": None},
        "acceleration": tried[0].pictures.loras[1] | {"weight": None},
        "solver": plan.solver_name,
        "steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "dtype": config.dtype,
        "size": size,
        "prompts": {"source": listed.source, "count": len(set(prompts)), "sha256": prompts_sha256(prompts)},
        "images": config.images,
        "seeds": "image i has seed i, in every pair",
        "search": f"grid {config.grid}, {config.rounds} rounds of halved steps" + ", blocks" * config.blocks,
        "style_distance": f"Fréchet distance of features ({judges.network.label}) to {judges.style_source}; too large"
        " by an amount that depends on the number of images: compare only at equal numbers",
        "networks": networks,
        "agreement_chance": tried[0].chance,
        "score": SCORE,
        "errors": ERRORS,
        "left_out": [Line(text) for text in judges.notes],
    }


def markdown(document: dict[str, Any]) -> str:
    """The table, best pair first, then the protocol, and the best pair as options."""
    p, lines = document["protocol"], sorted(document["candidates"], key=lambda row: int(row["rank"]))
    chance = "" if p["agreement_chance"] is None else f"agreement: chance {100 * p['agreement_chance']:.2f} %"
    facts = [
        f"model: {p['model']['name']} (sha256 {p['model']['sha256'][:12]}), {p['size']} px, {p['dtype']};"
        f" {p['solver']}, {number_of(p['steps'], 'step')}, guidance {p['guidance_scale']:g}",
        f"images: {p['images']} per pair, {number_of(p['prompts']['count'], 'prompt')} ({p['prompts']['source']});"
        f" {p['seeds']}",
        f"style distance: {p['style_distance']}",
        *([chance] if chance else []),
        p["score"],
        p["errors"],
        f"search: {p['search']}",
        *p["left_out"],
    ]
    return (
        f"{text_table(COLUMNS, [cells(row) for row in lines])}\n\n"
        + "".join(f"- {line}\n" for line in facts)
        + f"\nbest: {document['best']['typed']}"
    )


def cells(row: dict[str, Any]) -> list[str]:
    """A pair as text."""
    agreement = (
        "-" if row["agreement"] is None else f"{100 * row['agreement']:.1f} ± {100 * row['agreement_error']:.1f}"
    )
    return [
        " ".join(Path(lora).name for lora in row["lora"]),
        row["found_in"],
        f"{row['style_distance']:.1f} ± {row['style_distance_error']:.1f}",
        f"{row['behind']:.1f} ± {row['behind_error']:.1f}",
        "yes" if row["within_error"] else "no",
        agreement,
        str(row["rank"]),
    ]


def sheets_of(
    config: TuneConfig,
    axes: tuple[Sequence[float], Sequence[float]],
    tried: Sequence[TriedPair],
    order: Sequence[Scored],
) -> dict[str, Image.Image]:
    """The sheets: the grid (rows: style weights, columns: acceleration weights), and the later pairs, best first."""
    by_pair = {one.scored.pair: one for one in tried}
    rows = []
    for weight in axes[0]:
        line = [by_pair[pair] for pair in coarse(((weight,), axes[1]))]
        notes = "\n".join(
            f"{b:g}: distance {one.scored.distance.value:.1f}" for b, one in zip(axes[1], line, strict=True)
        )
        rows.append(SheetRow(f"style {weight:g}", notes, [mosaic(one.pictures) for one in line]))
    sheets = {"sheet": grid(rows, [f"acceleration {weight:g}" for weight in axes[1]], 2 * CELL)}
    later = [by_pair[one.pair] for one in order if by_pair[one.pair].found_in != "grid"]
    if later:
        labels = [f"{order.index(one.scored) + 1}: {' '.join(cut_loras(config, one.scored.pair))}" for one in later]
        sheets["refined"] = captioned([mosaic(one.pictures) for one in later], labels, columns=4)
    return sheets


def cut_loras(config: TuneConfig, pair: WeightPair) -> Iterator[str]:
    """The LoRAs with their weights, without their folders."""
    return (Path(lora).name for lora in pair.loras(config.style, config.acceleration))


def mosaic(pictures: RowPictures) -> Image.Image:
    """The first CELL_PICTURES pictures, two by two."""
    cell = Image.new("RGB", (2 * CELL, 2 * CELL), "white")
    for number, image in enumerate(pictures.first(CELL_PICTURES)):
        cell.paste(sized(image, CELL), (number % 2 * CELL, number // 2 * CELL))
    return cell
