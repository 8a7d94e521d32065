"""The turns of a benchmark, one after another, and what they add up to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fewstep import __version__
from fewstep.assets import MODEL
from fewstep.configs import BenchConfig, Where, build
from fewstep.engines import kind_for
from fewstep.errors import FewstepError
from fewstep.evaluate.bench.arrangements import GUIDE, OWN, TUNED
from fewstep.evaluate.bench.plan import BenchPlan, planned
from fewstep.evaluate.bench.process import in_own_process
from fewstep.evaluate.bench.turn import REST, Turn, TurnPlan, matmul_rate, taken
from fewstep.evaluate.protocol import machine, versions
from fewstep.evaluate.row_pictures import PARTS
from fewstep.events import counted, doing, note
from fewstep.hub import resolved
from fewstep.images import image_size, read_image
from fewstep.io import cache_dir, scratch
from fewstep.lora.files import open_lora
from fewstep.metrics.psnr import psnr
from fewstep.models.load import DTYPES, pick_device
from fewstep.models.references import parse_reference

ALL_PARTS = (*PARTS, REST)
EQUAL_DB = 100.0  # of pictures that are equal
DECISIVE = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx", "arm", "sve", "neon")
Rates = Mapping[str, float]  # precision -> floating-point operations a second in matrix products
Round = tuple[dict[str, Turn], Rates]  # the turns by arrangement


def bench(config: BenchConfig) -> dict[str, Any]:
    """The rows and what their numbers rest on, in JSON's types. Nothing of a random model is left behind."""
    for engine in config.engine:
        kind_for(build(Where, model=config.model, engine=engine, dtype=config.dtype, device=config.device))
    device = pick_device(config.device)
    fetch(config)
    with scratch(cache_dir() / "bench") as spare:
        with doing("preparing the model"):
            plan = in_own_process(planned, config, spare)
        rounds = take_turns(config, plan, device)
        exact = exact_picture(plan) if config.accuracy else None
    return {
        "fewstep": __version__,
        "versions": versions(),
        "machine": machine(device),
        "instructions": instructions(),
        "model": config.random or config.model,
        "random": config.random is not None,
        "lora": [Path(name).name for name in plan.loras],
        "solver": plan.plan.solver_name,
        "steps": plan.plan.steps,
        "guidance_scale": plan.plan.guidance_scale,
        "width": plan.draw.width,
        "height": plan.draw.height,
        "decoder": config.decoder,
        "rounds": config.rounds,
        "flops": plan.flops._asdict() | {"picture": plan.flops.total(plan.plan.steps)},
        "matmul_flops_per_s": {name: median(rates[name] for _, rates in rounds) for name in rounds[0][1]},
        "rows": [row_of(name, rounds, plan, exact) for name in rounds[0][0]],
    }


def fetch(config: BenchConfig) -> None:
    """Download what is not on this machine yet, here, where progress is shown. Raises FewstepError for a bad LoRA."""
    if config.random is None and config.model != MODEL:
        resolved(config.model)
    for lora in config.loras or ():
        open_lora(parse_reference(lora).file)


def arrangements(config: BenchConfig) -> list[str]:
    """The names of the arrangements, in the order of their turns."""
    return [*(f"{OWN}{engine}" for engine in config.engine), *(() if config.alone else (GUIDE, TUNED))]


def take_turns(config: BenchConfig, plan: BenchPlan, device: torch.device) -> list[Round]:
    """All turns. The first of an arrangement finds the batch that gives the most pictures a second."""
    names, rounds, best = arrangements(config), list[Round](), dict[str, int]()
    everything = [(number, name) for number in range(config.rounds) for name in names]
    for number, name in counted(everything, "measuring", "turn", len(everything)):
        if number == len(rounds):
            rounds.append(({}, {}))
        turns, rates = rounds[number]
        batches = tuple(sorted({1, best[name]})) if name in best else doubling(config.largest_batch)
        turns[name] = turn = turn_of(name, plan, TurnPlan(config.pictures, batches))
        if turn.rates:
            best.setdefault(name, max(turn.rates, key=turn.rates.__getitem__))
        if turn.dtype in DTYPES and turn.dtype not in rates:
            rate = in_own_process(matmul_rate, DTYPES[turn.dtype], device)
            rounds[number] = (turns, {**rates, turn.dtype: rate})
    return rounds


