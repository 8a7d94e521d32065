"""Weights of a style and an acceleration LoRA: which are tried, in what order, and which are best."""

import math
import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

from fewstep.errors import UsageError, option
from fewstep.metrics.estimate import Estimate

BLOCKS = ("down", "mid", "up")
DIGITS = 4  # of a weight, after the point


class LoraWeight(NamedTuple):
    """How much of one LoRA."""

    of: float
    blocks: tuple[tuple[str, float], ...] = ()  # where another weight holds, sorted

    @property
    def text(self) -> str:
        """As typed after a LoRA's colon."""
        return ",".join([f"{self.of:g}", *(f"{block}={weight:g}" for block, weight in self.blocks)])

    def in_block(self, block: str) -> float:
        """The weight that holds there."""
        return dict(self.blocks).get(block, self.of)

    def moved(self, step: float, block: str | None = None) -> "LoraWeight":
        """More of the LoRA by `step`, everywhere or in one block."""
        if block is None:
            return LoraWeight(round(self.of + step, DIGITS), self.blocks)
        blocks = dict(self.blocks) | {block: round(self.in_block(block) + step, DIGITS)}
        return LoraWeight(self.of, tuple(sorted((name, w) for name, w in blocks.items() if w != self.of)))


class WeightPair(NamedTuple):
    """How much of the style, and of the acceleration."""

    style: LoraWeight
    acceleration: LoraWeight

    @property
    def positive(self) -> bool:
        """Whether something of both is added: an acceleration of 0 would be sampled in another way."""
        return self.style.of > 0 and self.acceleration.of > 0

    def loras(self, style: str, acceleration: str) -> tuple[str, str]:
        """FILE:WEIGHT each, as `--lora` takes them."""
        return f"{style}:{self.style.text}", f"{acceleration}:{self.acceleration.text}"


class Scored(NamedTuple):
    """A pair, and what its images are."""

    pair: WeightPair
    distance: Estimate  # Fréchet distance to the style
    agreement: Estimate | None  # share that show their concept; None is not measured


def typed(loras: Sequence[str]) -> str:
    """Options to paste behind a command."""
    return " ".join(f"--lora {shlex.quote(lora)}" for lora in loras)


# --- the search ---------------------------------------------------------------------------------------------


def grid_of(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The style's and the acceleration's weights in 0.6,0.8 or 0.5,0.8:0.9,1, ascending. Raises UsageError."""
    lists = text.split(":")
    if len(lists) > 2:
        raise UsageError(
            f"{option('grid')} {text}: {len(lists)} lists", "write one list for both LoRAs, or style:acceleration"
        )
    axes = [weights_of(part, text) for part in lists]
    return axes[0], axes[-1]


def weights_of(part: str, text: str) -> tuple[float, ...]:
    """The weights of one list, ascending. Raises UsageError naming the one that is none."""

    def refusal(word: str) -> UsageError:
        return UsageError(
            f"{option('grid')} {text}: {word!r} is no weight above 0", f"write {option('grid')} 0.6,0.8,1.0"
        )

    values = numbers_in(part, lambda value: 0 < value < math.inf, refusal)
    return tuple(sorted({round(value, DIGITS) for value in values}))


def numbers_in(text: str, allowed: Callable[[float], bool], refusal: Callable[[str], UsageError]) -> set[float]:
    """The numbers of a list with commas. Raises the refusal of a word that is none, or none that is allowed."""
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
    """Each weight of the style with each of the acceleration."""
    return [WeightPair(LoraWeight(a), LoraWeight(b)) for a, b in product(*axes)]


def spacing(axis: Sequence[float]) -> float:
    """The smallest distance of two weights of an axis; a fifth of a single one."""
    return min((b - a for a, b in pairwise(axis)), default=axis[0] / 5)


def neighbours(best: WeightPair, steps: tuple[float, float]) -> list[WeightPair]:
    """One LoRA's weight more or less by its step: four pairs, without those that are not positive."""
    moved = [best._replace(style=best.style.moved(sign * steps[0])) for sign in (-1, 1)]
    moved += [best._replace(acceleration=best.acceleration.moved(sign * steps[1])) for sign in (-1, 1)]
    return [pair for pair in moved if pair.positive]


def block_moves(best: WeightPair, lora: str, block: str, step: float) -> list[WeightPair]:
    """One LoRA's weight in one block more or less by the step. lora: "style" or "acceleration"."""
    weight: LoraWeight = getattr(best, lora)
    return [best._replace(**{lora: weight.moved(sign * step, block)}) for sign in (-1, 1)]


# --- the score ----------------------------------------------------------------------------------------------


def nearest(scored: Sequence[Scored]) -> Scored:
    """The one with the smallest style distance."""
    return min(scored, key=lambda one: one.distance.value)


def within_error(one: Scored, best: Scored) -> bool:
    """Whether its distance is no further above the best's than one standard error of their difference."""
    behind = one.distance.less(best.distance)
    return behind.value <= behind.error


def ranked(scored: Sequence[Scored]) -> list[Scored]:
    """Best first: those within error of the smallest style distance, by agreement; then the others, by distance."""
    first = nearest(scored)

    def order(one: Scored) -> tuple[bool, float, float]:
        tied = within_error(one, first)
        return not tied, -one.agreement.value if tied and one.agreement else 0.0, one.distance.value

    return sorted(scored, key=order)
