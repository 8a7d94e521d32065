"""The engine that runs the networks in ONNX Runtime: on a CPU, on an NVIDIA GPU, or on any GPU under Windows."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.configs import Where
from fewstep.engines.graphs.engine import GraphEngine, Runtime
from fewstep.engines.graphs.parts import Running, arrays_of
from fewstep.errors import FewstepError, UsageError, option
from fewstep.models.exported import GRAPH_FILES
from fewstep.models.graphs import ANY, Graph, NetworkGraph

FILE = GRAPH_FILES["onnx"]
OPSET = 18
PROVIDERS = {"directml": "DmlExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
PACKAGES = {"directml": "onnxruntime-directml", "cuda": "onnxruntime-gpu"}  # in the place of onnxruntime


def library() -> ModuleType:
    """The package. Raises FewstepError when it is not installed."""
    try:
        import onnx  # noqa: F401, torch's exporter needs it
        import onnxruntime
    except ImportError as error:
        raise FewstepError(
            f"the engine onnx needs the packages onnx and onnxruntime, which cannot be imported ({error})",
            'pip install "fewstep[onnx]"',
        ) from error
    onnxruntime.disable_telemetry_events()
    package: ModuleType = onnxruntime
    return package


class ONNX:
    """ONNX Runtime on one device. On a GPU the UNet computes in fp16, the other networks in fp32."""

    name = "onnx"

    def __init__(self, device: str, dtype: str, half: bool | None = None) -> None:
        """device: auto, cpu, cuda or directml; auto is the first GPU, else cpu. dtype: auto, fp32, or on a GPU fp16.

        half: write the UNet so that it computes in fp16; None = when that is the dtype.
        """
        self._package = library()
        self._device = self._checked(device)
        if dtype == "bf16" or (dtype == "fp16" and self._device == "cpu"):
            raise UsageError(
                f"the engine onnx does not compute in {option('dtype')} {dtype} on {self._device}",
                "use fp32" if self._device == "cpu" else "use fp16 or fp32",
            )
        self.dtype = dtype if dtype != "auto" else "fp32" if self._device == "cpu" else "fp16"
        self.half = self.dtype == "fp16" if half is None else half
        self.floating = self.dtype

    def _checked(self, device: str) -> str:
        """The device, which this build of ONNX Runtime has."""
        there = [name for name, provider in PROVIDERS.items() if provider in self._package.get_available_providers()]
        if device == "auto":
            return there[0]
        if device not in PROVIDERS:
            known = " or ".join(sorted(PROVIDERS))
            raise UsageError(
                f"the engine onnx does not run on {option('device')} {device}", f"use {known}, or the engine torch"
            )
        if device not in there:
            raise FewstepError(
                f"this build of ONNX Runtime does not have {option('device')} {device}",
                f"pip uninstall onnxruntime, then pip install {PACKAGES.get(device, 'onnxruntime')}",
            )
        return device

    def identity(self, name: str) -> str:
        return f"opset {OPSET} {'half' if self.half else 'exact'}"

    def write(self, graph: Graph, folder: Path) -> None:
        """Export the graph."""
        half = self.half and isinstance(graph.module, NetworkGraph)
        module = HalfGraph(graph.module.half()) if half else graph.module
        sizes = {
            name: {i: f"{name}_{i}" for i, s in enumerate(shape) if s == ANY} for name, shape in graph.shapes.items()
        }
        with warnings.catch_warnings():  # about what tracing takes as constant, which holds at all sizes
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (),
                str(folder / FILE),  # a Path is refused for more than 2 GiB of weights
                kwargs=dict(graph.example),
                input_names=list(graph.example),
                output_names=list(graph.outputs),
                dynamic_axes=sizes,
                opset_version=OPSET,
                dynamo=False,
            )

    def read(self, folder: Path) -> Running:
        options = self._package.SessionOptions()
        if self._device == "cpu":
            options.intra_op_num_threads = torch.get_num_threads()
        if self._device == "directml":  # which asks for both
            options.enable_mem_pattern = False
            options.execution_mode = self._package.ExecutionMode.ORT_SEQUENTIAL
        provider = PROVIDERS[self._device]
        try:
            session = self._package.InferenceSession(folder / FILE, options, providers=[provider])
        except Exception as error:  # its exceptions have no common parent
            reason = " ".join(str(error).split())[:200]
            raise FewstepError(f"{folder / FILE} cannot be read ({reason})", "delete its folder") from error
        if provider not in session.get_providers():
            raise FewstepError(
                f"ONNX Runtime could not start on {option('device')} {self._device}",
                "see its message above, or use cpu",
            )
        return ONNXGraph(session)


class HalfGraph(nn.Module):
    """A network in half precision, with inputs and outputs in float32. The timesteps and SDXL's sizes stay in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """The inputs are those of a NetworkGraph."""
        cond = None if timestep_cond is None else timestep_cond.half()
        pooled = None if text_embeds is None else text_embeds.half()
        output: Tensor = self.network(sample.half(), timestep, encoder_hidden_states.half(), cond, pooled, time_ids)
        return output.float()


class ONNXGraph:
    """One graph in ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        """session: onnxruntime.InferenceSession."""
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._whole = {x.name for x in session.get_inputs() if "int" in x.type}

    def __call__(self, inputs: Mapping[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
        arrays = arrays_of(inputs, self._whole)
        return dict(zip(self._outputs, map(torch.from_numpy, self._session.run(None, arrays)), strict=True))


class ONNXEngine(GraphEngine):
    """A model's networks in ONNX Runtime."""

    @staticmethod
    def start(where: Where) -> Runtime:
        return ONNX(where.device, where.dtype)


ENGINE = ONNXEngine
