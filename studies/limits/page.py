"""docs/limits.md; `python -m studies.limits.page` writes it anew from the figures that are there."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fewstep.evaluate.report import text_table
from fewstep.io import read_json, write_bytes
from studies.limits.bench import Bench, Measured
from studies.limits.general import general, general_text, general_verdict, worse
from studies.limits.inputs import inputs, inputs_text, inputs_verdict, times_the_median
from studies.limits.pretrained import pretrained, pretrained_text, pretrained_verdict
from studies.limits.rank import lossy, lossy_text, lossy_verdict, smallest
from studies.limits.smooth import smooth, smooth_text, smooth_verdict
from studies.limits.speed import last_gain, speed, speed_text, speed_verdict
from studies.limits.words import CERTAIN, Figures, listed, picture, row_of, sign
from studies.pages import DOCS, paragraph, template


class Limit(NamedTuple):
    """A section of the page."""

    title: str
    measure: Callable[[Bench], Measured]
    text: Callable[[Figures], str]
    verdict: Callable[[Figures], tuple[str, str]]


LIMITS = {
    "1": Limit("It needs a pretrained model", pretrained, pretrained_text, pretrained_verdict),
    "2": Limit("It assumes a smooth latent space", smooth, smooth_text, smooth_verdict),
    "3": Limit("LoRA loses information", lossy, lossy_text, lossy_verdict),
    "4": Limit("Some inputs are mapped inaccurately, or unstably", inputs, inputs_text, inputs_verdict),
    "5": Limit("Speed against quality", speed, speed_text, speed_verdict),
    "6": Limit("Generality", general, general_text, general_verdict),
}


def learnt(sections: Figures) -> list[str]:
    """What the figures decide, a sentence each."""
    return [SENTENCES[number](sections[number]) for number in SENTENCES if number in sections]


def of_steps(section: Figures) -> str:
    """How many steps to take."""
    return f"Twice as many steps as {last_gain(section)} add neither agreement nor sharpness that this page can tell."


def of_rank(section: Figures) -> str:
    """How small the file may be."""
    row = smallest(section)
    return (
        f"The shipped LoRA of rank {section['rows'][0]['rank']} can be cut to rank {row['rank']}"
        f" ({row['bytes'] / 1000:.0f} kB) with no loss that this page can tell."
    )


def of_inputs(section: Figures) -> str:
    """How uneven it is."""
    times = [times_the_median(section, section[who]) for who in ("student", "teacher")]
    return (
        f"A tenth of the student's pictures lie {times[0]:.1f} times as far from the ODE's as its median picture;"
        f" a tenth of the teacher's in fewer steps, {times[1]:.1f} times."
    )


def of_paths(section: Figures) -> str:
    """Whether pictures jump."""
    words = {1: "in larger jumps than", -1: "in smaller jumps than", 0: "as evenly, for all that can be told, as"}
    way = words[sign(row_of(section, section["student"])["jump_change"])]
    return f"Between two noises the student's pictures change {way} the teacher's."


def of_generality(section: Figures) -> str:
    """What it is worse at."""
    found = worse(section)
    return (
        f"It agrees less often with its prompts than its teacher on {listed(found)}."
        if found
        else "On no kind of prompt here does it agree less often than its teacher, for certain."
    )


SENTENCES: Mapping[str, Callable[[Figures], str]] = {
    "5": of_steps,
    "3": of_rank,
    "6": of_generality,
    "4": of_inputs,
    "2": of_paths,
}


def page(document: Figures) -> str:
    """docs/limits.md."""
    sections = document["sections"]
    if not sections:
        return "# The limits of LCM-LoRA, measured\n\nNot measured yet: `python -m studies.limits` does.\n"
    steps = picture("steps", "agreement, sharpness and LPIPS over network evaluations") if "5" in sections else ""
    missing = "Not measured yet: `python -m studies.limits --sections {}` does."
    texts = {
        f"section_{number}": limit.text(sections[number]) if number in sections else missing.format(number)
        for number, limit in LIMITS.items()
    }
    rows = [
        [f"{number}. {limit.title}", *limit.verdict(sections[number])]
        for number, limit in LIMITS.items()
        if number in sections
    ]
    table = text_table(("limit", "what was measured", "result"), rows)
    head = {"certain": CERTAIN, "table": table, "steps": steps, "how": how(sections), "options": options(sections)}
    return template("limits").format(learnt=paragraph(learnt(sections)), **head, **texts)


def options(sections: Figures) -> str:
    """As they are typed for these figures."""
    found = {"--images": max(s["images"] for s in sections.values()), "--paths": sections.get("2", {}).get("paths")}
    return " ".join(f"{name} {value}" for name, value in found.items() if value is not None)


def how(sections: Figures) -> str:
    """What the figures depend on."""
    found = {
        (s["model_sha256"][:12], s["lcm_sha256"][:12], f"{s['guidance_scale']:g}", s["images"], s["device"])
        for s in sections.values()
    }
    return "\n".join(
        f"Model {model}, `lcm` {lora}; the teacher at guidance {guidance}, at which `lcm` was distilled; {images}"
        f" pictures a line, on {device}."
        for model, lora, guidance, images, device in sorted(found)
    ) + ("" if len(found) < 2 else "\nThe sections are not all of the same model.")


if __name__ == "__main__":
    write_bytes(DOCS / "limits.md", page(read_json(DOCS / "limits.json", "figures")).encode())
