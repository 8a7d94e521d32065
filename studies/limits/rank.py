"""Limit 3: what a LoRA of a lower rank loses."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.assets import ACCELERATION, MODEL, shipped_lora
from fewstep.evaluate.report import text_table
from fewstep.io import cache_dir, sha256_file
from fewstep.lora.compress import compress
from fewstep.lora.difference import difference
from fewstep.lora.low_rank import Adapter, combine
from fewstep.lora.writing import save_adapter
from fewstep.models.references import parse_reference
from fewstep.models.sums import fit, merged_recipe, sources_of
from fewstep.models.weights import weights_of
from studies.limits.bench import Bench, Measured, all_base, judged, lcm, mean, of_values, shipped
from studies.limits.words import Figures, bullets, change_text, sign, sorted_out, value_text


def lossy(bench: Bench) -> Measured:
    """The acceleration LoRA cut to lower ranks, and how much of a whole distillation would fit each."""
    fitted = fit([parse_reference(ACCELERATION)], MODEL, allow_partial=False)
    whole = combine([(1.0, fitted.terms[0].adapter)])
    prompts, target = shipped(bench), all_base(bench.lab)
    full = max(whole[name].rank for name in whole)
    uncut = bench.draw(lcm(4), prompts)
    best = judged(bench, uncut, prompts, target)
    rows = []
    for rank in ranks_to(full):
        cut, loss = compress(whole, rank)
        file = shipped_lora(ACCELERATION)
        assert file is not None
        if rank < full:
            file = cache_dir() / "limits" / f"lcm-{sha256_file(file)[:12]}-rank-{rank}.safetensors"
            save_adapter(file, Adapter(cut, sources_of(fitted)), merged_recipe(fitted))
        pictures = uncut if rank == full else bench.draw(lcm(4)._replace(lora=(str(file),)), prompts)
        quality = judged(bench, pictures, prompts, target)
        rows.append({
            "rank": rank,
            "bytes": file.stat().st_size,
            "energy": loss.energy,
            "full_energy": full_energy(bench.full_lcm, rank),
            "lpips": of_values(mean, bench.lab.distances(pictures, uncut)).numbers,
            **quality.numbers,
            "change": quality.less(best).numbers,
        })  # fmt: skip
    return Measured({"student": lcm(4).name, "rows": rows}, {})


def ranks_to(full: int) -> list[int]:
    """1, 2, 4, ... and the full rank."""
    return [2**i for i in range(full.bit_length()) if 2**i < full] + [full]


def full_energy(model: str | None, rank: int) -> float | None:
    """The share of a wholly distilled model's difference to the embedded one that this rank can hold."""
    if model is None:
        return None
    (tuned, shapes), (base, _) = weights_of(str(Path(model).expanduser())), weights_of(MODEL)
    return difference(tuned, base, shapes, rank=rank)[1].energy


ENOUGH = 0.9  # of a difference's energy


def lossy_text(section: Figures) -> str:
    """Ranks."""
    rows, whole = section["rows"], section["rows"][-1]
    has_full = whole["full_energy"] is not None
    columns = ["rank", "kB", "energy kept %", *(["of a whole distillation's %"] if has_full else []),
               "LPIPS to uncut", "agreement %", "change, points", "distance", "change"]  # fmt: skip
    table = text_table(columns, [
        [str(row["rank"]), f"{row['bytes'] / 1000:.0f}", f"{100 * row['energy']:.1f}",
         *([f"{100 * row['full_energy']:.1f}"] if has_full else []),
         *([value_text(row["lpips"], digits=3), value_text(row["agreement"], 100),
            change_text(row["change"]["agreement"], 100), value_text(row["distance"]),
            change_text(row["change"]["distance"])]
           if row is not whole else ["", value_text(row["agreement"], 100), "", value_text(row["distance"]), ""])]
        for row in rows
    ])  # fmt: skip
    lines = of_cuts(rows[:-1])
    if has_full:
        lines.append(of_full(rows))
    return f"{table}\n\n{bullets(lines)}"


def of_cuts(cut: Sequence[Figures]) -> list[str]:
    """What cutting did."""
    if not cut:
        return ["The LoRA has rank 1: there is nothing to cut."]
    words = {key: {1: up, -1: down, 0: "not told from it"}
             for key, up, down in (("agreement", "better", "worse"), ("distance", "further", "nearer"))}  # fmt: skip
    lines = [
        f"By {key}, beside the uncut: "
        + sorted_out([{"name": f"rank {row['rank']}", **row["change"]} for row in cut], key, words[key])
        + "."
        for key in words
    ]
    harmless = [row["rank"] for row in cut if not worse(row["change"])]
    smallest = (
        f"The smallest rank that loses nothing for certain by either is {harmless[0]}, which keeps"
        f" {100 * next(row['energy'] for row in cut if row['rank'] == harmless[0]):.1f} % of the energy"
        if harmless
        else "Every cut loses something for certain"
    )
    return [*lines, f"{smallest}."]


def worse(of_quality: Figures) -> bool:
    """Whether a change of agreement and distance is one for the worse, for certain."""
    return sign(of_quality["agreement"]) < 0 or sign(of_quality["distance"]) > 0


def of_full(rows: Sequence[Figures]) -> str:
    """How much of a whole distillation a LoRA can hold."""
    whole = rows[-1]
    enough = [row["rank"] for row in rows if row["full_energy"] >= ENOUGH]
    needed = f"Rank {enough[0]} is the first here to hold {100 * ENOUGH:g} %" if enough else (
        f"No rank here holds {100 * ENOUGH:g} %")  # fmt: skip
    return (
        f"Of what a distillation of all weights changed, rank {whole['rank']} can hold"
        f" {100 * whole['full_energy']:.1f} % of the energy. {needed}."
    )
