"""What docs/limits.md says of the figures of limits.json: tables, and sentences that follow from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewstep.evaluate.report import text_table
from studies.pages import template

CERTAIN = 2  # standard errors
ENOUGH = 0.9  # of a difference's energy

Row = Mapping[str, Any]


# --- words --------------------------------------------------------------------------------------------------


def said(value: Row, scale: float = 1, digits: int = 1) -> str:
    """A number with its error."""
    return f"{scale * value['value']:.{digits}f} ± {scale * value['error']:.{digits}f}"


def change(value: Row, scale: float = 1, digits: int = 1) -> str:
    """A difference with its error, signed."""
    return f"{scale * value['value']:+.{digits}f} ± {scale * value['error']:.{digits}f}"


def sign(value: Row) -> int:
    """1 for a number above 0 for certain, -1 for one below, 0 for one not told from it."""
    if abs(value["value"]) <= CERTAIN * value["error"]:
        return 0
    return 1 if value["value"] > 0 else -1


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def sorted_out(
    rows: Sequence[Row], key: str, words: Mapping[int, str], name: Callable[[Row], str] = lambda row: row["name"]
) -> str:
    """Which rows a change is above, below or near 0 in. words: what that is called, by `sign`."""
    groups = {word: [name(row) for row in rows if sign(row[key]) == which] for which, word in words.items()}
    return "; ".join(f"{word}: {listed(names)}" for word, names in groups.items() if names)


def code(row: Row) -> str:
    """What a row was drawn with."""
    return f"`{row['drawn_with']}`"


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"* {line}" for line in lines)


def picture(name: str, words: str) -> str:
    """A picture of docs/pictures."""
    return f"![{words}](pictures/limits-{name}.jpg)"


# --- 1 ------------------------------------------------------------------------------------------------------


def told_pretrained(section: Row) -> str:
    """Teachers and students."""
    columns = (
        "teacher", "agreement %", "distance", "its student's agreement %", "distance", "student less teacher, points",
        "distance",
    )  # fmt: skip
    table = text_table(columns, [
        [row["name"],
         *(text for who in ("teacher", "student")
           for text in (said(row[who]["agreement"], 100), said(row[who]["distance"]))),
         change(row["gap"]["agreement"], 100), change(row["gap"]["distance"])]
        for row in section["rows"]
    ])  # fmt: skip
    return f"{table}\n\n{bullets([of_gaps(section['rows']), *of_followers(section['rows'])])}"


def of_gaps(rows: Sequence[Row]) -> str:
    """Whether a student is better than its teacher."""
    above = [row["name"] for row in rows if sign(row["gap"]["agreement"]) > 0]
    nearer = [row["name"] for row in rows if sign(row["gap"]["distance"]) < 0]
    verdict = "Nothing here speaks against the limit" if not above and not nearer else "Here the limit is no law"
    return (
        f"Better than its teacher for certain, by agreement: {listed(above)}; by distance: {listed(nearer)}. {verdict}."
    )


def of_followers(rows: Sequence[Row]) -> list[str]:
    """Whether students go where their teachers go, from the first row's."""
    lines = []
    for key, scale, unit in (("agreement", 100, " points"), ("distance", 1, "")):
        others = [(row, sign(row["teacher_change"][key])) for row in rows[1:]]
        moved = [(row, way) for row, way in others if way]
        after = [row for row, way in moved if sign(row["student_change"][key]) == way]
        against = [row for row, way in moved if sign(row["student_change"][key]) == -way]
        if not moved:
            lines.append(f"By {key} no other teacher here is told from the shipped one.")
            continue
        furthest = max((row for row, _ in moved), key=lambda row: abs(row["teacher_change"][key]["value"]))
        lines.append(
            f"By {key} {len(moved)} of {len(others)} other teachers differ from the shipped one for certain; of their"
            f" students {len(after)} differ the same way for certain, {len(against)} the other way. The"
            f" furthest, {furthest['name']}: teacher {change(furthest['teacher_change'][key], scale)}{unit},"
            f" student {change(furthest['student_change'][key], scale)}{unit}."
        )
    return lines


# --- 2 ------------------------------------------------------------------------------------------------------


