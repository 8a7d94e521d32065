"""What went wrong in a run, from what it recorded. A rule is a small function from a record to a finding, or none."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any, NamedTuple

from fewstep.errors import number_of, option
from fewstep.lora.recipe import Recipe

FEW_DATA, FEW_STEPS, MANY_EPOCHS = 50, 300, 200
BLURRY, PALE, BURNT = 0.75, 0.85, 1.15  # ratios to the teacher's pictures: of sharpness, and of contrast or saturation
HIGH_GUIDANCE = 10.0  # the published range ends at 16, but its middle is 11; a fixed one above this burns
CLIPPED, SPIKE, RISEN = 0.8, 5.0, 1.5  # share of the lines; ratios to the loss around it, and to that before
SURE = 3.0  # standard errors by which a loss must have risen
GONE = 1e-4  # of its largest norm: a gradient that has vanished
RATES = {False: 5e-3, True: 5e-4}  # highest sensible learning rate, by whether all weights are trained
EVERYWHERE = 0.95  # share of captions from which on a word says nothing
TIMESTEPS = 1000


class Fault(NamedTuple):
    """One thing that is wrong, for people; texts have fields marked by `errors.option`."""

    rule: str
    figure: str  # what is seen
    reason: str  # why it matters
    change: str  # what to do


@dataclass(frozen=True)
class Record:
    """What a run left."""

    config: Mapping[str, Any]  # config.json
    recipe: Recipe
    metrics: Sequence[Mapping[str, float]] = ()  # the lines of metrics.jsonl
    quality: Sequence[Mapping[str, Any]] = ()  # the lines of quality.jsonl
    captions: Sequence[str] = ()  # of the data, where they could be read
    scheduler: Mapping[str, Any] | None = None  # of the model's folder, where there is one

    @property
    def distilled(self) -> bool:
        """Whether it is a few-step result."""
        return self.recipe.accelerates

    @property
    def steps(self) -> int:
        """Steps of training that were taken."""
        return int(self.recipe.training.get("steps", 0))

    @property
    def samples(self) -> int:
        """The size of the data set."""
        return int(self.recipe.training.get("samples", 0))

    def measured(self, measure: str) -> float | None:
        """The value of the last preview, in the most steps that have one; None where there is none."""
        last = self.quality[-1] if self.quality else {}
        found = [key for key in last if key.rpartition("_")[0] == measure and key.rpartition("_")[2].isdigit()]
        return float(last[max(found, key=lambda key: int(key.rpartition("_")[2]))]) if found else None

    def values(self, name: str) -> list[float]:
        """One value of each line of metrics.jsonl."""
        return [float(line[name]) for line in self.metrics if name in line]


FaultRule = Callable[[Record], Fault | None]


def diagnosed(record: Record) -> list[Fault]:
    """All that is wrong. What the pictures show comes first; its advice is for pictures without a known cause."""
    signs, causes = ([fault for rule in rules if (fault := rule(record)) is not None] for rules in (SIGNS, CAUSES))
    return [fault._replace(change="begin with what stands below") if causes else fault for fault in signs] + causes


# --- what the pictures show ---------------------------------------------------------------------------------


def blurry(record: Record) -> Fault | None:
    """Less fine detail than the teacher draws."""
    value = record.measured("sharpness")
    if value is None or value >= BLURRY:
        return None
    return Fault(
        "blurry",
        f"the pictures have {value:.0%} of the sharpness of the teacher's",
        "a student that has not learned to jump to the end draws the mean of what could be there",
        f"train longer ({option('train_steps')}), or weigh the last steps more: {option('weighting')} inverse-step,"
        f" {option('focus')} 0.5",
    )


def pale(record: Record) -> Fault | None:
    """Less contrast or colour than the teacher draws."""
    worst = lowest(record.measured("contrast"), record.measured("saturation"))
    if worst is None or worst >= PALE:
        return None
    return Fault(
        "pale",
        f"contrast or saturation is {worst:.0%} of the teacher's",
        "guidance adds both; a student that learned too little of it, or that averages pictures, lacks them",
        f"train longer, or raise {option('guidance_scale')} towards the guidance that you sample the teacher with",
    )


def burnt(record: Record) -> Fault | None:
    """More contrast or colour than the teacher draws."""
    worst = max((x for x in (record.measured("contrast"), record.measured("saturation")) if x is not None), default=0)
    if worst <= BURNT:
        return None
    return Fault(
        "burnt",
        f"contrast or saturation is {worst:.0%} of the teacher's",
        "guidance that is too high, or weights that went too far, leave the range of real pictures",
        f"lower {option('guidance_scale')} or {option('learning_rate')}, or sample the LoRA at a weight below 1",
    )


def lowest(*values: float | None) -> float | None:
    """The smallest value that is known."""
    return min((value for value in values if value is not None), default=None)


# --- how it was distilled -----------------------------------------------------------------------------------


def guidance_too_high(record: Record) -> Fault | None:
    """A guidance that few steps cannot follow."""
    scales = record.recipe.teacher_guidance_scale
    if scales is None or scales[0] <= HIGH_GUIDANCE:
        return None
    return Fault(
        "guidance",
        f"the teacher's guidance was {scales[0]:g} or more for every sample",
        "its steps are too long for few of them to follow: pictures burn, and colours are too strong",
        f"lower {option('guidance_scale')}: 8.5 is the report's, 4 suits drawings; or give a range with"
        f" {option('guidance_scale_max')}",
    )


def wrong_grid(record: Record) -> Fault | None:
    """A skipping step that is too long for one jump, or too short for the steps of training."""
    k = record.recipe.k
    if k is None or not record.distilled:
        return None
    points = TIMESTEPS // k
    if points < 8:
        return Fault(
            "grid",
            f"{option('k')} {k} leaves a training grid of {points} timesteps",
            "the teacher's solver makes an error in each jump that long, and the student learns the error",
            f"use {option('k')} 20, or 50 for few steps of training",
        )
    if points > record.steps:
        higher = "" if k >= 50 else f"raise {option('k')} to {20 if k < 20 else 50}, or "
        return Fault(
            "grid",
            f"{option('k')} {k} makes a grid of {points} timesteps, and the run has {number_of(record.steps, 'step')}",
            "what is right at the clean end travels about one timestep of the grid per step, and did not arrive",
            f"{higher}train longer ({option('train_steps')})",
        )
    return None


def average_too_slow(record: Record) -> Fault | None:
    """An exported average that still holds the untrained weights."""
    decay = float(record.config.get("ema") or 0)
    length = 1 / (1 - decay)
    if not record.steps or length <= record.steps / 3:
        return None
    return Fault(
        "average",
        f"{option('ema')} {decay:g} averages over about {length:,.0f} steps, and the run has {record.steps:,}",
        "the exported weights lag behind the trained ones, towards those it began with: blurry, pale",
        f"use {option('ema')} {max(1 - 10 / record.steps, 0):.3g}, or train longer",
    )


def wrong_prediction(record: Record) -> Fault | None:
    """A prediction type that is not the model's, or that cannot work with its schedule."""
    facts, kind = record.scheduler or {}, record.recipe.prediction_type
    found = facts.get("prediction_type", kind)
    if found != kind:
        return Fault(
            "prediction",
            f"the result was trained for {kind}, and the model's scheduler now says {found}",
            "a network read in the wrong way draws grey or noise",
            "restore the model's scheduler_config.json, or train again with the model as it is",
        )
    if facts.get("rescale_betas_zero_snr") and kind == "epsilon":
        return Fault(
            "prediction",
            "the model's schedule ends at zero signal (rescale_betas_zero_snr), and it predicts epsilon",
            "at that end epsilon tells nothing about the picture, and one-step pictures begin there: pale, grey",
            "use a model with v_prediction, or set rescale_betas_zero_snr to false",
        )
    return None


