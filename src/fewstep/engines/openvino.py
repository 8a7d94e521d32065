"""The engine that runs the networks in OpenVINO, on a CPU or on an Intel GPU."""

import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fewstep.configs import Where
from fewstep.engines.graphs.engine import GraphEngine, Runtime
from fewstep.engines.graphs.parts import Running, arrays_of
from fewstep.errors import FewstepError, UsageError, option
from fewstep.models.exported import GRAPH_FILES
from fewstep.models.graphs import Graph
from fewstep.models.parts import load_tokenizer

FILE = GRAPH_FILES["openvino"]
DEVICES = {"auto": "CPU", "cpu": "CPU", "gpu": "GPU"}  # ours -> OpenVINO's
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}  # of a device, as OpenVINO names them
SIZES = 2  # sizes of inputs for which one graph is kept ready


def library() -> ModuleType:
    """The package. Raises FewstepError when it is not installed.

    It is imported without its telemetry, which would send a message over the network at every import.
    """
    with without("openvino_telemetry"):
        try:
            import openvino
        except ImportError as error:
            raise FewstepError(
                f"the engine openvino needs the package openvino, which cannot be imported ({error})",
                'pip install "fewstep[openvino]"',
            ) from error
    package: ModuleType = openvino
    return package


@cache
def core() -> Any:
    """The process's only openvino.Core.

    Each Core's CPU plugin gives the thread another stack for signals, and puts back the one before it when it ends. If
    two end in the order in which they began, the thread is left with a stack that is gone, and the next signal, such as
    that a child process has ended, kills the process.
    """
    return library().Core()


@contextmanager
def without(module: str) -> Iterator[None]:
    """Inside the block, importing the module fails, unless it was imported before."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]


class OpenVINO:
    """OpenVINO on one device, at one precision."""

    name = "openvino"

    def __init__(self, device: str, dtype: str, half: bool | None = None) -> None:
        """device: auto, cpu or gpu. dtype: auto is the fastest one that the device computes natively.

        half: store weights in half precision; None = unless it computes in float32.
        """
        self._package = library()
        self._core = core()
        if device not in DEVICES:
            raise UsageError(
                f"the engine openvino does not run on {option('device')} {device}", "use cpu, gpu, or the engine torch"
            )
        self._device = DEVICES[device]
        if self._device not in self._core.available_devices:
            raise FewstepError(
                f"OpenVINO finds no {device} on this machine",
                f"it finds {', '.join(self._core.available_devices).lower()}; an Intel GPU needs its driver",
            )
        self.dtype = self._checked(dtype)
        self.half = self.dtype != "fp32" if half is None else half
        self.identity = f"{self._package.get_version()} {'half' if self.half else 'exact'}"

    def _checked(self, dtype: str) -> str:
        """The precision, which the device has. auto is the fastest."""
        native = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        fast = [name for name, capability in CAPABILITIES.items() if capability in native]
        if dtype == "auto":
            return next(iter(fast), "fp32")
        if dtype != "fp32" and dtype not in fast:
            raise FewstepError(
                f"OpenVINO does not compute in {option('dtype')} {dtype} on this {self._device}",
                f"use {' or '.join([*fast, 'fp32'])}",
            )
        return dtype

    def write(self, graph: Graph, folder: Path) -> None:
        """Convert the graph."""
        self._package.save_model(self.converted(graph), folder / FILE, compress_to_fp16=self.half)

    def converted(self, graph: Graph) -> Any:
        """The graph as an openvino.Model."""
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        with warnings.catch_warnings():  # about what tracing takes as constant, which holds at all sizes
            warnings.simplefilter("ignore")
            traced = TorchScriptPythonDecoder(
                graph.module, example_input=dict(graph.example), trace_kwargs={"check_trace": False}
            )
            model = self._package.convert_model(traced, input={n: list(s) for n, s in graph.shapes.items()})
        for output, name in zip(model.outputs, graph.outputs, strict=True):
            output.get_tensor().set_names({name})
        return model

    def read(self, folder: Path) -> Running:
        try:
            model = self._core.read_model(folder / FILE)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise FewstepError(f"{folder / FILE} cannot be read ({reason})", "delete its folder") from error
        return OpenVINOGraph(self._core, model, self._device, self.dtype)


def write_tokenizer(folder: Path) -> None:
    """Add the tokenizer in a folder as a graph, for programs of OpenVINO. Raises ImportError without its package."""
    package = library()
    import openvino_tokenizers

    graph = openvino_tokenizers.convert_tokenizer(load_tokenizer(folder))
    package.save_model(graph, folder / "openvino_tokenizer.xml")


class OpenVINOGraph:
    """One graph in OpenVINO, compiled for each size of its inputs."""

    def __init__(self, core: Any, model: Any, device: str, dtype: str) -> None:
        """core: openvino.Core. model: openvino.Model. device: OpenVINO's name of it."""
        self._core, self._model, self._device, self._dtype = core, model, device, dtype
        self._whole = {x.get_any_name() for x in model.inputs if x.get_element_type().is_integral()}
        self._requests: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # the last used is the last

    def __call__(self, inputs: Mapping[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
        arrays = arrays_of(inputs, self._whole)
        shapes = {name: list(x.shape) for name, x in inputs.items()}
        results = self._request(shapes, "fp32" if exact else self._dtype).infer(arrays, share_inputs=True)
        return {output.get_any_name(): torch.from_numpy(array) for output, array in results.items()}

    def _request(self, shapes: Mapping[str, list[int]], dtype: str) -> Any:
        """The compiled graph for these shapes."""
        key = (dtype, *((name, *shape) for name, shape in shapes.items()))
        if key not in self._requests:
            while len(self._requests) >= SIZES:
                self._requests.popitem(last=False)
            model = self._model.clone()
            model.reshape(dict(shapes))
            settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
            if self._device == "CPU":
                settings |= {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False}
            self._requests[key] = self._core.compile_model(model, self._device, settings).create_infer_request()
        self._requests.move_to_end(key)
        return self._requests[key]


class OpenVINOEngine(GraphEngine):
    """A model's networks in OpenVINO."""

    @staticmethod
    def start(where: Where) -> Runtime:
        return OpenVINO(where.device, where.dtype)


ENGINE = OpenVINOEngine
