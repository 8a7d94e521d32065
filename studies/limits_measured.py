"""What docs/limits.md shows: the figures and pictures of each of the six limits."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep import __version__
from fewstep.assets import ACCELERATION, MODEL, STYLES, shipped_kit, shipped_lora, shipped_model
from fewstep.diffusion.guidance import Conditioning
from fewstep.diffusion.sampler import ImageNoise
from fewstep.evaluate.drawn import Drawn
from fewstep.evaluate.measure import labelled_pictures
from fewstep.evaluate.prompts import Prompt, bare_prompts, shipped_prompts, things
from fewstep.evaluate.sheets import Row, grid, wrapped
from fewstep.images import read_image, to_image
from fewstep.io import atomic_folder, cache_dir, sha256_file
from fewstep.lora.compress import compress
from fewstep.lora.difference import difference
from fewstep.lora.low_rank import Adapter, combine
from fewstep.lora.references import parse_reference
from fewstep.lora.writing import save_adapter
from fewstep.merge import fit, merged_recipe, sources_of
from fewstep.metrics.estimate import Estimate, estimate, share
from fewstep.metrics.frechet import Statistics
from fewstep.metrics.reference import agreement_with
from fewstep.models.model import Model, parts_sha256
from fewstep.models.weights import weights_of
from recipes.emoji.captions import main_caption
from recipes.emoji.sheet import OWN_WORDS
from studies.lab import Given, Lab, base_styles, drawings_of, take
from studies.limits_pictures import steps_plot

NOISY = (0.05, 0.1, 0.2)  # section 1: shares of the teacher's weights that are noise
POINTS = 16  # section 2: of a path
STRIP, CELL = 56, 96  # pixels of a picture of a path's sheet, and of the others
CHANGED = 0.1  # section 4: of a picture's noise
OTHER_NOISE = 1_000_000  # its seeds begin here
DECILE = 10  # the worst tenth
WORST = 8  # of them shown
STUDENT_STEPS = (1, 2, 4, 8)
LCM_STEPS, TEACHER_STEPS = (1, 2, 3, 4, 6, 8, 12, 16), (4, 8, 16, 25)  # section 5
STYLE_WEIGHT = 0.8  # section 6
SKETCHED, COLOURED = "emojione-bw", "emojione"  # one person's lines, without and with colour
STRENGTHS = (0.5, 0.8)
SHOWN_SKETCHES = 4
TINY = 1e-12


class Way(NamedTuple):
    """A way to draw."""

    solver: str
    steps: int
    lora: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As a row of compare."""
        return f"{self.solver}:{self.steps}"

    @property
    def options(self) -> dict[str, Any]:
        """Of SampleConfig."""
        return {"solver": self.solver, "steps": self.steps}


def lcm(steps: int, *beside: str) -> Way:
    """The student, with other LoRAs beside its own."""
    return Way("lcm", steps, (*beside, ACCELERATION))


TEACHER, SMOOTH_TEACHER, TRUTH = Way("dpm-solver++", 25), Way("dpm-solver++", 20), Way("ddim", 100)


class Bench(NamedTuple):
    """What measures, and how much of it."""

    lab: Lab
    images: int
    paths: int
    earlier: tuple[tuple[str, str], ...] = ()  # models and their LoRAs
    full_lcm: str | None = None

    def draw(self, way: Way, prompts: Sequence[Prompt], model: str = MODEL, **options: Any) -> Drawn:
        """A picture of each prompt, seeds counting up."""
        texts, title = [prompt.text for prompt in prompts], f"{Path(model).name} {way.name}"
        return self.lab.draw(texts, model, way.lora, title, **way.options, **options)


class Measured(NamedTuple):
    """A section."""

    figures: dict[str, Any]
    pictures: dict[str, Image.Image]  # by name


class Quality(NamedTuple):
    """What pictures are."""

    agreement: Estimate
    distance: Estimate

    def less(self, other: "Quality") -> "Quality":
        """The differences, paired."""
        return Quality(self.agreement.less(other.agreement), self.distance.less(other.distance))

    @property
    def numbers(self) -> dict[str, Any]:
        """As data."""
        return {name: value.numbers for name, value in self._asdict().items()}


# --- small sums ---------------------------------------------------------------------------------------------


