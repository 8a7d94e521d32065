"""Write docs/merging.md, a comparison of merging tools with the exact sum: `python -m studies.merging [FILE]`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fewstep.families import ModuleShape
from fewstep.lora.compress import compressed
from fewstep.lora.low_rank import LowRank, linear_combination
from studies import merging_alone, merging_rounding
from studies.pages import template, write_page

Terms = Sequence[tuple[float, LowRank]]  # (weight, update); alpha = rank, so that there is no other scale

MODULES = {"Linear, 192 → 256": ModuleShape(256, 192, 0), "Conv2d 3 × 3, 64 → 96": ModuleShape(96, 64, 3)}
RANKS = ((8, 8), (4, 16))
WEIGHTS = ((0.8, 1.0), (1.0, 1.0), (1.0, -1.0))
ALONE = ((8,), (0.5,))
EXACT = 1e-6  # float32 factors: errors below this are rounding


class Refusal(Exception):
    """The tool refuses to merge these LoRAs."""


def random_update(shape: ModuleShape, rank: int, seed: int) -> LowRank:
    """Standard normal factors, float32."""
    draw = torch.Generator().manual_seed(seed)
    kernel, one = ((shape.kernel,) * 2, (1, 1)) if shape.kernel else ((), ())
    A = torch.randn(rank, shape.in_, *kernel, generator=draw)
    return LowRank(A, torch.randn(shape.out, rank, *one, generator=draw))


def exact(terms: Terms) -> Tensor:
    """sum_i w_i B_i A_i as a dense matrix in float64."""
    return sum((w * LowRank(*(x.double() for x in u)).delta() for w, u in terms), torch.zeros(()))


def ours(terms: Terms) -> Tensor:
    """fewstep's merge."""
    return linear_combination(terms).delta()


def ours_compressed(terms: Terms) -> Tensor:
    """fewstep's merge, compressed to the largest of the ranks."""
    return compressed(linear_combination(terms), max(u.rank for _, u in terms)).delta()


def kohya_scales(terms: Terms) -> list[float]:
    """The scale of each term's factors: the ratio itself in both factors, times sqrt(alpha / first alpha)."""
    return [w * (u.rank / terms[0][1].rank) ** 0.5 for w, u in terms]


def kohya_added(terms: Terms) -> Tensor:
    """The factors, scaled and added. A negative sign goes into the down factor only. The first alpha is kept."""
    if len({u.rank for _, u in terms}) > 1:
        raise Refusal("weights shape mismatch ... different dims?")
    scaled = list(zip(kohya_scales(terms), (u for _, u in terms), strict=True))
    A = sum((s * u.A for s, u in scaled), torch.zeros(()))
    return LowRank(A, sum((abs(s) * u.B for s, u in scaled), torch.zeros(()))).delta()


def kohya_concatenated(terms: Terms) -> Tensor:
    """The factors, scaled and concatenated. The first alpha is kept, and loaders divide it by the new rank."""
    scaled = list(zip(kohya_scales(terms), (u for _, u in terms), strict=True))
    A = torch.cat([s * u.A for s, u in scaled])
    B = torch.cat([abs(s) * u.B for s, u in scaled], dim=1)
    return terms[0][1].rank / len(A) * LowRank(A, B).delta()


def ai_toolkit(stored_alpha: bool) -> Callable[[Terms], Tensor]:
    """Every tensor of a file times its weight, then added. Smaller ranks are filled up with zeros.

    stored_alpha: whether the files hold `.alpha`, a tensor that is scaled too. Without it, loaders use a scale of 1.
    """

    def merged(terms: Terms) -> Tensor:
        rank = max(u.rank for _, u in terms)
        A = sum((w * padded(u.A, 0, rank) for w, u in terms), torch.zeros(()))
        B = sum((w * padded(u.B, 1, rank) for w, u in terms), torch.zeros(()))
        alpha = sum(w * u.rank for w, u in terms) if stored_alpha else rank
        return alpha / rank * LowRank(A, B).delta()

    return merged


def padded(factor: Tensor, dimension: int, rank: int) -> Tensor:
    """The factor at a higher rank, filled up with zeros."""
    missing = list(factor.shape)
    missing[dimension] = rank - factor.shape[dimension]
    return torch.cat([factor, factor.new_zeros(missing)], dim=dimension)


