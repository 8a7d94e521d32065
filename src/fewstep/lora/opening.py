"""Opens LoRA files without reading tensors: safetensors, weights-only pickles, PEFT's folders. No code of them runs."""

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.io import first_bytes, read_json, refuse_stand_in
from fewstep.lora.dialects import PEFT_CONFIG, PEFT_WEIGHTS
from fewstep.lora.numbered import ANY
from fewstep.lora.peft import Configs, checked, configs_in

PICKLED = (b"PK", b"\x80")  # first bytes of torch's files, zip archives and older ones, whatever their names
HEADER_DTYPES = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # fmt: skip  # others: float32 or no floats
AGAIN = "get the file again from its source"
SAFE = "use its .safetensors version, if there is one"


class OpenedFile(NamedTuple):
    """An open file, from which one tensor at a time can be read."""

    shapes: Mapping[str, tuple[int, ...]]  # key -> shape of its tensor, known without reading it
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    peft: Configs  # component -> PEFT's config, for the components that have one


def open_source(path: Path) -> OpenedFile:
    """The file, open, its tensors unread. The first bytes decide the kind of file, not its name."""
    if path.is_dir():
        return open_peft(path)
    try:
        beginning = first_bytes(path)
    except FileNotFoundError:
        raise FewstepError(f"LoRA file not found: {path}", "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FewstepError(f"LoRA {path} cannot be read ({error})", "check the path") from error
    refuse_stand_in(path)
    if all(9 <= byte < 128 for byte in beginning[:8]):  # a safetensors file begins with a length, which has a 0 byte
        words = f"text: {first_line(beginning.decode(errors='replace'))!r}" if beginning else "empty"
        raise FewstepError(f"LoRA {path} is {words}", AGAIN)
    if beginning.startswith(PICKLED) and beginning[8:9] != b"{":  # the length of a safetensors file may begin so
        return open_pickle(path)
    try:
        file: Any = safe_open(path, "pt")
        metadata = file.metadata() or {}
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
        dtypes = {key: HEADER_DTYPES.get(part.get_dtype(), torch.float32) for key, part in slices.items()}
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise FewstepError(f"LoRA {path} is not a readable safetensors file ({error})", AGAIN) from error
    return OpenedFile(shapes, dtypes, reader(file, path), metadata, configs_in(metadata, path))


def reader(file: Any, path: Path) -> Callable[[str], Tensor]:
    """A function that reads one tensor of an open safetensors file."""

    def read(key: str) -> Tensor:
        try:
            tensor: Tensor = file.get_tensor(key)
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise FewstepError(f"LoRA {path} cannot be read at {key} ({first_line(error)})", AGAIN) from error
        return tensor

    return read


def open_pickle(path: Path) -> OpenedFile:
    """A torch file, opened with torch's loader that admits only tensors."""
    check_unpacked(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as file:  # given a path, torch would trust its suffix
            warnings.simplefilter("ignore")  # torch warns about old pickles, then reads or refuses them
            value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make torch's loader raise anything
        raise FewstepError(f"LoRA {path} is not a file of plain tensors ({first_line(error)})", SAFE) from error
    tensors = value.get("state_dict", value) if isinstance(value, dict) else value
    if isinstance(tensors, list) and len(tensors) % 2 == 0:  # cloneofsimo's: up, down, up, down, ...
        tensors = {f"{ANY}:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(tensors)}
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise FewstepError(f"LoRA {path} holds neither a dictionary nor pairs of tensors", SAFE)
    if not all(isinstance(key, str) for key in tensors):
        raise FewstepError(f"LoRA {path} holds tensors without names", SAFE)
    check_plain(tensors, path)
    named = {key: tensor.detach() for key, tensor in tensors.items()}
    shapes = {key: tuple(x.shape) for key, x in named.items()}
    dtypes = {key: x.dtype for key, x in named.items()}
    return OpenedFile(shapes, dtypes, named.__getitem__, {}, {})


def check_unpacked(path: Path) -> None:
    """Raise FewstepError for a zip archive that unpacks to more bytes than it has. torch does not compress."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FewstepError(f"LoRA {path} is not a file of plain tensors ({first_line(error)})", SAFE) from error
    if total > path.stat().st_size:
        raise FewstepError(f"LoRA {path} unpacks to {total:,} bytes, which no file of plain tensors does", SAFE)


def check_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise FewstepError unless every tensor holds all its values: none without a device, sparse or repeated."""
    odd = next((key for key, x in tensors.items() if x.device.type != "cpu" or x.layout != torch.strided), None)
    if odd is not None:
        raise FewstepError(f"LoRA {path} holds no plain values for {odd}", SAFE)
    if any(x.is_quantized for x in tensors.values()):
        raise FewstepError(f"LoRA {path} holds quantised tensors", SAFE)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors.values()}
    claimed = sum(x.numel() * x.element_size() for x in tensors.values())
    if claimed > sum(storages.values()):
        raise FewstepError(f"LoRA {path} claims {claimed:,} bytes of values but holds {sum(storages.values()):,}", SAFE)


def first_line(text: object) -> str:
    """The first line of an error or a text, shortened."""
    lines = str(text).strip().splitlines()
    return lines[0][:120] if lines else type(text).__name__


# --- PEFT ---------------------------------------------------------------------------------------------------


def open_peft(folder: Path) -> OpenedFile:
    """A folder written by PEFT's save_pretrained: adapter_config.json and the weights."""
    weights = peft_weights(folder)
    config = read_json(folder / PEFT_CONFIG, "PEFT's config")
    return open_source(weights)._replace(peft={"": checked(config, str(folder))})


def peft_weights(folder: Path) -> Path:
    """The weights in PEFT's folder. Raises FewstepError when there are none."""
    weights = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FewstepError(f"LoRA folder {folder} has no {PEFT_WEIGHTS[0]}", "name the folder that PEFT saved")
    return weights
