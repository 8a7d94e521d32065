"""The models and LoRAs that a server offers, by the names that requests use. A request can name nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.assets import ACCELERATION, MODEL, STYLES
from fewstep.configs import ServeConfig
from fewstep.errors import FewstepError, UsageError, option
from fewstep.families import ModuleShape, family_of
from fewstep.hub import on_this_machine
from fewstep.lora.files import LoraFile, open_lora
from fewstep.lora.fitting import other_family
from fewstep.lora.low_rank import misfits
from fewstep.lora.recipe import ACCELERATIONS
from fewstep.models.references import parse_reference, parse_weights
from fewstep.models.weights import weights_of
from fewstep.session import PictureRecipe
from fewstep.session.loras import default_loras


@dataclass(frozen=True)
class Offer:
    """Public names -> models and LoRAs as the person who started the server typed them."""

    models: Mapping[str, str]  # the default model is the first
    loras: Mapping[str, str]  # without weights

    @classmethod
    def of(cls, config: ServeConfig) -> "Offer":
        """What this server offers. Raises UsageError if two models or two LoRAs would have one name."""
        shipped = (ACCELERATION, *STYLES) if MODEL in (config.model, *config.models) else ()
        typed = [str(parse_reference(text).path) for text in (*(config.loras or ()), *config.offer)]
        return cls(named((config.model, *config.models), "models"), named((*typed, *shipped), "offer"))

    def model(self, name: str | None) -> str:
        """The model of that name; by default the first. Raises UsageError for a name that is not offered."""
        if name is None:
            return next(iter(self.models.values()))
        return found(name, self.models, "model")

    def lora(self, text: str) -> str:
        """The LoRA and weight of NAME or NAME:WEIGHT. Raises UsageError for a name that is not offered."""
        name, _, weight = text.rpartition(":")
        if not name or parse_weights(weight) is None:
            return found(text, self.loras, "loras")
        return f"{found(name, self.loras, 'loras')}:{weight}"

    def chosen(self, texts: Sequence[str] | None) -> tuple[str, ...] | None:
        """The LoRAs that a request asks for; None are the server's own."""
        return None if texts is None else tuple(map(self.lora, texts))

    def plugged(self, config: ServeConfig) -> list[dict[str, object]]:
        """The server's own LoRAs, by public name, with their weights."""
        texts = default_loras(config.model, "auto") if config.loras is None else config.loras
        references = map(parse_reference, texts)
        return [{"name": public_name(str(one.path)), "weight": one.weight} for one in references]

    def accelerations(self) -> list[str]:
        """The names of LoRAs that say of themselves that they are for few steps."""
        recipes = {name: open_lora(parse_reference(text).file).recipe for name, text in self.loras.items()}
        return [name for name, recipe in recipes.items() if recipe is not None and recipe.method in ACCELERATIONS]

    def fitting(self) -> dict[str, list[str]]:
        """Model -> the LoRAs that fit it; all of them where the model's files are not here or cannot be looked into."""
        files = {name: open_lora(parse_reference(text).file) for name, text in self.loras.items()}
        found = {name: shapes_in(model) for name, model in self.models.items()}
        return {
            model: [name for name, file in files.items() if shapes is None or fits(file, shapes)]
            for model, shapes in found.items()
        }

    def public(self, recipe: PictureRecipe) -> PictureRecipe:
        """The recipe with public names in place of files and folders of this machine."""
        models, loras = ({typed: name for name, typed in table.items()} for table in (self.models, self.loras))
        plugged = recipe["lora"]
        for one in plugged:
            one["file"] = loras.get(one["file"], public_name(one["file"]))
        model = models.get(recipe["model"], public_name(recipe["model"]))
        control = recipe["controlnet"]
        return {**recipe, "model": model, "lora": plugged, "controlnet": control and public_name(control)}


def shapes_in(model: str) -> Mapping[str, ModuleShape] | None:
    """The shapes of a model's modules; None if they are not known without a download."""
    try:
        return weights_of(model)[1] if model == MODEL or on_this_machine(model) else None
    except FewstepError:
        return None


def fits(file: LoraFile, shapes: Mapping[str, ModuleShape]) -> bool:
    """Whether a model with modules of these shapes takes the LoRA."""
    return not misfits(file.factors(shapes), shapes) and other_family(file.recipe, family_of(shapes)) is None


def found(name: str, table: Mapping[str, str], field: str) -> str:
    """What a public name stands for. Raises UsageError for one that is not offered."""
    if name in table:
        return table[name]
    kind = "model" if field == "model" else "LoRA"
    raise UsageError(f"there is no {kind} {name!r} on this server", f"it has {', '.join(table) or 'none'}", field)


def named(typed: Iterable[str], field: str) -> dict[str, str]:
    """The public name of each. Raises UsageError if two have one name."""
    table: dict[str, str] = {}
    for text in typed:
        name = public_name(text)
        if table.setdefault(name, text) != text:
            raise UsageError(f"{table[name]} and {text} would both be called {name}", "rename one of the two", field)
    if not table and field == "models":
        raise UsageError(f"{option('model')} names nothing", "name a model", "model")
    return table


def public_name(text: str) -> str:
    """The last part of a path or hub id, without .safetensors or a revision."""
    return Path(text).name.partition("@")[0].removesuffix(".safetensors") or text