# --- how it went --------------------------------------------------------------------------------------------


def too_short(record: Record) -> Fault | None:
    """Scores that still rise at the end, or steps that are too few for any run."""
    planned = record.recipe.training.get("planned_steps")
    if planned and planned > record.steps:
        return Fault(
            "length",
            f"the run was stopped after {record.steps:,} of {number_of(int(planned), 'step')}",
            "a few-step model that is not finished draws blurry pictures",
            f"continue it with {option('resume')}",
        )
    scores = [line[measure] for line in record.quality if (measure := line.get("measure")) and measure in line]
    rising = len(scores) > 2 and record.quality[-1].get("best") and change_of(scores) > 0.2
    began = record.recipe.training.get("began_from") is not None
    if not rising and (not record.distilled or began or record.steps >= FEW_STEPS or len(scores) > 2):
        return None
    figure = (
        f"{record.quality[-1]['measure']} still changed by {change_of(scores):.0%} up to the last step"
        if rising
        else f"the run has {number_of(record.steps, 'step')}"
    )
    return Fault(
        "length",
        figure,
        "distillation of a LoRA takes about a thousand steps of a few dozen samples",
        f"raise {option('train_steps')} and continue with {option('resume')}",
    )


def change_of(scores: Sequence[float]) -> float:
    """The relative change of the last score, as a share of the one before."""
    return abs(scores[-1] - scores[-2]) / max(abs(scores[-2]), 1e-9)


