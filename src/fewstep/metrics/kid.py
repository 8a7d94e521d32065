"""Kernel Inception distance (KID), with a confidence interval. It is unbiased for any number of images."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.metrics.estimate import CONFIDENCE, GROUPS, Estimate, grouped, prompt_groups, student_t

CHUNK = 2048  # rows of a kernel matrix in memory at a time
FEWEST = 2  # images in a block


class KID(NamedTuple):
    """An estimate of the squared maximum mean discrepancy, with its confidence interval."""

    value: float  # unbiased, so it may be negative for similar sets
    low: float
    high: float
    blocks: int
    block_size: int  # number of images of the smaller set in a block
    values: tuple[float, ...]  # the estimate of each block

    def less(self, other: "KID") -> "KID":
        """The difference of two sets' KIDs to the same real images. Image i of both has the same prompt and noise.

        Both have the same blocks. The interval is that of the blocks' differences, without common variation.
        """
        values = tuple(a - b for a, b in zip(self.values, other.values, strict=True))
        return KID(*mean_interval(values), self.blocks, self.block_size, values)


def polynomial_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of features x (N, D) and y (M, D), in float64 (arXiv 1801.01401, eq. 4).

    The kernel is the paper's, k(a, b) = (a.b / D + 1)^3 (section 4). For equal distributions the mean of the MMD is 0.
    """
    n, m = len(x), len(y)
    if min(n, m) < FEWEST:
        raise FewstepError(f"KID needs at least {FEWEST} images on each side, not {min(n, m)}", "use more images")
    x, y = x.detach().to(torch.float64), y.detach().to(torch.float64)
    within_x = (kernel_sum(x, x) - kernel_diagonal_sum(x)) / (n * (n - 1))
    within_y = (kernel_sum(y, y) - kernel_diagonal_sum(y)) / (m * (m - 1))
    return within_x + within_y - 2 * kernel_sum(x, y) / (n * m)


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """The sum of k(x_i, y_j) over all pairs, computed some rows at a time."""
    dim = x.shape[1]
    return math.fsum(float(((rows @ y.T) / dim + 1).pow(3).sum()) for rows in torch.split(x, CHUNK))


def kernel_diagonal_sum(x: Tensor) -> float:
    """The sum of k(x_i, x_i)."""
    return float((x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum())


def kid(x: Tensor, y: Tensor, blocks: int = 10, confidence: float = CONFIDENCE, seed: int = 0) -> KID:
    """The mean of the unbiased estimates over disjoint random blocks of both sets, with Student's t interval.

    x (N, D), y (M, D): features. Blocks without common images are independent, so the interval is valid. The paper's
    subsets (section 4) overlap; their spread shows how much one subset varies, not the mean. seed: draws the blocks.
    """
    fewest = min(len(x), len(y))
    if blocks < 2 or fewest // max(blocks, 1) < FEWEST:
        raise FewstepError(
            f"{fewest} images do not make {blocks} blocks of at least {FEWEST}", "use 2 blocks or more, or more images"
        )
    generator = torch.Generator().manual_seed(seed)
    of_x, of_y = (
        torch.randperm(len(features), generator=generator).to(features.device).tensor_split(blocks)
        for features in (x, y)
    )
    values = tuple(polynomial_mmd(x[i], y[j]) for i, j in zip(of_x, of_y, strict=True))
    return KID(*mean_interval(values, confidence), blocks, fewest // blocks, values)


def kid_of_prompts(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, groups: int = GROUPS) -> Estimate:
    """KID of pictures of the same prompts, unbiased, with its error by the jackknife over groups of prompts.

    x (N, D), y (M, D): features. of_x (N,), of_y (M,): the number of each picture's prompt, 0...P - 1; both sides have
    every prompt. Two pictures of one prompt are similar, whatever drew them, so only pairs of different prompts are
    compared: the mean over prompts p != q of h(p, q) = k(x_p, x_q) + k(y_p, y_q) - k(x_p, y_q) - k(y_p, x_q), with k of
    `polynomial_mmd`, averaged over the pictures of a prompt. Its mean is 0 if both draw every prompt in the same way. A
    group of prompts is left out of both sides together. If the two sides are equal in distribution, the jackknife's
    error is too large, by a factor of up to the square root of 2, because the U-statistic is then degenerate.
    """
    P = 1 + int(max(of_x.max(), of_y.max()))
    if P < 2 * FEWEST or any(int(side.bincount(minlength=P).min()) == 0 for side in (of_x, of_y)):
        raise FewstepError(f"KID of prompts needs at least {2 * FEWEST}, each on both sides", "use more prompts")
    z = torch.cat([x, y]).detach().to("cpu", torch.float64)
    prompts = torch.cat([of_x, of_y])
    sign = torch.cat([weights(of_x, P), -weights(of_y, P)])
    differences = torch.zeros(P, P, dtype=torch.float64)  # h(p, q)
    for rows, own, scale in zip(*(torch.split(part, CHUNK) for part in (z, prompts, sign)), strict=True):
        kernel = (rows @ z.T / z.shape[1] + 1).pow(3) * scale[:, None] * sign
        by_column = torch.zeros(len(rows), P, dtype=torch.float64).index_add_(1, prompts, kernel)
        differences.index_add_(0, own, by_column)
    differences.fill_diagonal_(0)
    group = prompt_groups(torch.arange(P), groups)
    return grouped(lambda p: float(differences[p][:, p].sum()) / (len(p) * (len(p) - 1)), group)


def weights(prompts: Tensor, count: int) -> Tensor:
    """For each picture, 1 / the number of pictures of its prompt, (N,)."""
    return prompts.bincount(minlength=count).double().reciprocal()[prompts]


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The mean of independent values, and the ends of Student's t interval for it."""
    exact = torch.tensor(values, dtype=torch.float64)
    mean = float(exact.mean())
    margin = student_t(confidence, len(exact) - 1) * float(exact.std()) / math.sqrt(len(exact))
    return mean, mean - margin, mean + margin