def told_smooth(section: Row) -> str:
    """Paths."""
    table = text_table(
        ("between", "drawn with", "LPIPS of the ends", "length of the path", "less the teacher's", "largest jump",
         "less the teacher's"),
        [
            [f"two {row['between']}", code(row), said(row["ends"], digits=4),
             said(row["length"], digits=2), *own_change(row, "length", section),
             said(row["jump"], digits=2), *own_change(row, "jump", section)]
            for row in section["rows"]
        ],
    )  # fmt: skip
    lines = []
    for kind in dict.fromkeys(row["between"] for row in section["rows"]):
        of_kind = [row for row in section["rows"] if row["between"] == kind]
        teacher = next(row for row in of_kind if row["drawn_with"] == section["teacher"])
        own = [row for row in of_kind if row is not teacher]
        apart = [f"{code(row)} {row['ends']['value'] / teacher['ends']['value']:.2g}" for row in own]
        lines.append(f"Between two {kind}, how far apart the ends are, over the teacher's: {', '.join(apart)}.")
        for key, what in (("length", "paths"), ("jump", "largest jumps")):
            words = {1: "larger", -1: "smaller", 0: "not told apart"}
            lines.append(
                f"Between two {kind}, the student's {what} beside the teacher's: "
                f"{sorted_out(own, f'{key}_change', words, code)}."
            )
    strip = picture("paths", f"{section['points']} pictures on the way between two noises and between two prompts")
    return f"{table}\n\n{bullets(lines)}\n\n{strip}"


def own_change(row: Row, key: str, section: Row) -> list[str]:
    """The cell of a change, empty in the teacher's own row."""
    return [""] if row["drawn_with"] == section["teacher"] else [change(row[f"{key}_change"], digits=2)]


# --- 3 ------------------------------------------------------------------------------------------------------


def told_lossy(section: Row) -> str:
    """Ranks."""
    rows, whole = section["rows"], section["rows"][-1]
    has_full = whole["full_energy"] is not None
    columns = ["rank", "kB", "energy kept %", *(["of a whole distillation's %"] if has_full else []),
               "LPIPS to uncut", "agreement %", "change, points", "distance", "change"]  # fmt: skip
    table = text_table(columns, [
        [str(row["rank"]), f"{row['bytes'] / 1000:.0f}", f"{100 * row['energy']:.1f}",
         *([f"{100 * row['full_energy']:.1f}"] if has_full else []),
         *([said(row["lpips"], digits=3), said(row["agreement"], 100), change(row["change"]["agreement"], 100),
            said(row["distance"]), change(row["change"]["distance"])]
           if row is not whole else ["", said(row["agreement"], 100), "", said(row["distance"]), ""])]
        for row in rows
    ])  # fmt: skip
    lines = of_cuts(rows[:-1])
    if has_full:
        lines.append(of_full(rows))
    return f"{table}\n\n{bullets(lines)}"


def of_cuts(cut: Sequence[Row]) -> list[str]:
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


def worse(of_quality: Row) -> bool:
    """Whether a change of agreement and distance is one for the worse, for certain."""
    return sign(of_quality["agreement"]) < 0 or sign(of_quality["distance"]) > 0


def of_full(rows: Sequence[Row]) -> str:
    """How much of a whole distillation a LoRA can hold."""
    whole = rows[-1]
    enough = [row["rank"] for row in rows if row["full_energy"] >= ENOUGH]
    needed = f"Rank {enough[0]} is the first here to hold {100 * ENOUGH:g} %" if enough else (
        f"No rank here holds {100 * ENOUGH:g} %")  # fmt: skip
    return (
        f"Of what a distillation of all weights changed, rank {whole['rank']} can hold"
        f" {100 * whole['full_energy']:.1f} % of the energy. {needed}."
    )


# --- 4 ------------------------------------------------------------------------------------------------------


def told_inputs(section: Row) -> str:
    """Inaccuracy and instability."""
    table = text_table(
        ("drawn with", "median LPIPS to DDIM", "worst tenth", "median LPIPS x 1000 of the change", "worst tenth"),
        [[code(row), *(said(row[key], digits=3) for key in ("far", "far_worst")),
                *(said(row[key], 1000, 2) for key in ("apart", "apart_worst"))]
         for row in section["rows"]],
    )  # fmt: skip
    worst = ", ".join(f"{one['prompt']} ({one['lpips']:.2f})" for one in section["worst"])
    lines = [*of_tails(section), *of_shaking(section), of_worst_styles(section["styles"], section["student"]),
             f"The worst of `{section['student']}`: {worst}."]  # fmt: skip
    return f"{table}\n\n{bullets(lines)}\n\n{picture('worst', 'the worst pictures, beside the others')}"


