"""Limit 3: what a LoRA of a lower rank loses."""

from fewstep.assets import ACCELERATION, MODEL, shipped_lora
from fewstep.evaluate.report import text_table
from fewstep.io import cache_dir, sha256_file
from fewstep.lora.compress import compress
from fewstep.lora.low_rank import Adapter, combine
from fewstep.lora.writing import save_adapter
from fewstep.models.references import parse_reference
from fewstep.models.sums import fit, merged_recipe, sources_of
from studies.limits.bench import STUDENT, Bench, Measured, mean, of_values, sharper
from studies.limits.words import Figures, change_text, sign, value_text


def lossy(bench: Bench) -> Measured:
    """The acceleration LoRA cut to lower ranks."""
    fitted = fit([parse_reference(ACCELERATION)], MODEL, allow_partial=False)
    whole, file = combine([(1.0, fitted.terms[0].adapter)]), shipped_lora(ACCELERATION)
    assert file is not None
    full = max(whole[name].rank for name in whole)
    uncut = bench.draw(STUDENT, bench.names)
    best = bench.lab.agreement(uncut, bench.names)
    rows = [{"rank": full, "bytes": file.stat().st_size, "energy": 1.0, "agreement": best.numbers}]
    for rank in reversed(ranks_below(full)):
        cut, loss = compress(whole, rank)
        smaller = cache_dir() / "limits" / f"lcm-{sha256_file(file)[:12]}-rank-{rank}.safetensors"
        save_adapter(smaller, Adapter(cut, sources_of(fitted)), merged_recipe(fitted))
        pictures = bench.draw(STUDENT._replace(lora=(str(smaller),)), bench.names)
        agreement, sharp = bench.lab.agreement(pictures, bench.names), sharper(pictures, uncut)
        rows.append({
            "rank": rank,
            "bytes": smaller.stat().st_size,
            "energy": loss.energy,
            "lpips": of_values(mean, bench.lab.distances(pictures, uncut)).numbers,
            "agreement": agreement.numbers,
            "agreement_change": agreement.less(best).numbers,
            "sharpness": sharp.numbers,
            "sharpness_change": sharp.less(sharper(uncut, uncut)).numbers,
        })  # fmt: skip
    return Measured({"student": STUDENT.name, "rows": rows}, {})


def ranks_below(full: int) -> list[int]:
    """1, 2, 4, ..."""
    return [2**i for i in range(full.bit_length()) if 2**i < full]


def lossy_text(section: Figures) -> str:
    """Ranks."""
    titles = ("rank", "kB", "energy kept %", "LPIPS to uncut", "agreement %", "change", "sharpness beside uncut")
    return text_table(titles, [
        [str(row["rank"]), f"{row['bytes'] / 1000:.0f}", f"{100 * row['energy']:.1f}",
         *([value_text(row["lpips"], digits=3), value_text(row["agreement"], 100),
            change_text(row["agreement_change"], 100), value_text(row["sharpness"], digits=2)]
           if "lpips" in row else ["", value_text(row["agreement"], 100), "", ""])]
        for row in section["rows"]
    ])  # fmt: skip


def smallest(section: Figures) -> Figures:
    """The row of the smallest rank that, with all above it, loses neither agreement nor sharpness for certain."""
    found: Figures = section["rows"][0]
    for row in section["rows"][1:]:
        if sign(row["agreement_change"]) < 0 or sign(row["sharpness_change"]) < 0:
            break
        found = row
    return found


def lossy_verdict(section: Figures) -> tuple[str, str]:
    """What was measured, and what came out."""
    row, whole = smallest(section), section["rows"][0]
    return (
        "smallest rank that loses neither agreement nor sharpness for certain",
        f"{row['rank']} of {whole['rank']}: {row['bytes'] / 1000:.0f} of {whole['bytes'] / 1000:.0f} kB",
    )