def peft(combination_type: Literal["linear", "svd", "cat"]) -> Callable[[Terms], Tensor]:
    """PEFT's add_weighted_adapter, run on a network of one layer."""

    def merged(terms: Terms) -> Tensor:
        from peft import LoraConfig, get_peft_model

        shape = terms[0][1].shape
        layer = nn.Conv2d(shape.in_, shape.out, shape.kernel) if shape.kernel else nn.Linear(shape.in_, shape.out)
        configs = [LoraConfig(r=u.rank, lora_alpha=u.rank, target_modules=["layer"]) for _, u in terms]
        model, names = (
            get_peft_model(nn.ModuleDict({"layer": layer}), configs[0], "0"),
            [str(i) for i in range(len(terms))],
        )
        for name, config in zip(names[1:], configs[1:], strict=True):
            model.add_adapter(name, config)
        lora: Any = cast(Any, model.base_model).model["layer"]
        for name, (_, update) in zip(names, terms, strict=True):
            lora.lora_A[name].weight.data, lora.lora_B[name].weight.data = update.A.clone(), update.B.clone()
        try:
            model.add_weighted_adapter(names, [w for w, _ in terms], "merged", combination_type)
        except ValueError as error:
            raise Refusal(str(error)) from None
        delta: Tensor = lora.get_delta_weight("merged").detach()
        return delta

    return merged


COLUMNS: dict[str, Callable[[Terms], Tensor]] = {
    "PEFT `linear`": peft("linear"),
    "PEFT `svd`": peft("svd"),
    "PEFT `cat`": peft("cat"),
    "kohya": kohya_added,
    "kohya `--concat`": kohya_concatenated,
    "ai-toolkit": ai_toolkit(stored_alpha=False),
    "ai-toolkit, `.alpha`": ai_toolkit(stored_alpha=True),
    "fewstep": ours,
    "fewstep at the largest rank": ours_compressed,
}


def cases() -> list[tuple[str, Terms]]:
    """For each row of the table: its first cells, and the LoRAs that are merged."""
    combinations = [(ranks, weights) for ranks in RANKS for weights in WEIGHTS] + [ALONE]
    return [
        (
            f"{module} | {', '.join(map(str, ranks))} | {', '.join(map(str, weights))}",
            [(w, random_update(shape, r, seed)) for seed, (w, r) in enumerate(zip(weights, ranks, strict=True))],
        )
        for module, shape in MODULES.items()
        for ranks, weights in combinations
    ]


def error(method: Callable[[Terms], Tensor], terms: Terms) -> float:
    """||merged - exact||_F / ||exact||_F."""
    whole = exact(terms)
    return float((method(terms) - whole).norm() / whole.norm())


def cell(method: Callable[[Terms], Tensor], terms: Terms) -> str:
    """The error as text for the table."""
    try:
        relative = error(method, terms)
    except Refusal:
        return "refused"
    return "0" if relative < EXACT else f"{100 * relative:.0f} %"


def refusals() -> str:
    """The messages of the tools that refuse, one line each."""
    lines: dict[str, str] = {}
    for name, method in COLUMNS.items():
        for row, terms in cases():
            try:
                method(terms)
            except Refusal as refusal:
                lines.setdefault(name, f'- {name} refuses ranks {row.split(" | ")[1]}: "{refusal}"')
    return "\n".join(lines.values())


def table() -> str:
    """The table of every case and every tool, in Markdown."""
    head = ["module", "ranks", "weights", *COLUMNS]
    rows = [f"{row} | " + " | ".join(cell(method, terms) for method in COLUMNS.values()) for row, terms in cases()]
    return "\n".join(f"| {line} |" for line in (" | ".join(head), " | ".join("---" for _ in head), *rows))


def page() -> str:
    """docs/merging.md."""
    import peft as library

    text = template("merging")
    return text.format(
        table=table(),
        alone=merging_alone.table(),
        rounding=merging_rounding.table(),
        refusals=refusals(),
        version=library.__version__,
    )


if __name__ == "__main__":
    write_page(__doc__, "merging.md", page)