def of_tails(section: Row) -> list[str]:
    """How much worse the worst tenth is."""
    student, teacher = (row_of(section, section[name]) for name in ("student", "teacher"))
    times = [
        f"{row['far_worst']['value'] / row['far']['value']:.1f} times the median of {code(row)}"
        for row in (student, teacher)
        if row["far"]["value"] > 0
    ]
    words = {1: "further than the teacher's", -1: "nearer than the teacher's", 0: "not told from the teacher's"}
    return [
        f"The worst tenth is {' and '.join(times)} from `{section['truth']}`." if times else
        f"Most pictures are those of `{section['truth']}`.",
        f"The worst tenth of `{section['student']}` is {words[sign(student['far_worst_change'])]}:"
        f" {change(student['far_worst_change'], digits=3)}.",
    ]  # fmt: skip


def of_shaking(section: Row) -> list[str]:
    """What a little other noise does to students, beside the teacher."""
    students = [row for row in section["rows"] if row["drawn_with"] != section["teacher"]]
    words = {1: "less stable than the teacher", -1: "more stable", 0: "not told apart"}
    return [
        f"Noise changed by {100 * section['changed']:g} %, {what}: {sorted_out(students, key, words, code)}."
        for key, what in (("apart_change", "by the median"), ("apart_worst_change", "by the worst tenth"))
    ]


def row_of(section: Row, name: str) -> Row:
    """The row of that way to draw."""
    found: Row = next(row for row in section["rows"] if row["drawn_with"] == name)
    return found


def of_worst_styles(styles: Mapping[str, Row], student: str) -> str:
    """Where the worst tenth is."""
    total, worst = (sum(style[key] for style in styles.values()) for key in ("all", "worst"))
    shares = {name: style["worst"] / style["all"] for name, style in styles.items() if style["worst"]}
    ordered = sorted(shares, key=lambda name: -shares[name])
    parts = [f"{name} ({styles[name]['worst']} of {styles[name]['all']})" for name in ordered]
    return f"The worst tenth of `{student}`, {worst} of {total} pictures, by style: {listed(parts)}."


# --- 5 ------------------------------------------------------------------------------------------------------


def told_speed(section: Row) -> str:
    """Steps."""
    table = text_table(
        ("drawn with", "NFE", "ms an image", "agreement %", "distance", "LPIPS to DDIM"),
        [[code(row), f"{row['nfe']:g}", f"{1000 * row['time_s']:.1f}", said(row["agreement"], 100),
          said(row["distance"]), said(row["lpips"], digits=3)] for row in section["rows"]],
    )  # fmt: skip
    lines = []
    for solver in dict.fromkeys(row["solver"] for row in section["rows"]):
        own = [row for row in section["rows"] if row["solver"] == solver]
        lines += [of_steps(solver, own, key, what) for key, what in MEASURES.items()]
    plot = picture("steps", "agreement, distance and LPIPS over network evaluations")
    return f"{table}\n\n{bullets(lines)}\n\n{plot}"


MEASURES = {"agreement": "agreement", "distance": "distance", "lpips": "LPIPS to the teacher's own path"}


def of_steps(solver: str, rows: Sequence[Row], key: str, what: str) -> str:
    """Where more steps stop helping, and where they begin to hurt."""
    best = (max if key == "agreement" else min)(rows, key=lambda row: row[key]["value"])
    level = next(row for row in rows if sign(row[f"{key}_behind"]) <= 0)
    hurt = [row["steps"] for row in rows if row["steps"] > best["steps"] and sign(row[f"{key}_behind"]) > 0]
    helps = (
        (
            f"more steps help up to {best['steps']}, the best here"
            if best is not rows[0]
            else f"the fewest steps tried, {best['steps']}, are the best"
        )
        if level is best
        else f"more steps than {level['steps']} are not told to help (the best value is that of {best['steps']})"
    )
    last = rows[-1]
    if hurt:
        hurts = f"for certain worse than the best at {listed([str(steps) for steps in hurt])} steps"
    elif best is last:
        hurts = "none was tried beyond"
    else:
        hurts = f"up to {last['steps']} none hurts for certain"
    return f"{solver}, {what}: {helps}; {hurts}."


# --- 6 ------------------------------------------------------------------------------------------------------


def told_general(section: Row) -> str:
    """Styles, words, sketches."""
    rows = section["rows"]
    table = text_table(
        ("prompts", "agreement %, teacher", "student", "change, points", "distance, teacher", "student", "change, %",
         "LPIPS between them"),
        [general_cells(row) for row in rows],
    )  # fmt: skip
    lines = [
        line for group, what in GROUPS.items() for line in of_group([r for r in rows if r["group"] == group], what)
    ]
    sketches = text_table(
        ("strength", "drawn with", "LPIPS to the sketch", "agreement %", "distance"),
        [[f"{row['strength']:g}", code(row), said(row["lpips"], digits=3), said(row["agreement"], 100),
          said(row["distance"])] for row in section["sketch_rows"]],
    )  # fmt: skip
    return "\n\n".join([
        table,
        bullets(lines),
        f"From sketches: {section['sketches']} black and white drawings that ship, each in"
        f" {section['sketch_styles']} other styles. The sketches themselves have an agreement of"
        f" {said(section['sketch_agreement'], 100)} %.",
        sketches,
        bullets(of_strengths(section)),
        picture("sketches", "sketches and what was made of them"),
    ])  # fmt: skip