def rate_too_high(record: Record) -> Fault | None:
    """Gradients that are clipped all the time, or a loss with spikes."""
    norms, clip = record.values("gradient_norm"), float(record.config.get("gradient_clip") or 0)
    share = fmean(norm > clip for norm in norms) if norms and clip else 0.0
    losses, rate = record.values("loss"), float(record.config.get("learning_rate") or 0)
    spikes = sum(a > SPIKE * median(losses[max(0, i - 6) : i]) for i, a in enumerate(losses) if i > 2)
    if rate > RATES[bool(record.config.get("full"))]:
        figure = f"{option('learning_rate')} was {rate:g}; the published runs have 1e-4, and 1e-6 for whole models"
    elif share > CLIPPED:
        figure = f"the gradient's norm was above {option('gradient_clip')} {clip:g} in {share:.0%} of the lines"
    elif spikes:
        figure = f"the loss jumped to more than {SPIKE:g} times what it was, {spikes} times"
    else:
        return None
    return Fault(
        "rate",
        figure,
        "steps that are too long throw away what was learned: noise, wrong colours, shapes that melt",
        f"lower {option('learning_rate')} to a third or less, and add {option('warmup')} 100",
    )


def diverged(record: Record) -> Fault | None:
    """A loss that rises again for good: the student runs after a target that runs away from it."""
    losses, norms = record.values("loss"), record.values("gradient_norm")
    quarter = len(losses) // 4
    before, after = losses[quarter : 2 * quarter], losses[len(losses) - quarter :]
    if norms and norms[-1] < GONE * max(norms):
        figure = "the gradient has vanished: the student gives the same whatever it is asked"
    elif quarter > 2 and fmean(after) > RISEN * fmean(before) and surely_above(after, before):
        figure = f"the loss ended at {fmean(after) / fmean(before):.1f} times what it had been"
    else:
        return None
    slower = (
        f", or raise {option('target_decay')} to 0.99"
        if record.config.get("target") == "ema"
        else f", or use {option('target')} ema"
        if record.config.get("target") == "student"
        else ""
    )
    return Fault(
        "diverged",
        figure,
        "student and target lead each other astray, and what is exported is their last mistake",
        f"lower {option('learning_rate')}{slower}; best.safetensors may be good, if the run kept one",
    )


def surely_above(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the mean of some values is above that of others by more than SURE standard errors."""
    error = math.sqrt(variance(values) / len(values) + variance(others) / len(others))
    return fmean(values) - fmean(others) > SURE * error


# --- the data -----------------------------------------------------------------------------------------------


def too_little_data(record: Record) -> Fault | None:
    """Few samples, seen often."""
    seen = record.steps * int(record.recipe.training.get("batch_size", 0))
    epochs = seen / record.samples if record.samples else 0.0
    if not record.samples or not (epochs > MANY_EPOCHS or (record.distilled and record.samples < FEW_DATA)):
        return None
    more = f"use more images, or {option('synthetic')} with more {option('images')}"
    return Fault(
        "data",
        f"{number_of(record.samples, 'sample')}, each seen {number_of(round(epochs), 'time')}",
        "the result learns these pictures by heart, and prompts about others suffer",
        more if record.distilled else f"use more images, fewer {option('train_steps')}, or a lower {option('rank')}",
    )


def one_style(record: Record) -> Fault | None:
    """A word in nearly all captions of a distillation."""
    if not record.distilled or len(record.captions) < 8:
        return None
    words = Counter(word for text in record.captions for word in set(text.lower().split()) if len(word) > 3)
    word, count = words.most_common(1)[0] if words else ("", 0)
    if count < EVERYWHERE * len(record.captions):
        return None
    return Fault(
        "captions",
        f"{count / len(record.captions):.0%} of the captions have the word {word!r}",
        "the student has not seen a prompt without it, and draws those worse",
        "leave the word out of half of the captions, or mix in other data",
    )


def captions_dropped(record: Record) -> Fault | None:
    """The empty caption too often in a distillation, or never in a fine-tuning."""
    share = float(record.config.get("drop_captions") or 0)
    if record.distilled and share >= 0.5:
        return Fault(
            "drop_captions",
            f"{share:.0%} of the captions were replaced by the empty one",
            "the student saw few prompts, and follows them little",
            f"leave out {option('drop_captions')}",
        )
    if not record.distilled and share == 0 and any(record.captions):
        return Fault(
            "drop_captions",
            "no caption was replaced by the empty one",
            "guidance compares with the empty caption, which the result never saw: it becomes too strong, or useless",
            f"use {option('drop_captions')} 0.1",
        )
    return None


SIGNS: tuple[FaultRule, ...] = (blurry, pale, burnt)  # what the pictures show
CAUSES: tuple[FaultRule, ...] = (
    rate_too_high,
    diverged,
    guidance_too_high,
    wrong_grid,
    wrong_prediction,
    too_short,
    average_too_slow,
    too_little_data,
    one_style,
    captions_dropped,
)
