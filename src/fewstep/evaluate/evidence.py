"""`compare --preset evidence`: the rows that show what an acceleration LoRA is worth, and how long they will take."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.configs import CompareConfig
from fewstep.errors import UsageError, option
from fewstep.evaluate.rows import RowSpec
from fewstep.events import in_minutes
from fewstep.lora.files import open_lora
from fewstep.lora.recipe import Recipe
from fewstep.models.references import parse_reference
from fewstep.session.loras import default_loras

IMAGES = 256
PROMPTS = Path("names")
KNOWN = ("ddim:32", "dpm-solver:16", "dpm-solver++:8")  # and the LoRA's own at 4: the table that surveys print
PLAIN = ("ddim", "dpm-solver++")  # held against the LoRA at equal cost
STEPS = (2, 1, 8)  # of the LoRA, after 4
COSTS = (4, 8)  # NFE at which rows without the LoRA are held against it


def expanded(config: CompareConfig) -> CompareConfig:
    """What the preset stands for, in the other fields; the config itself without one.

    Raises UsageError where no acceleration LoRA is known, or what is given as one is another kind of LoRA.
    """
    if config.preset is None:
        return config
    given = config.model_fields_set
    images = config.images if "images" in given else IMAGES
    return config.model_copy(
        update={
            "rows": rows_of(*acceleration_of(config), config.teacher_guidance),
            "images": images,
            "prompt_file": config.prompt_file or PROMPTS,
            "teacher_images": config.teacher_images or images,
        }
    )


def acceleration_of(config: CompareConfig) -> tuple[str, Recipe]:
    """The acceleration LoRA as FILE, and its recipe; its weight is 1."""
    shipped = default_loras(config.model, "auto")
    if config.acceleration is None and not shipped:
        raise UsageError(
            f"{option('preset')} {config.preset}: no acceleration LoRA ships with {config.model}",
            f"give one with {option('acceleration')}; fewstep distill makes one",
        )
    reference = parse_reference(config.acceleration or shipped[0])
    recipe = open_lora(reference.file).recipe
    if recipe is None or not recipe.accelerates:
        raise UsageError(
            f"{option('acceleration')} {config.acceleration} does not say that it accelerates",
            f"see fewstep inspect {config.acceleration}",
        )
    if reference.weight != 1 or reference.blocks:
        raise UsageError(
            f"{option('acceleration')} {config.acceleration}: the rows hold it at 1 against 0",
            f"leave its weight out, or write {option('rows')} of your own",
        )
    return str(reference.path), recipe


def rows_of(lora: str, recipe: Recipe, guidance: float | None = None) -> tuple[str, ...]:
    """The rows, as typed; guidance: of those without the LoRA, None for what the model recommends.

    Without the LoRA its sampler keeps its timesteps: a LoRA at 0 hands on no recipe, so they are written out. At equal
    cost a row is guided, at half the steps, or not.
    """
    solver = "lcm" if recipe.solver == "auto" else recipe.solver
    guided, bare = "" if guidance is None else f"@{guidance:g}", f"{solver}{sampler_options(recipe)}"
    samplers = [(name, "") for name in PLAIN] + [(bare, f"+{lora}:0")]
    equal = (
        f"{name}:{nfe // branches}{at}{without}"
        for nfe in COSTS
        for branches, at in ((2, guided), (1, "@1"))
        for name, without in samplers
    )
    fast = [f"{solver}:{steps}+{lora}:1" for steps in (4, *STEPS)]
    return (*(f"{row}{guided}" for row in KNOWN), fast[0], *equal, *fast[1:])


def sampler_options(recipe: Recipe) -> str:
    """How the LoRA's sampler lays its timesteps and adds noise, as in a row."""
    grid = recipe.grid or ("lcm" if recipe.k else None)
    fresh = {"ddim": {"eta": recipe.eta}, "tcd": {"gamma": recipe.gamma}}.get(recipe.solver, {})
    options = {"grid": grid, "k": None if grid == "trailing" else recipe.k, **fresh}
    return "".join(f",{name}={value}" for name, value in options.items() if value is not None)


# --- how long it takes --------------------------------------------------------------------------------------


class Pace(NamedTuple):
    """Seconds that a picture takes on this machine."""

    network: float  # a network row
    rest: float  # its text and its decoding
    features: float  # looking at it

    def seconds(self, specs: Sequence[RowSpec], config: CompareConfig, teacher: RowSpec, paired: int) -> float:
        """All of a comparison, if nothing of it was drawn before; paired: teacher's pictures from the rows' noise."""
        each, own = config.images * config.seed_sets, config.teacher_images
        network = each * sum(map(nfe_of, specs)) + (own + paired) * nfe_of(teacher)
        return self.network * network + (self.rest + self.features) * (each * len(specs) + own) + self.rest * paired


def nfe_of(spec: RowSpec) -> int:
    """Network rows an image: two a step where guidance is on, which where none is typed it is without a LoRA."""
    if spec.guidance_scale is None:
        return spec.steps * (1 if any(parse_reference(lora).weight for lora in spec.loras) else 2)
    return spec.steps * (1 if spec.guidance_scale == 1 else 2)


def in_words(seconds: float, rows: int, config: CompareConfig) -> str:
    """How long a comparison takes, for people."""
    return (
        f"this takes about {in_minutes(seconds)} on this machine, less what was drawn before: {rows} rows of"
        f" {config.images} pictures, and {config.teacher_images} of the teacher's; {option('images')} changes it"
    )
