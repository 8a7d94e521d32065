"""LoRA files of any layout: their metadata, and the adapter that a file makes for a model."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError, option
from fewstep.events import doing, note
from fewstep.families import ModuleShape
from fewstep.io import sha256_file
from fewstep.lora.dialects import ALPHA, Spellings, bundled_word, taken_apart
from fewstep.lora.dora import MAGNITUDES, baked, magnitude_of
from fewstep.lora.factors import Factors, factors_of, shaped, size_of_parts
from fewstep.lora.foreign import model_of
from fewstep.lora.known import known_recipe
from fewstep.lora.layouts import layout_of
from fewstep.lora.low_rank import Adapter, Lazy, LowRank, Size, identity, squared_norm, widest
from fewstep.lora.numbered import EMBEDDING, NUMBERED, numbered_names
from fewstep.lora.opening import AGAIN, OpenedFile, first_line, open_source, peft_weights
from fewstep.lora.peft import Alpha, alphas_of, config_for
from fewstep.lora.recipe import VERSION, Recipe, from_metadata, is_newer

LARGEST = float(torch.finfo(torch.float32).max)
TIMES = 16  # the limit of (values of Delta W) / (values in the file), for a module whose shape is not known
MIDDLES = {"mid", "hada_t1", "hada_t2", "lokr_t2"}

Base = Callable[[str], Tensor]  # dotted module name -> its weight in the model
PartKeys = Mapping[str, str]  # part -> key


@doing("reading the LoRA")
def load_adapter(
    path: Path, shapes: Mapping[str, ModuleShape], base: Base | None = None
) -> tuple[Adapter, Recipe | None]:
    """The adapter that a file of any layout makes for a model, and the file's recipe. See `LoraFile`."""
    file = open_lora(path)
    return file.adapter(shapes, base), file.recipe


