"""An engine whose networks are graphs, built once by another program and kept on disk by their content.

What is built depends on the model's files, the LoRAs that are plugged in, and the versions of the programs. So other
LoRAs mean building anew, unless that was done before.
"""

import gc
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fewstep.configs import Where
from fewstep.diffusion.guidance import Conditioning, Network
from fewstep.engines.engine import Capabilities, Facts, NetworkOptions, facts_of
from fewstep.engines.graphs.calibration import calibration_inputs
from fewstep.engines.graphs.parts import GraphAutoencoder, GraphNetwork, GraphText, Running
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import doing, note
from fewstep.families import ModuleShape
from fewstep.io import atomic_folder, cache_dir, sha256_bytes
from fewstep.lora.layers import shape_of
from fewstep.models.exported import exported_for
from fewstep.models.graphs import ENCODER, SOURCES, TEXT_GRAPHS, Graph, graph_names, graph_of
from fewstep.models.load import DTYPES, load_exported, load_model, takes_text
from fewstep.models.model import Model, parts_sha256
from fewstep.models.network import UNetNetwork
from fewstep.models.plugging import Folding, Share, StoredWeights, WeightedAdapter, shares_of
from fewstep.models.quiet import quiet
from fewstep.models.weights import stored_weights

KEPT = "engines"  # folder of the cache that holds what was built
LAYOUT = 1  # of graphs; another number makes what was built before void


class Runtime(Protocol):
    """The program that builds graphs and runs them."""

    name: str  # of the engine
    dtype: str  # in which it computes: fp32, bf16, fp16, or int8, which is of the UNet alone
    floating: str  # in which it computes all that is not in int8
    half: bool  # whether it stores weights in half precision

    def identity(self, name: str) -> str:
        """Versions, and options of what is built, for the graph of that name."""

    def write(self, graph: Graph, folder: Path) -> None:
        """Build the graph, and write it to the folder, which is empty."""

    def read(self, folder: Path) -> Running:
        """The graph in a folder, ready to run. Raises FewstepError when it cannot be read."""