def of_values(what: Callable[[Tensor], float], values: Tensor) -> Estimate:
    """What is made of values (N,), one a picture."""
    return estimate(lambda images: what(values[images].double()), len(values))


def mean(values: Tensor) -> float:
    """Of (N,)."""
    return float(values.mean())


def median(values: Tensor) -> float:
    """Of (N,); of an even number the mean of the middle two."""
    return float(values.quantile(0.5))


def worst_decile(values: Tensor) -> float:
    """The mean of the largest tenth of (N,), of one at least."""
    return float(values.topk(-(-len(values) // DECILE)).values.mean())


def ratio_of_sums(above: Tensor, below: Tensor) -> Estimate:
    """sum above / sum below, (P,) each, which no single small `below` can make large."""
    return estimate(lambda some: float(above[some].sum() / below[some].sum().clamp(min=TINY)), len(above))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points (N, *) on the arc from a to b (*) at t (N,) in [0, 1]; their norms go evenly from a's to b's."""
    t, (length_a, length_b) = t.double().view(-1, *[1] * a.dim()), (x.double().norm() for x in (a, b))
    unit_a, unit_b = a.double() / length_a, b.double() / length_b
    angle = torch.arccos((unit_a * unit_b).sum().clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(a.double(), b.double(), t).to(a)
    arc = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    return (torch.lerp(length_a, length_b, t) * arc).to(a)


def between(a: Conditioning, b: Conditioning, t: Tensor) -> Conditioning:
    """Conditionings on the straight line from a to b, of one picture each, at t (N,)."""
    parts = zip(a, b, strict=True)
    return Conditioning(
        *(None if x is None or y is None else torch.lerp(x, y, t.view(-1, *[1] * (x.dim() - 1)).to(x))
          for x, y in parts)  # type: ignore[arg-type]
    )  # fmt: skip


# --- what is drawn ------------------------------------------------------------------------------------------


def styled(style: str) -> tuple[Prompt, ...]:
    """Every thing in that style."""
    return tuple(Prompt(main_caption(style, thing), style, concept) for concept, thing in things().items())


def all_base(lab: Lab) -> Statistics:
    """The real drawings of the base styles, all together."""
    return drawings_of(lab.reference, base_styles())


def shipped(bench: Bench) -> tuple[Prompt, ...]:
    """The captions that ship, one a picture."""
    return take(shipped_prompts().prompts, bench.images)


def judged(bench: Bench, drawn: Drawn, prompts: Sequence[Prompt], target: Statistics) -> Quality:
    """Agreement, and distance to the real drawings."""
    return Quality(bench.lab.agreement(drawn, prompts), bench.lab.distance(drawn, target))


def facts(bench: Bench) -> dict[str, Any]:
    """What every section depends on."""
    pipeline, around = bench.lab.pipeline(lora=(ACCELERATION,))
    bare, _ = bench.lab.pipeline()
    plan = bare.plan(bench.lab.wish(("",), MODEL, (), **TEACHER.options))
    return {
        "fewstep": __version__,
        "model_sha256": around["model_sha256"],
        "lcm_sha256": pipeline.loras[0]["sha256"],
        "images": bench.images,
        "guidance_scale": plan.guidance_scale,
        "dtype": bench.lab.dtype,
        "device": bare.model.device.type,
    }


# --- 1: a pretrained model ----------------------------------------------------------------------------------


class Teaching(NamedTuple):
    """A teacher and its student."""

    name: str
    model: str
    lora: str


def pretrained(bench: Bench) -> Measured:
    """Teachers, their students, and what becomes of both as the teacher's weights turn into noise."""
    pairs = [Teaching("as shipped", MODEL, ACCELERATION)]
    pairs += [Teaching(name_of(model), model, lora) for model, lora in bench.earlier]
    pairs += [Teaching(f"{100 * a:g} % noise", str(noisy_model(a)), ACCELERATION) for a in NOISY]
    prompts, target = shipped(bench), all_base(bench.lab)
    rows: list[dict[str, Any]] = []
    first: tuple[Quality, Quality] | None = None
    for pair in pairs:
        teacher, student = (
            judged(bench, bench.draw(way, prompts, pair.model), prompts, target)
            for way in (TEACHER, lcm(4)._replace(lora=(pair.lora,)))
        )
        first = first or (teacher, student)
        rows.append({
            "name": pair.name,
            "teacher": teacher.numbers,
            "student": student.numbers,
            "gap": student.less(teacher).numbers,
            "teacher_change": teacher.less(first[0]).numbers,
            "student_change": student.less(first[1]).numbers,
        })  # fmt: skip
    return Measured({"teacher": TEACHER.name, "student": lcm(4).name, "rows": rows}, {})


def name_of(model: str) -> str:
    """A model's folder's name, or of one called model, as a training leaves it, the folder's above."""
    path = Path(model)
    return path.parent.name if path.name == "model" else path.stem


def noisy_model(share_of_noise: float) -> Path:
    """The embedded model with UNet weights (1 - a) W + a n, n Gaussian of W's own size, tensor by tensor; kept."""
    model = shipped_model(MODEL)
    assert model is not None
    out = cache_dir() / "limits" / f"noisy-{share_of_noise:g}-{parts_sha256(model)[:12]}"
    if not out.exists():
        generator = torch.Generator().manual_seed(0)
        with atomic_folder(out) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
            for file in sorted((folder / "unet").glob("*.safetensors")):
                weights = {key: noised(W, share_of_noise, generator) for key, W in sorted(load_file(file).items())}
                save_file(weights, file, {"format": "pt"})
    return out


def noised(W: Tensor, a: float, generator: torch.Generator) -> Tensor:
    """(1 - a) W + a n with |n| = |W|."""
    exact = W.double()
    n = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    return torch.lerp(exact, n * exact.norm() / n.norm().clamp(min=TINY), a).to(W.dtype)


# --- 2: a smooth latent space -------------------------------------------------------------------------------


def smooth(bench: Bench) -> Measured:
    """How far pictures go on their way between two noises, and between two prompts."""
    kinds = (("noises", noise_path, bare_prompts()), ("prompts", prompt_path, shipped_prompts().prompts))
    rows, strips = [], []
    for kind, points, every in kinds:
        prompts = take(every, 2 * bench.paths)
        teacher: Roughness | None = None
        for way in (SMOOTH_TEACHER, *map(lcm, STUDENT_STEPS)):
            model = bench.lab.pipeline(lora=way.lora)[0].model
            given = [points(model, prompts, path) for path in range(bench.paths)]
            drawn = bench.lab.paint(given, lora=way.lora, **way.options)
            values = roughness(bench.lab, drawn)
            teacher = teacher or values
            rows.append({
                "between": kind,
                "drawn_with": way.name,
                **{name: value.numbers for name, value in values._asdict().items()},
                "length_change": values.length.less(teacher.length).numbers,
                "jump_change": values.jump.less(teacher.jump).numbers,
            })  # fmt: skip
            strips.append(Row(way.name, f"between two {kind}", drawn.first(POINTS)))
    figures = {"teacher": SMOOTH_TEACHER.name, "paths": bench.paths, "points": POINTS, "rows": rows}
    return Measured(figures, {"paths": grid(strips, [""] * POINTS, STRIP)})


def noise_path(model: Model, prompts: Sequence[Prompt], path: int) -> Given:
    """One prompt, from the noise of one seed to that of the next; fresh noise is always the first seed's."""
    shape, seed = model.latent_shape(model.size, model.size), 2 * path
    a, b = ImageNoise((seed, seed + 1), shape)()
    told = model.embed([prompts[seed].text]).expand(POINTS)
    return Given(told, slerp(a, b, torch.linspace(0, 1, POINTS)), (seed,) * POINTS)


def prompt_path(model: Model, prompts: Sequence[Prompt], path: int) -> Given:
    """One noise, on a straight line from what one prompt tells the network to what the next one does."""
    shape, seed = model.latent_shape(model.size, model.size), 2 * path
    a, b = (model.embed([prompt.text]) for prompt in prompts[seed : seed + 2])
    noise = ImageNoise((seed,), shape)().expand(POINTS, *shape)
    return Given(between(a, b, torch.linspace(0, 1, POINTS)), noise, (seed,) * POINTS)


class Roughness(NamedTuple):
    """Of paths, by the root of LPIPS, which is a squared distance of features: that adds up along a line."""

    ends: Estimate  # LPIPS itself of a path's ends, the mean
    length: Estimate  # over the distance of the ends
    jump: Estimate  # the largest step over the mean one


def roughness(lab: Lab, drawn: Drawn) -> Roughness:
    """Of all paths together, a batch each."""
    steps, ends = [], []
    for path in drawn.batches():
        steps.append(lab.between(path[:-1], path[1:]).double().sqrt())
        ends.append(lab.between(path[:1], path[-1:]).double().sqrt())
    every, apart = torch.stack(steps), torch.cat(ends)  # (P, N - 1), (P,)
    return Roughness(
        estimate(lambda paths: float(apart[paths].square().mean()), len(apart)),
        ratio_of_sums(every.sum(dim=1), apart),
        ratio_of_sums(every.amax(dim=1), every.mean(dim=1)),
    )


# --- 3: the LoRA's rank -------------------------------------------------------------------------------------


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
        drawn = uncut if rank == full else bench.draw(lcm(4)._replace(lora=(str(file),)), prompts)
        quality = judged(bench, drawn, prompts, target)
        rows.append({
            "rank": rank,
            "bytes": file.stat().st_size,
            "energy": loss.energy,
            "full_energy": full_energy(bench.full_lcm, rank),
            "lpips": of_values(mean, bench.lab.distances(drawn, uncut)).numbers,
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


# --- 4: some inputs -----------------------------------------------------------------------------------------


def inputs(bench: Bench) -> Measured:
    """How far each picture is from the ODE's own, and how far a slightly other noise moves it."""
    lab, prompts = bench.lab, shipped(bench)
    truth = bench.draw(TRUTH, prompts)
    rows, far, drawings = [], {}, {}
    teacher: list[Estimate] = []
    for way in (TEACHER, *map(lcm, STUDENT_STEPS)):
        drawn = drawings[way.name] = bench.draw(way, prompts)
        far[way.name] = lab.distances(drawn, truth)
        model = lab.pipeline(lora=way.lora)[0].model
        moved = lab.paint(shaken(model, prompts, lab.batch_size), lora=way.lora, **way.options)
        apart = lab.distances(drawn, moved)
        values = [of_values(what, those) for those in (far[way.name], apart) for what in (median, worst_decile)]
        teacher = teacher or values
        names = ("far", "far_worst", "apart", "apart_worst")
        rows.append(
            {"drawn_with": way.name}
            | {name: value.numbers for name, value in zip(names, values, strict=True)}
            | {f"{name}_change": value.less(of_teacher).numbers
               for name, value, of_teacher in zip(names, values, teacher, strict=True)}
        )  # fmt: skip
    order = far[lcm(4).name].argsort(descending=True).tolist()
    figures = {
        "truth": TRUTH.name,
        "teacher": TEACHER.name,
        "student": lcm(4).name,
        "changed": CHANGED,
        "rows": rows,
        "worst": [{"prompt": prompts[i].text, "lpips": float(far[lcm(4).name][i])} for i in order[:WORST]],
        "styles": styles_among([str(prompts[i].style) for i in order]),
    }
    return Measured(figures, {"worst": worst_sheet(order[:WORST], prompts, far, {TRUTH.name: truth, **drawings})})


def shaken(model: Model, prompts: Sequence[Prompt], batch_size: int) -> list[Given]:
    """The prompts with their seeds' noise z as sqrt(1 - e^2) z + e n; what is added on the way stays the same."""
    shape, batches = model.latent_shape(model.size, model.size), []
    for first in range(0, len(prompts), batch_size):
        texts = [prompt.text for prompt in prompts[first : first + batch_size]]
        seeds = tuple(range(first, first + len(texts)))
        z, n = ImageNoise(seeds, shape)(), ImageNoise([OTHER_NOISE + seed for seed in seeds], shape)()
        batches.append(Given(model.embed(texts), (1 - CHANGED**2) ** 0.5 * z + CHANGED * n, seeds))
    return batches


def styles_among(ordered: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of each style how many pictures there are, and how many in the worst tenth; worst first in `ordered`."""
    worst = ordered[: -(-len(ordered) // DECILE)]
    return {style: {"all": ordered.count(style), "worst": worst.count(style)} for style in sorted(set(ordered))}


def worst_sheet(
    order: Sequence[int], prompts: Sequence[Prompt], far: dict[str, Tensor], drawings: dict[str, Drawn]
) -> Image.Image:
    """The worst pictures, a row each, beside the others' from the same noise."""
    pictures = {name: drawn.first(max(order) + 1) for name, drawn in drawings.items()}
    rows = [
        Row(f"LPIPS {far[lcm(4).name][i]:.2f}", wrapped(prompts[i].text), [pictures[name][i] for name in pictures])
        for i in order
    ]
    return grid(rows, list(pictures), CELL)


# --- 5: speed against quality -------------------------------------------------------------------------------


def speed(bench: Bench) -> Measured:
    """Quality, evaluations and time of student and teacher at many numbers of steps."""
    prompts, target = shipped(bench), all_base(bench.lab)
    truth = bench.draw(TRUTH, prompts)
    rows: list[dict[str, Any]] = []
    for ways in ([lcm(n) for n in LCM_STEPS], [Way(TEACHER.solver, n) for n in TEACHER_STEPS]):
        texts = [prompt.text for prompt in prompts]
        drawings = [bench.lab.timed(bench.draw(way, prompts), texts, MODEL, way.lora) for way in ways]
        values = [
            {**judged(bench, drawn, prompts, target)._asdict(),
             "lpips": of_values(mean, bench.lab.distances(drawn, truth))}
            for drawn in drawings
        ]  # fmt: skip
        best = {key: best_of(key, [value[key] for value in values]) for key in values[0]}
        rows += [
            {"solver": way.solver, "steps": way.steps, "drawn_with": way.name, "nfe": drawn.nfe,
             "time_s": sum(drawn.split_s.values())}
            | {key: value[key].numbers for key in value}
            | {f"{key}_behind": behind(key, value[key], best[key]).numbers for key in value}
            for way, drawn, value in zip(ways, drawings, values, strict=True)
        ]  # fmt: skip
    return Measured({"truth": TRUTH.name, "rows": rows}, {"steps": steps_plot(rows)})


def best_of(key: str, values: Sequence[Estimate]) -> Estimate:
    """Agreement is better the larger it is, the distances the smaller they are."""
    return (max if key == "agreement" else min)(values, key=lambda value: value.value)


def behind(key: str, value: Estimate, best: Estimate) -> Estimate:
    """By how much it is worse than the best, at least 0."""
    return best.less(value) if key == "agreement" else value.less(best)


# --- 6: styles, words, sketches -----------------------------------------------------------------------------


def general(bench: Bench) -> Measured:
    """Student beside teacher over styles, ways of wording, and sketches to start from."""
    lab, rows = bench.lab, []
    together = all_base(lab)
    for style in base_styles():
        rows.append(beside(bench, "style", style, styled(style), drawings_of(lab.reference, [style])))
    for style in STYLES:
        lora, target = f"{style}:{STYLE_WEIGHT:g}", drawings_of(lab.reference, [style])
        rows.append(beside(bench, "style", f"{style} by its LoRA", styled(style), target, lora))
    bare, own = bare_prompts(), tuple(Prompt(words) for words in OWN_WORDS)
    wordings = {
        "captions that ship": shipped_prompts().prompts,
        f"bare names (“{bare[0].text}”)": bare,
        f"a person's own (“{own[0].text}”)": own,
    }
    rows += [beside(bench, "words", name, prompts, together) for name, prompts in wordings.items()]
    sketches, sheet = of_sketches(bench)
    figures = {"teacher": TEACHER.name, "student": lcm(4).name, "rows": rows, **sketches}
    return Measured(figures, {"sketches": sheet})


def beside(
    bench: Bench, group: str, name: str, prompts: Sequence[Prompt], target: Statistics, *loras: str
) -> dict[str, Any]:
    """One line: teacher and student on these prompts, from the same noise."""
    prompts = take(prompts, bench.images)
    drawings = [bench.draw(way, prompts) for way in (TEACHER._replace(lora=loras), lcm(4, *loras))]
    distances = [bench.lab.distance(drawn, target) for drawn in drawings]
    row = {
        "group": group,
        "name": name,
        "teacher_distance": distances[0].numbers,
        "student_distance": distances[1].numbers,
        "distance_relative": distances[1].relative(distances[0]).numbers,
        "lpips": of_values(mean, bench.lab.distances(*drawings)).numbers,
    }
    if not any(prompt.concept for prompt in prompts):
        return row
    teacher, student = (bench.lab.agreement(drawn, prompts) for drawn in drawings)
    agreements = {"teacher_agreement": teacher, "student_agreement": student, "agreement_change": student.less(teacher)}
    return row | {key: value.numbers for key, value in agreements.items()}


def of_sketches(bench: Bench) -> tuple[dict[str, Any], Image.Image]:
    """Pictures from black and white drawings, in every coloured style, by student and teacher.

    Agreement counts only drawings by other hands than the sketch's, which would vouch for what it was given.
    """
    styles = [style for style in base_styles() if style != SKETCHED]
    sketches = [prompt for prompt in shipped_prompts().prompts if prompt.style == SKETCHED]
    sketches = sketches[: max(-(-bench.images // len(styles)), 2)]
    files = [shipped_kit() / "drawings" / SKETCHED / f"{sketch.concept}.webp" for sketch in sketches]
    families, target = {SKETCHED: COLOURED}, drawings_of(bench.lab.reference, styles)
    asked = [
        [Prompt(main_caption(style, things()[str(sketch.concept)]), SKETCHED, sketch.concept)
         for style in styles]
        for sketch in sketches
    ]  # fmt: skip
    prompts, size = list(chain.from_iterable(asked)), bench.lab.pipeline()[0].model.size
    originals = [read_image(file, size, size) for file in files]
    rows, columns = [], {"the sketch": [to_image(pixels) for pixels in originals]}
    for strength in STRENGTHS:
        teacher: list[Estimate] = []
        for way in (TEACHER, lcm(4)):
            parts = [
                bench.draw(way, those, image=file, strength=strength, seed=len(styles) * i)
                for i, (file, those) in enumerate(zip(files, asked, strict=True))
            ]
            drawn = joined(parts)
            values = [
                of_values(
                    mean, torch.cat([far_from(bench.lab, part, x) for part, x in zip(parts, originals, strict=True)])
                ),
                bench.lab.agreement(drawn, prompts, families),
                bench.lab.distance(drawn, target),
            ]
            teacher = teacher or values
            names = ("lpips", "agreement", "distance")
            rows.append(
                {"strength": strength, "drawn_with": way.name}
                | {name: value.numbers for name, value in zip(names, values, strict=True)}
                | {f"{name}_change": value.less(of_teacher).numbers
                   for name, value, of_teacher in zip(names, values, teacher, strict=True)}
            )  # fmt: skip
            columns[f"{way.name}\nat {strength:g}"] = [part.first(1)[0] for part in parts]
    figures = {
        "sketches": len(sketches),
        "sketch_styles": len(styles),
        "sketch_agreement": of_originals(bench, originals, sketches, families).numbers,
        "sketch_rows": rows,
    }
    return figures, sketch_sheet([those[0].text for those in asked], columns)


def joined(parts: Sequence[Drawn]) -> Drawn:
    """One after another."""
    files = tuple(chain.from_iterable(part.files for part in parts))
    details = tuple(chain.from_iterable(part.facts for part in parts))
    return parts[0]._replace(files=files, facts=details)


def far_from(lab: Lab, drawn: Drawn, original: Tensor) -> Tensor:
    """LPIPS of each picture to one image (3, H, W)."""
    return torch.cat([lab.between(batch, original.expand_as(batch)) for batch in drawn.batches()])


def of_originals(
    bench: Bench, originals: Iterable[Tensor], sketches: Sequence[Prompt], families: dict[str, str]
) -> Estimate:
    """The agreement of the sketches themselves."""
    lab = bench.lab
    device = next(lab.efficientnet.parameters()).device
    pictures = labelled_pictures(lab.efficientnet(torch.stack(list(originals)).to(device)).cpu(), sketches)
    assert pictures is not None
    return share(agreement_with(pictures, lab.reference, families).hits)


def sketch_sheet(prompts: Sequence[str], columns: dict[str, list[Image.Image]]) -> Image.Image:
    """The first few, a row each."""
    rows = [Row("", wrapped(prompt), [pictures[i] for pictures in columns.values()])
            for i, prompt in enumerate(prompts[:SHOWN_SKETCHES])]  # fmt: skip
    return grid(rows, list(columns), CELL)


SECTIONS: dict[str, Callable[[Bench], Measured]] = {
    "1": pretrained,
    "2": smooth,
    "3": lossy,
    "4": inputs,
    "5": speed,
    "6": general,
}
