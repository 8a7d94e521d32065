"""What every command's config shares, and how it is built from what was typed."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fewstep.configs.ranges import range_of
from fewstep.errors import UsageError, is_text, option


@dataclass(frozen=True)
class Typed:
    """How a person types a field, where that is not as an option with its default shown in help."""

    as_argument: bool = False  # without an option
    with_default: bool = True
    several: bool = False  # many values may follow the option


ALIKE = 0.65  # similarity of two names above which a misspelt one is understood as the other
ANY = object()  # in Config.needs: whatever is not off
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
DrawingDevice = Annotated[
    Literal["auto", "cpu", "cuda", "mps", "gpu", "directml"],
    Field(
        description="Where to compute; auto takes cuda, then mps, then cpu. gpu is an Intel GPU, for the engine"
        " openvino; directml is any GPU under Windows, for the engine onnx."
    ),
]
Modules = str  # that a LoRA adapts, as families.is_target takes them
ModelName = Annotated[
    str,
    Field(
        description="emoji, the small model that ships; a Stable Diffusion folder in diffusers' layout; a .safetensors"
        " checkpoint; or one of the hub: sd15, sd21, ssd-1b, sdxl, owner/name[@revision]."
    ),
]


def entries(folder: str, registry: str) -> Iterator[tuple[str, str]]:
    """The names in the dicts `registry` of a folder's files, and what is said first of the classes they stand for.

    The files are read and not imported: importing them takes torch.
    """
    for file in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
        tree = ast.parse(file.read_bytes())
        docs = {line.name: ast.get_docstring(line) or "" for line in tree.body if isinstance(line, ast.ClassDef)}
        for line in tree.body:
            if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == registry:
                assert isinstance(line.value, ast.Dict), f"the {registry} of {file} are no dict that can be read"
                for name, value in zip(line.value.keys, line.value.values, strict=True):
                    if name is not None:
                        yield ast.literal_eval(name), docs.get(ast.unparse(value), "").split("\n\n")[0]


def solver_names() -> Iterator[str]:
    """The solvers there are."""
    return (name for name, _ in entries("diffusion/solvers", "SOLVERS"))


_METHODS = dict(entries("training/methods", "METHODS"))
METHOD_NAMES = tuple(_METHODS)  # of distillation

if TYPE_CHECKING:
    Solver = str
    MethodName = str
    SourceName = str | Path  # which becomes a str
else:
    SourceName = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)]
    Solver = Literal["auto", *solver_names()]
    MethodName = Annotated[
        Literal[METHOD_NAMES], Field(description=" ".join(f"{name}: {text}" for name, text in _METHODS.items()))
    ]
Grid = Literal["auto", "lcm", "quadratic", "trailing", "leading", "linspace"]


class Config(BaseModel):
    """What every command's config shares: it does not change, and unknown fields are refused.

    The docstring below a field is its help, which `describe` gives it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    needs: ClassVar[Mapping[str, tuple[str, object]]] = {}  # field: without which other, and its value, it does nothing
    excludes: ClassVar[Mapping[str, str]] = {}  # field: beside which other it does nothing
    first: ClassVar[tuple[str, ...]] = ()  # fields that help has before the others, in this order
    argument: ClassVar[tuple[str, str] | None] = None  # the field typed without an option, and what help calls it

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Put the fields that help has first in their place."""
        fields = {name: cls.model_fields[name] for name in cls.first} | cls.model_fields
        cls.model_fields.clear()
        cls.model_fields.update(fields)

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        """Raise UsageError for a field that would change nothing as the others are."""
        fields = type(self).model_fields
        given = {name for name in self.model_fields_set if getattr(self, name) != fields[name].default}
        for name, (other, value) in self.needs.items():
            if name in given and not (getattr(self, other) if value is ANY else getattr(self, other) == value):
                needed = option(other) if value in (ANY, True) else f"{option(other)} {value}"
                raise UsageError(f"{option(name)} needs {needed}", "give both, or leave it out")
        for name, other in self.excludes.items():
            if name in given and other in given:
                raise UsageError(f"{option(name)} and {option(other)} exclude each other", "leave out one of them")
        return self

    @field_validator("*")
    @classmethod
    def _of_text(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse what was typed in no UTF-8: no file, tokenizer or config takes it."""
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str | Path) and not is_text(str(part)):
                field_name = field.field_name or "value"
                typed = cls.argument is not None and field_name == cls.argument[0]
                name = cls.argument[1] if cls.argument and typed else option(field_name)
                hint = "is the terminal's locale one of UTF-8?"
                raise UsageError(f"{name} {part} is not UTF-8 text", hint, field_name)
        return value


C = TypeVar("C", bound=Config)


def build(kind: type[C], **values: Any) -> C:
    """The config with these values; a bad one is a UsageError naming its field."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise usage_error(error, kind) from None


def usage_error(error: ValidationError, kind: type[Config] | None = None) -> UsageError:
    """pydantic's first complaint as one line and a hint. kind: the config whose values these are, if it is known."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else None
    name = option(field) if field else "value"
    given = first.get("input")
    if first["type"] == "extra_forbidden":
        meant = likely(field, kind) if field and kind else ""
        return UsageError(
            f"there is no option {name}", meant or f"see {option('help')} for the options of this command"
        )
    if first["type"] == "missing":
        return UsageError(f"{name} is required", f"see {option('help')} for what it takes")
    outside = first["type"].startswith(("greater_than", "less_than"))
    found = range_of(kind.model_fields[field]) if outside and kind and field in kind.model_fields else ""
    return UsageError(
        f"{name} {given}: {first['msg'][0].lower()}{first['msg'][1:]}",
        f"the range: {found[0].lower()}{found[1:-1]}" if found else f"see {option('help')} for what it takes",
    )


def likely(field: str, kind: type[Config]) -> str:
    """The question whether a field of the config was meant, by its own name or the command line's; "" for no such."""
    own = kind.model_fields
    names = {SPELLINGS.get(name, name): name for name in own} | {name: name for name in own}
    found = get_close_matches(field, names, n=1, cutoff=ALIKE)
    return f"did you mean {option(names[found[0]])}?" if found else ""


def option_name(field: str) -> str:
    """The command-line spelling of a field: `train_steps` is typed --steps."""
    return "--" + SPELLINGS.get(field, field).replace("_", "-")


SPELLINGS = {"loras": "lora", "train_steps": "steps", "prompt_file": "prompts", "as_json": "json", "consumer": "for"}