def turn_of(name: str, plan: BenchPlan, what: TurnPlan) -> Turn:
    """A turn, in a process of its own. If that ends before, the turn says so, and the others go on."""
    try:
        return in_own_process(taken, name, plan, what)
    except FewstepError as error:
        return Turn(missing=error.whole)


def exact_picture(plan: BenchPlan) -> bytes | None:
    """The first picture in fp32 in torch with the model's own decoder, as a PNG; None if it could not be drawn."""
    turn = turn_of(f"{OWN}torch", plan._replace(dtype="fp32", decoder="full"), TurnPlan(0, ()))
    if turn.missing:
        note(f"no picture in fp32 to compare with: {turn.missing}")
    return turn.png or None


def psnr_db(exact: bytes, other: bytes) -> float:
    """The PSNR of two PNG files in dB; 100 for equal ones."""
    one, two = (read_image(file, *image_size(file))[None] for file in (exact, other))
    return min(float(psnr(one, two)), EQUAL_DB)


def doubling(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `largest`."""
    return tuple(2**i for i in range(largest.bit_length()))


def row_of(name: str, rounds: Sequence[Round], plan: BenchPlan, exact: bytes | None = None) -> dict[str, Any]:
    """What the turns of an arrangement add up to: medians, and ratios of what was measured in the same round.

    exact: the picture in fp32 that those of fewstep are compared with.
    """
    own = [turns[name] for turns, _ in rounds]
    missing = next((turn.missing for turn in own if turn.missing), "")
    if missing:
        return {"arrangement": name, "missing": missing}
    pictures = [one for turn in own for one in turn.pictures]
    parts = {part: median(one[part] for one in pictures) for part in ALL_PARTS}
    best = max(own[0].rates, key=own[0].rates.__getitem__)
    dtype, of_fewstep = own[0].dtype, name.startswith(OWN)
    operations = (plan.own_flops if of_fewstep else plan.flops).total(plan.plan.steps)
    peaks = [turn.peak_bytes for turn in own if turn.peak_bytes is not None]
    return {
        "arrangement": name,
        "missing": "",
        "engine": own[0].engine,
        "dtype": dtype,
        "psnr_db": psnr_db(exact, own[0].png) if exact and of_fewstep else None,
        "load_s": median(turn.load for turn in own),
        "first_s": median(turn.first for turn in own),
        "picture_s": median(sum(one.values()) for one in pictures),
        "parts_s": parts,
        "step_s": parts["network"] / plan.plan.steps,
        "pictures_per_s": median(turn.rates[1] for turn in own),
        "best_batch": best,
        "best_pictures_per_s": median(turn.rates[best] for turn in own),
        "peak_bytes": max(peaks, default=None),
        "floor_s": ratio(rounds, lambda turns, rates: operations / rates[dtype]),
        "over_floor": ratio(rounds, lambda turns, rates: picture_s(turns[name]) * rates[dtype] / operations),
        "times_as_fast": {
            other: ratio(rounds, lambda turns, rates, other=other: picture_s(turns[other]) / picture_s(turns[name]))
            for other in (GUIDE, TUNED)
        },
    }


def picture_s(turn: Turn) -> float:
    """Seconds of a picture, the median. Raises StatisticsError where there is none."""
    return median(sum(one.values()) for one in turn.pictures)


def ratio(rounds: Sequence[Round], of_round: Callable[..., float]) -> float | None:
    """The median over the rounds; None where something was not measured."""
    try:
        return median(of_round(*one) for one in rounds)
    except (KeyError, ValueError):  # ValueError: also StatisticsError
        return None


def instructions() -> list[str]:
    """The instructions of this processor that decide the speed of networks, as torch names them."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # only newer versions of torch have it
    return sorted(name for name, there in known.items() if there is True and name.startswith(DECISIVE))