GROUPS = {"style": "styles", "words": "ways of wording"}


def general_cells(row: Row) -> list[str]:
    """One line."""
    judged = "agreement_change" in row
    agreements = [said(row["teacher_agreement"], 100), said(row["student_agreement"], 100),
                  change(row["agreement_change"], 100)] if judged else ["–"] * 3  # fmt: skip
    return [row["name"], *agreements, said(row["teacher_distance"]), said(row["student_distance"]),
            change(row["distance_relative"], 100), said(row["lpips"], digits=3)]  # fmt: skip


def of_group(rows: Sequence[Row], what: str) -> list[str]:
    """How evenly the student does over styles, or ways of wording."""
    if not rows:
        return []
    spread = sorted(rows, key=lambda row: row["distance_relative"]["value"])
    judged = [row for row in rows if "agreement_change" in row]
    lines = [
        f"Over {what}, by distance, the student is "
        + sorted_out(rows, "distance_relative", {1: "worse than the teacher", -1: "better", 0: "not told apart"})
        + f". From {change(spread[0]['distance_relative'], 100)} % ({spread[0]['name']}) to"
        f" {change(spread[-1]['distance_relative'], 100)} % ({spread[-1]['name']})."
    ]
    if judged:
        words = {-1: "worse than the teacher", 1: "better", 0: "not told apart"}
        lines.append(f"Over {what}, by agreement: {sorted_out(judged, 'agreement_change', words)}.")
    return lines


def of_strengths(section: Row) -> list[str]:
    """Student beside teacher from sketches."""
    lines = []
    for row in section["sketch_rows"]:
        if row["drawn_with"] != section["student"]:
            continue
        stays = {1: "less of the sketch stays than with the teacher", -1: "more of the sketch stays", 0: "as much of"
                 " the sketch stays as can be told"}[sign(row["lpips_change"])]  # fmt: skip
        shows = {1: "more", -1: "less", 0: "neither more nor less, for all that can be told,"}[
            sign(row["agreement_change"])
        ]
        lines.append(
            f"At strength {row['strength']:g}: {stays} (LPIPS {change(row['lpips_change'], digits=3)}); the student"
            f" draws {shows} of what was asked for ({change(row['agreement_change'], 100)} points)."
        )
    return lines


# --- the page -----------------------------------------------------------------------------------------------

TOLD: dict[str, Callable[[Row], str]] = {
    "1": told_pretrained,
    "2": told_smooth,
    "3": told_lossy,
    "4": told_inputs,
    "5": told_speed,
    "6": told_general,
}


def told(number: str, section: Row | None) -> str:
    """A section's figures in words, or that there are none."""
    if section is None:
        return f"Not measured yet: `python -m studies.limits --sections {number}` does."
    return f"{how(section)}\n\n{TOLD[number](section)}"


def how(section: Row) -> str:
    """What the figures depend on."""
    count = f"{section['paths']} paths of {section['points']} pictures" if "paths" in section else (
        f"{section['images']} pictures a line")  # fmt: skip
    return (
        f"Measured: {count}, the teacher at guidance {section['guidance_scale']:g}, {section['dtype']} on"
        f" {section['device']}; model {section['model_sha256'][:12]}, `lcm` {section['lcm_sha256'][:12]}."
    )


def page(document: Row) -> str:
    """docs/limits.md."""
    text = template("limits")
    sections = {f"section_{number}": told(number, document["sections"].get(number)) for number in TOLD}
    return text.format(certain=CERTAIN, missing=of_missing(document["sections"]), **sections)


def of_missing(sections: Row) -> str:
    """Whether all of it was measured, and of one model."""
    missing = [number for number in TOLD if number not in sections]
    models = {(section["model_sha256"], section["lcm_sha256"]) for section in sections.values()}
    notes = [f"Not measured yet: section {listed(missing)}."] if missing else []
    notes += ["The sections are not all of the same model; each says of which."] if len(models) > 1 else []
    return " ".join(notes) or "All sections are of one and the same model."