@dataclass(frozen=True)
class LoraFile:
    """An open LoRA file: its metadata, and the adapter that it makes for a model."""

    path: Path
    source: OpenedFile
    spelled: Mapping[str, PartKeys]  # module as the file spells it -> its parts
    alphas: Mapping[str, Alpha]  # by module, spelled as in the file; modules without an alpha are not in it
    numbered: Mapping[str, ModuleShape]  # shapes of the modules that have numbers in place of names
    recipe: Recipe | None  # from its metadata, or known for a file of this name

    @property
    def layout(self) -> str:
        """The name of its layout."""
        return layout_of(self.spelled)

    @property
    def dora(self) -> str | None:
        """A key that shows the file to be a DoRA, which is an update of one model only; None for other files."""
        found = (keys[part] for keys in self.spelled.values() if (part := magnitude_of(keys)) is not None)
        return next(found, None)

    @property
    def dtype(self) -> torch.dtype:
        """The widest type of its factors."""
        keys = (key for parts in self.spelled.values() for part, key in parts.items() if part != ALPHA)
        return widest(self.source.dtypes[key] for key in keys)

    def adapter(self, shapes: Mapping[str, ModuleShape], base: Base | None = None) -> Adapter:
        """The updates of one model's modules, in float32, read one at a time. Their sizes are known without reading.

        shapes: shapes of the model's modules. A module that the model does not have keeps its name in the file, so that
        `check_fits` can name it. base: the model's weights, which a DoRA needs; None = not known.
        """
        if self.dora is not None and base is None:
            raise FewstepError(
                f"LoRA {self.path} cannot be used alone: it is a DoRA, which rescales the weights of the model that it"
                f" was made for ({self.dora})",
                "name that model: fewstep merge FILE --into MODEL, or --model MODEL --rank 64",
            )
        return self._placed(shapes, base)

    def factors(self, shapes: Mapping[str, ModuleShape]) -> Adapter:
        """The adapter B A of any file, without the norms of a DoRA. Its sizes need no model."""
        return self._placed(shapes, None)

    def _placed(self, shapes: Mapping[str, ModuleShape], base: Base | None) -> Adapter:
        """The updates, named as in the model. With `base`, a DoRA's updates include its norms."""
        modules = self.names_in(shapes)

        def rescaled(name: str) -> bool:
            return base is not None and name in shapes and magnitude_of(self.spelled[modules[name]]) is not None

        def make(name: str) -> LowRank:
            return self.update(modules[name], shapes.get(name), base(name) if base and rescaled(name) else None)

        def size(name: str) -> Size:
            found = self.size(modules[name], shapes.get(name))
            return whole_size(found.shape) if rescaled(name) else found

        def square(name: str) -> float:
            return squared_norm(make(name)) if rescaled(name) else self.square(modules[name], shapes.get(name))

        count = len(self.numbered)
        reasons = {"unplaced": f"is one of {count} numbered modules; no order fits, or several do"} if count else {}
        return Adapter(Lazy(modules, make, size, square), self.source.metadata, **reasons)

    def names_in(self, shapes: Mapping[str, ModuleShape]) -> dict[str, str]:
        """Module's name in the model -> its spelling in the file. A module that the model lacks keeps its spelling."""
        spellings, numbers = Spellings(shapes), numbered_names(self.numbered, self.source.metadata, shapes)
        modules: dict[str, str] = {}
        for spelled in self.spelled:
            name = numbers.get(spelled) or spellings.find(spelled) or spelled
            if name in modules:
                raise FewstepError(f"LoRA {self.path} holds a module twice: {spelled} and {modules[name]}", AGAIN)
            modules[name] = spelled
        return modules

    def size(self, spelled: str, shape: ModuleShape | None) -> Size:
        """The size of one module's update, from the shapes of its tensors alone.

        shape: the module's shape; None = not known. Raises FewstepError for factors that do not fit together.
        """
        sizes = tuple((part, self.source.shapes[key]) for part, key in self.parts_of(spelled).items())
        with self.fitting(spelled):
            return size_of_parts(sizes, None if shape is None else shape.kernel)

    def update(self, spelled: str, shape: ModuleShape | None, W0: Tensor | None = None) -> LowRank:
        """The update of one module, named as in the file. W0: the model's weight, for a DoRA.

        Raises FewstepError for factors that do not fit together or are not finite.
        """
        self.check_amount(spelled, shape)
        kernel, norms = None if shape is None else shape.kernel, magnitude_of(self.spelled[spelled])
        with self.fitting(spelled):
            factors = self.read(spelled)
            update = shaped(scaled(factors.low_rank(), self.scale(spelled, factors)), kernel)
            if norms is not None and W0 is not None:
                magnitude = self.source.read(self.spelled[spelled][norms])
                update = shaped(baked(update, magnitude, norms, W0), kernel)
        if not all(map(is_finite, update)):
            raise self.not_finite(spelled)
        return update

    def square(self, spelled: str, shape: ModuleShape | None) -> float:
        """||Delta W||_F^2 of one module, from its factors, without multiplying them out."""
        if MIDDLES & self.spelled[spelled].keys():
            self.check_amount(spelled, shape)
        with self.fitting(spelled):
            factors = self.read(spelled)
            total = factors.square() * self.scale(spelled, factors) ** 2
        if not total < LARGEST**2:
            raise self.not_finite(spelled)
        return total

    def parts_of(self, spelled: str) -> PartKeys:
        """A module's parts, without alpha and a DoRA's norms."""
        return {part: key for part, key in self.spelled[spelled].items() if part not in (ALPHA, *MAGNITUDES)}

    def read(self, spelled: str) -> Factors:
        """A module's factors."""
        parts = {part: self.source.read(key) for part, key in self.parts_of(spelled).items()}
        odd = next((tensor.dtype for tensor in parts.values() if not tensor.is_floating_point()), None)
        if odd is not None:
            raise FewstepError(f"LoRA {self.path} holds {str(odd).removeprefix('torch.')} values for {spelled}", AGAIN)
        return factors_of(parts)

    def scale(self, spelled: str, factors: Factors) -> float:
        """The number by which a module's B A is multiplied."""
        alpha = self.alphas.get(spelled)
        return alpha.scale(factors.divisor) if alpha is not None and factors.divisor else 1.0

    def check_amount(self, spelled: str, shape: ModuleShape | None) -> None:
        """Raise FewstepError for small factors that make a huge Delta W, unless the module is known to be so large."""
        size, held = (
            self.size(spelled, shape),
            sum(math.prod(self.source.shapes[k]) for k in self.parts_of(spelled).values()),
        )
        if size.shape != shape and size.parameters > TIMES * held:
            raise FewstepError(
                f"LoRA {self.path}: the {held} values of {spelled} would multiply out to {size.parameters:,}, but"
                " no known module has that size",
                f"name its model with {option('model')}, or use another file",
            )

    def not_finite(self, spelled: str) -> FewstepError:
        """The error for a module with infinite or NaN values."""
        return FewstepError(f"LoRA {self.path} holds values that are not finite ({spelled})", AGAIN)

    @contextmanager
    def fitting(self, spelled: str) -> Iterator[None]:
        """Turn errors of torch and `factors` about tensors that do not fit together into a FewstepError."""
        try:
            yield
        except (ValueError, RuntimeError, IndexError, TypeError, OverflowError) as error:
            reason = first_line(error)
            raise FewstepError(f"LoRA {self.path}: the factors of {spelled} do not fit ({reason})", AGAIN) from error


