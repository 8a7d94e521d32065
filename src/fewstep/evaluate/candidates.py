"""Pairs of weights for a style and an acceleration LoRA: which to try, in which order, and which is best."""

import math
import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

from fewstep.errors import UsageError, option
from fewstep.metrics.estimate import Estimate

BLOCKS = ("down", "mid", "up")
DIGITS = 4  # digits of a weight after the point


class LoraWeight(NamedTuple):
    """The weight of one LoRA, with weights of its own for blocks."""

    of: float
    blocks: tuple[tuple[str, float], ...] = ()  # (block, its own weight), sorted

    @property
    def text(self) -> str:
        """The text after a LoRA's colon."""
        return ",".join([f"{self.of:g}", *(f"{block}={weight:g}" for block, weight in self.blocks)])

    def in_block(self, block: str) -> float:
        """The weight in this block."""
        return dict(self.blocks).get(block, self.of)

    def moved(self, step: float, block: str | None = None) -> "LoraWeight":
        """The weight plus `step`, everywhere or in one block."""
        if block is None:
            return LoraWeight(round(self.of + step, DIGITS), self.blocks)
        blocks = dict(self.blocks) | {block: round(self.in_block(block) + step, DIGITS)}
        return LoraWeight(self.of, tuple(sorted((name, w) for name, w in blocks.items() if w != self.of)))


class WeightPair(NamedTuple):
    """The weights of the style and of the acceleration."""

    style: LoraWeight
    acceleration: LoraWeight

    @property
    def positive(self) -> bool:
        """Whether both weights are positive. With an acceleration of 0, another solver would be used."""
        return self.style.of > 0 and self.acceleration.of > 0

    def loras(self, style: str, acceleration: str) -> tuple[str, str]:
        """Both LoRAs as FILE:WEIGHT, for `--lora`."""
        return f"{style}:{self.style.text}", f"{acceleration}:{self.acceleration.text}"


class Scored(NamedTuple):
    """A pair, and the measures of its images."""

    pair: WeightPair
    distance: Estimate  # Fréchet distance to the style
    agreement: Estimate | None  # share that show their concept; None = not measured


def typed(loras: Sequence[str]) -> str:
    """Options to append to a command."""
    return " ".join(f"--lora {shlex.quote(lora)}" for lora in loras)


# --- the search ---------------------------------------------------------------------------------------------


def grid_of(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The style's and the acceleration's weights, ascending, in a text such as 0.6,0.8 or 0.5,0.8:0.9,1.

    Raises UsageError for another text.
    """
    lists = text.split(":")
    if len(lists) > 2:
        raise UsageError(
            f"{option('grid')} {text}: {len(lists)} lists", "write one list for both LoRAs, or style:acceleration"
        )
    axes = [weights_of(part, text) for part in lists]
    return axes[0], axes[-1]


def weights_of(part: str, text: str) -> tuple[float, ...]:
    """The weights of one list, ascending. Raises UsageError that names a wrong one."""

    def refusal(word: str) -> UsageError:
        return UsageError(
            f"{option('grid')} {text}: {word!r} is not a weight above 0", f"write {option('grid')} 0.6,0.8,1.0"
        )

    values = numbers_in(part, lambda value: 0 < value < math.inf, refusal)
    return tuple(sorted({round(value, DIGITS) for value in values}))


def numbers_in(text: str, allowed: Callable[[float], bool], refusal: Callable[[str], UsageError]) -> set[float]:
    """The numbers in a list with commas. Raises `refusal` of a word that is not an allowed number."""
    values = set()
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not allowed(value):
            raise refusal(word)
        values.add(value)
    return values


def coarse(axes: tuple[Sequence[float], Sequence[float]]) -> list[WeightPair]:
    """Each weight of the style with each weight of the acceleration."""
    return [WeightPair(LoraWeight(a), LoraWeight(b)) for a, b in product(*axes)]


def spacing(axis: Sequence[float]) -> float:
    """The smallest distance between two weights of an axis; for a single weight, a fifth of it."""
    return min((b - a for a, b in pairwise(axis)), default=axis[0] / 5)


def neighbours(best: WeightPair, steps: tuple[float, float]) -> list[WeightPair]:
    """The pairs in which one LoRA's weight is larger or smaller by its step: four, without those not positive."""
    moved = [best._replace(style=best.style.moved(sign * steps[0])) for sign in (-1, 1)]
    moved += [best._replace(acceleration=best.acceleration.moved(sign * steps[1])) for sign in (-1, 1)]
    return [pair for pair in moved if pair.positive]


def block_moves(best: WeightPair, lora: str, block: str, step: float) -> list[WeightPair]:
    """The pairs in which one LoRA's weight in one block changes by plus or minus the step.

    lora: "style" or "acceleration".
    """
    weight: LoraWeight = getattr(best, lora)
    return [best._replace(**{lora: weight.moved(sign * step, block)}) for sign in (-1, 1)]


# --- the score ----------------------------------------------------------------------------------------------


def nearest(scored: Sequence[Scored]) -> Scored:
    """The pair with the smallest style distance."""
    return min(scored, key=lambda one: one.distance.value)


def within_error(one: Scored, best: Scored) -> bool:
    """Whether its distance exceeds the best one by at most one standard error of their difference."""
    behind = one.distance.less(best.distance)
    return behind.value <= behind.error


def ranked(scored: Sequence[Scored]) -> list[Scored]:
    """The pairs, best first: those within error of the smallest distance, by agreement; then others, by distance."""
    first = nearest(scored)

    def order(one: Scored) -> tuple[bool, float, float]:
        tied = within_error(one, first)
        return not tied, -one.agreement.value if tied and one.agreement else 0.0, one.distance.value

    return sorted(scored, key=order)