class GraphEngine(ABC):
    """A model's networks as graphs. Its networks in torch are loaded only to build graphs."""

    supports: ClassVar[Capabilities] = Capabilities(fields=frozenset({"loras", "image"}), replug_at_once=False)

    def __init__(self, outline: Model, runtime: Runtime, exported: bool = False) -> None:
        """outline: the model, its networks without weights. exported: its folder has the graphs."""
        self.outline, self.runtime, self._exported = outline, runtime, exported
        self._terms: tuple[WeightedAdapter, ...] = ()
        self._running: dict[str, tuple[Path, Running]] = {}
        self._folders: dict[str, Path] = {}

    @staticmethod
    @abstractmethod
    def start(where: Where) -> Runtime:
        """The program, for these settings. Raises FewstepError when it is not installed or cannot do them."""

    @classmethod
    def open(cls, where: Where) -> "GraphEngine":
        """The engine with the model that `where` names. Raises FewstepError when a part is missing or does not fit."""
        runtime, exported = cls.start(where), exported_for(where.model)
        if exported == runtime.name:
            if where.loras:
                raise built_in(where.model)
            if runtime.dtype == "int8":
                raise UsageError(
                    f"{where.model} was exported, and {option('dtype')} int8 is made of the model that it was exported"
                    " from",
                    f"name that model, or leave out {option('dtype')}",
                )
            return cls(load_exported(Path(where.model).expanduser()), runtime, exported=True)
        if not takes_text(where.model):
            raise UsageError(f"the {runtime.name} engine does not run a model in pixel space", "use the engine torch")
        return cls(load_model(where.model, device="meta", safety=not where.no_safety_checker), runtime)

    # --- facts ---------------------------------------------------------------------------------------------------

    @cached_property
    def facts(self) -> Facts:
        return facts_of(self.outline)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> str:
        return self.runtime.dtype

    @cached_property
    def shapes(self) -> Mapping[str, ModuleShape]:
        found = ((name, shape_of(layer)) for name, layer in self.outline.layers().items())
        return {name: shape for name, shape in found if shape is not None}

    # --- networks ------------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> Model:
        """The model, with graphs in the places of its networks."""
        outline, graphs = self.outline, self._graph
        parts: dict[str, Any] = {
            name: GraphText(graphs, name, encoder.config)
            for name in TEXT_GRAPHS
            if (encoder := getattr(outline, name)) is not None
        }
        parts["unet"] = GraphNetwork(graphs, outline.unet.config)
        parts["vae"] = GraphAutoencoder(graphs, outline.vae.config, DTYPES[self.runtime.floating])
        return replace(outline, **parts)

    def embed(self, texts: Sequence[str], height: int, width: int) -> Conditioning:
        return self.model.embed(texts, height, width)

    @contextmanager
    def network(self, options: NetworkOptions) -> Iterator[Network]:
        yield UNetNetwork(self.model.unet)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)

    def hides(self, pixels: Tensor) -> bool:
        return self.outline.safety_checker is not None and self.outline.safety_checker.hides(pixels)

    # --- LoRAs ---------------------------------------------------------------------------------------------------

    def original_weight(self, module: str) -> Tensor:
        weight = self._stored(module)
        if weight is None:
            raise FewstepError(f"{self.outline.path} has no weight for {module}", "use a LoRA made for this model")
        return weight

    @cached_property
    def _stored(self) -> StoredWeights:
        return stored_weights(self.outline.path)

    def plug(self, terms: Sequence[WeightedAdapter]) -> None:
        """Take these LoRAs from now on. A network is built when it first runs with them."""
        if self._exported and terms:
            raise built_in(str(self.outline.path))
        self._terms = tuple(terms)
        self._folders.clear()

    # --- building ------------------------------------------------------------------------------------------------

    def _graph(self, name: str) -> Running:
        """The graph, built with the plugged LoRAs."""
        if name not in self._folders:
            self._folders[name] = self._folder(name)
        folder = self._folders[name]
        before = self._running.get(name)
        if before is not None and before[0] == folder:
            return before[1]
        self._running.pop(name, None)  # before another takes its memory
        if not self._exported:
            if not folder.is_dir():
                self._build(name)
            os.utime(folder)  # so that doctor's --prune knows when it was last needed
        with doing(f"reading the networks for {self.runtime.name}"):
            running = self.runtime.read(folder)
        self._running[name] = folder, running
        return running

    def _folder(self, name: str) -> Path:
        """The graph's folder: of an export, or in the cache, under a hash of all that decides it."""
        if self._exported:
            return self.outline.path / name
        shares = {module: share for module, share in shares_of(self._terms).items() if part_of(module) == name}
        content = self._hashes[SOURCES[name]], *graph_names(self.outline)  # SDXL's text encoders give more
        about = " ".join(map(str, (LAYOUT, self.runtime.identity(name), torch.__version__, name, *content)))
        key = sha256_bytes(about.encode(), *(part for module in sorted(shares) for part in bytes_of(module, shares)))
        return cache_dir() / KEPT / f"{self.runtime.name}-{name}-{key[:32]}"

    @cached_property
    def _hashes(self) -> Mapping[str, str]:
        """Part -> hash of its files."""
        path = self.outline.path
        parts = dict.fromkeys(SOURCES[name] for name in graph_names(self.outline))
        if path.is_file():
            return dict.fromkeys(parts, parts_sha256(path))
        return {part: parts_sha256(path, (part,)) for part in parts}

    @quiet()
    def _build(self, name: str) -> None:
        """Build the graph, and the others that every picture needs, so that the model is loaded only once."""
        begun = time.perf_counter()
        names = [one for one in graph_names(self.outline) if one == name or one != ENCODER]
        missing = {one: folder for one in names if not (folder := self._folder(one)).is_dir()}
        with doing(f"building the networks for {self.runtime.name}"):
            model = load_model(str(self.outline.path), safety=False)
            if self._terms:
                Folding(model.layers(), self._stored).plug(self._terms)
            for one, folder in missing.items():
                with atomic_folder(folder) as temporary:
                    self._write(model, one, temporary)
        del model
        gc.collect()  # tracing leaves cycles that would keep the model's weights in memory
        note(
            f"the networks were built for {self.runtime.name} in {time.perf_counter() - begun:.0f} s, and are kept in"
            f" {cache_dir() / KEPT}; other LoRAs or weights mean building anew, which the engine torch does without"
        )

    def _write(self, model: Model, name: str, folder: Path) -> None:
        """Build one graph of the model."""
        graph = graph_of(model, name)
        if name == "unet" and self.dtype == "int8":
            graph = graph._replace(calibration=calibration_inputs(model, graph.module))
        self.runtime.write(graph, folder)


def built_in(model: str) -> UsageError:
    """The error for LoRAs that are to be plugged into an exported folder."""
    return UsageError(
        f"{model} was exported, and no LoRA can be plugged into it", f"export the model again with {option('loras')}"
    )


def part_of(module: str) -> str:
    """The graph that has a module."""
    return next((name for name in reversed(TEXT_GRAPHS) if module.startswith(f"{name}.")), "unet")


def bytes_of(module: str, shares: Mapping[str, Sequence[Share]]) -> Iterator[bytes]:
    """What decides the sum in a module, as bytes."""
    for adapter, weight in shares[module]:
        update = adapter.modules[module]
        yield f"{module} {weight!r} {tuple(update.A.shape)} {tuple(update.B.shape)}".encode()
        yield from (factor.float().contiguous().numpy().tobytes() for factor in update)