def hash_of(path: Path) -> str:
    """SHA-256 of a LoRA file; for PEFT's folder, that of its weights."""
    return sha256_file(peft_weights(path) if path.is_dir() else path)


def whole_size(shape: ModuleShape) -> Size:
    """The size of an update that keeps Delta W whole."""
    return Size(shape, min(shape.out, shape.in_ * max(shape.kernel, 1) ** 2))


def scaled(update: LowRank, scale: float) -> LowRank:
    """The update times a number. The number goes into B, or into A when B is the identity."""
    if scale == 1:
        return update
    A, B = update
    return LowRank(A * scale, B) if identity(B) else LowRank(A, B * scale)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, tested in one pass."""
    return all(map(math.isfinite, map(float, tensor.aminmax())))


# --- opening ------------------------------------------------------------------------------------------------


def open_lora(path: Path) -> LoraFile:
    """The LoRA in a file, its tensors unread. Notes name the parts of the file that cannot be used."""
    source = open_source(path)
    model = model_of(source.shapes, source.shapes.__getitem__)
    if model is not None:
        raise FewstepError(
            f"LoRA {path} is for {model}, not for Stable Diffusion 1.x, 2.x or XL",
            "use a LoRA of one of these, or of SSD-1B",
        )
    words = {key: word for key in source.shapes if (word := word_of(key, source.metadata)) is not None}
    spelled = taken_apart((key for key in source.shapes if key not in words), str(path))
    if words:
        note(f"{path} also holds embeddings of {', '.join(sorted(set(words.values())))}; fewstep leaves them out")
    empty = [module for module, parts in spelled.items() if adds_nothing(parts, source)]
    if empty and len(empty) == len(spelled):
        raise FewstepError(f"LoRA {path} adds nothing: it has no factors, or only of rank 0 ({few(empty)})", AGAIN)
    if empty:
        note(f"{few(empty)} of {path}: no factors, or factors of rank 0; nothing is added")
    spelled = {module: parts for module, parts in spelled.items() if module not in set(empty)}
    if not spelled:
        raise FewstepError(f"LoRA {path} has no LoRA weights", "docs/lora-files.md lists what fewstep reads")
    recipe = from_metadata(source.metadata, str(path)) or known_recipe(path, spelled)
    if is_newer(source.metadata):
        note(f"{path} was written by fewstep {source.metadata[VERSION]}, newer than this one; new fields are ignored")
    file = LoraFile(path, source, spelled, alphas_in(source, spelled, path), {}, recipe)
    zero = [module for module, alpha in file.alphas.items() if alpha.value == 0]
    if zero:
        note(f"{few(zero)} of {path}: alpha is 0, so the scale is 0 / rank, and nothing is added")
    sizes = {module: file.size(module, None).shape for module in spelled if NUMBERED.fullmatch(module)}
    return replace(file, numbered=sizes)


def word_of(key: str, metadata: Mapping[str, str]) -> str | None:
    """The word whose embedding a key of a LoRA file holds; None for other keys."""
    return key if metadata.get(key) == EMBEDDING else bundled_word(key)


def adds_nothing(parts: PartKeys, source: OpenedFile) -> bool:
    """Whether a module has only an alpha, or factors without values."""
    if magnitude_of(parts) is not None:
        return False
    return all(part == ALPHA for part in parts) or any(
        0 in source.shapes[key] for part, key in parts.items() if part != ALPHA
    )


def alphas_in(source: OpenedFile, spelled: Mapping[str, PartKeys], path: Path) -> dict[str, Alpha]:
    """Every module's alpha: its own, else the one in PEFT's config. Raises FewstepError if it is not a number."""
    found = alphas_of(source.peft, spelled, str(path))
    for module, parts in spelled.items():
        config = config_for(source.peft, module)
        if config and config.get("use_dora") and magnitude_of(parts) is None:
            raise FewstepError(f"the config calls {module} a DoRA, but its magnitudes are missing", AGAIN)
        if ALPHA in parts:
            found[module] = Alpha(number(source, parts[ALPHA], module, path))
    return found


def number(source: OpenedFile, key: str, module: str, path: Path) -> float:
    """The value of a tensor that holds one number, of an integer or a float type."""
    count = math.prod(source.shapes[key])
    tensor = source.read(key) if count == 1 else None
    if tensor is None or tensor.is_complex():
        what = f"alpha has {count} values" if tensor is None else "alpha is complex"
        raise FewstepError(f"LoRA {path}: the factors of {module} do not fit ({what})", AGAIN)
    return float(tensor.reshape(()))


def few(names: list[str]) -> str:
    """Names for a note: the first one, and the number of the others."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more modules"
