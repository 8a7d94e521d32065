"""The engine that runs the networks in OpenVINO, on a CPU or on an Intel GPU."""

import io
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.configs import Where
from fewstep.engines.engine import Capabilities
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
EXACT = (  # layers that int8 leaves as they are: each costs little time, and in int8 much of the picture
    *(r".*\.conv_(in|out|shortcut)/.*", r".*\.proj_(in|out)/.*", r".*\.downsamplers\..*", r".*\.time_emb.*"),
    *(r".*\.attn2\.to_(k|v|out)\b.*", r".*\.ff\.net\.2/.*"),
)
QUANTIZATION = 1  # another number makes what was quantized before void: for EXACT, the calibration's inputs, ...
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


def quantizer() -> ModuleType:
    """The package that quantizes. Raises FewstepError when it is not installed."""
    with without("openvino_telemetry"):
        try:
            import nncf
        except ImportError as error:
            raise FewstepError(
                f"{option('dtype')} int8 needs the package nncf, which cannot be imported ({error})",
                'pip install "fewstep[int8]"',
            ) from error
    nncf.set_log_level(logging.ERROR)
    package: ModuleType = nncf
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
        """device: auto, cpu or gpu. dtype: auto is the fastest one that the device computes natively. int8 is of the
        UNet alone, and the rest is as with auto.

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
        if dtype == "int8":
            self._quantizer = self._checked_quantizer()
        self.floating = self._checked("auto" if dtype == "int8" else dtype)
        self.dtype = "int8" if dtype == "int8" else self.floating
        self.half = self.floating != "fp32" if half is None else half

    def _checked_quantizer(self) -> ModuleType:
        """The package that quantizes, for a CPU."""
        if self._device != "CPU":
            raise UsageError(
                f"the engine openvino computes in {option('dtype')} int8 only on a CPU", f"leave out {option('dtype')}"
            )
        return quantizer()

    def identity(self, name: str) -> str:
        known = f"{self._package.get_version()} {'half' if self.half else 'exact'}"
        if name != "unet" or self.dtype != "int8":
            return known
        return f"{known} int8 {QUANTIZATION} nncf {self._quantizer.__version__}"

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
        model = self.converted(graph)
        if graph.calibration:
            model = self.quantized(model, graph.calibration)
        self._package.save_model(model, folder / FILE, compress_to_fp16=self.half)

    def quantized(self, model: Any, inputs: Sequence[Mapping[str, Tensor]]) -> Any:
        """An openvino.Model quantized after training: weights and activations of all layers but EXACT in int8.

        The range of an activation is the one with the least squared error on the inputs (nncf's histogram). Attention
        stays as it is, which gains no time from int8.
        """
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        nncf = self._quantizer
        with redirect_stdout(io.StringIO()):  # its progress bars
            return nncf.quantize(
                model,
                nncf.Dataset([{name: x.numpy() for name, x in row.items()} for row in inputs]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(
                    patterns=list(EXACT), types=["ScaledDotProductAttention"], validate=False
                ),
                advanced_parameters=AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM,
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                ),
            )

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
        return OpenVINOGraph(self._core, model, self._device, self.floating)


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

    supports: ClassVar[Capabilities] = replace(GraphEngine.supports, int8=True)

    @staticmethod
    def start(where: Where) -> Runtime:
        return OpenVINO(where.device, where.dtype)


ENGINE = OpenVINOEngine
