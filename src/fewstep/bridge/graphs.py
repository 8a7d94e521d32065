"""Writes a model's networks as graphs, in the layout of optimum-intel's folders, and compares each with torch."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from fewstep import __version__
from fewstep.diffusion.schedule import lcm_grid
from fewstep.engines.graphs.engine import Runtime
from fewstep.engines.graphs.parts import Running
from fewstep.engines.onnx import ONNX
from fewstep.engines.openvino import OpenVINO, write_tokenizer
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import doing, note
from fewstep.io import write_json
from fewstep.models.exported import MANIFEST, manifest
from fewstep.models.graphs import SOURCES, Graph, graph_names, graph_of
from fewstep.models.load import RECIPE_FILE, load_model
from fewstep.models.quiet import quiet
from fewstep.session.plan import Plan

STORED = {"openvino": "fp16", "onnx": "fp32"}  # the type of weights that auto means
LARGEST = {"fp16": 2e-2, "fp32": 1e-3}  # relative error of a network's outputs that is no fault of the export
COPIED = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor", "model_index.json", RECIPE_FILE)
GENAI_K = 20  # the distance of timesteps for which OpenVINO GenAI's LCM scheduler gives the pictures of diffusers'


def exporter(to: str, dtype: str) -> Runtime:
    """The program that writes graphs for the engine `to`. Raises FewstepError when it is not installed."""
    half = (STORED[to] if dtype == "auto" else dtype) == "fp16"
    return OpenVINO("cpu", "fp32", half) if to == "openvino" else ONNX("cpu", "fp32", half)


@quiet()
def write_graphs(runtime: Runtime, model: Path, folder: Path) -> dict[str, float]:
    """Write the networks of a model folder, and what belongs to them, to `folder`.

    Returns graph -> relative error of its outputs on random inputs, both computed in float32. Raises FewstepError when
    one is larger than rounding explains.
    """
    loaded = load_model(str(model), safety=False)
    differences = {}
    for name in graph_names(loaded):
        with doing(f"writing {name} for {runtime.name}"):
            graph, part = graph_of(loaded, name, whole_timesteps=True), folder / name
            expected = outputs_of(graph)
            part.mkdir()
            runtime.write(graph, part)
            shutil.copy(model / SOURCES[name] / "config.json", part)
            differences[name] = difference(expected, runtime.read(part), graph)
        refuse_different(name, differences[name], runtime)
    for name in COPIED:
        if (model / name).is_dir():
            shutil.copytree(model / name, folder / name)
        elif (model / name).is_file():
            shutil.copy(model / name, folder)
    dtype = "fp16" if runtime.half else "fp32"
    write_json(folder / MANIFEST, manifest(runtime.name, dtype, __version__, differences))
    if runtime.name == "openvino":
        write_tokenizers(folder)
    return differences


def inputs_of(graph: Graph) -> dict[str, Tensor]:
    """Random inputs of the graph, always the same. Timesteps and token ids are those of its example."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
        for name, x in graph.example.items()
    }


def outputs_of(graph: Graph) -> tuple[Tensor, ...]:
    """The outputs of the graph's module in torch, on those inputs."""
    with torch.no_grad():
        outputs = graph.module(**inputs_of(graph))
    return outputs if isinstance(outputs, tuple) else (outputs,)


def difference(expected: tuple[Tensor, ...], running: Running, graph: Graph) -> float:
    """The largest relative error of the outputs: the norm of the difference over the norm of the output in torch."""
    outputs = running(inputs_of(graph), exact=True).values()
    pairs = zip(outputs, expected, strict=True)
    return max(float((output - value).norm() / value.norm()) for output, value in pairs)


def refuse_different(name: str, relative: float, runtime: Runtime) -> None:
    """Raise FewstepError for outputs that differ more than rounding explains, or are not finite."""
    if not relative <= LARGEST["fp16" if runtime.half else "fp32"]:
        raise FewstepError(
            f"{name} gives other outputs in {runtime.name} than in torch: they differ by {relative:.1%}",
            f"try {option('dtype')} fp32" if runtime.half else f"use {option('to')} diffusers, and file an issue",
        )


def write_tokenizers(folder: Path) -> None:
    """Write each tokenizer as a graph too, which OpenVINO GenAI needs; a note when the package for it is missing."""
    for path in sorted(folder.glob("tokenizer*")):
        try:
            write_tokenizer(path)
        except ImportError:
            note("without the package openvino-tokenizers the folder has no tokenizer for OpenVINO GenAI")
            return


def refuse_for_genai(plan: Plan, prediction_type: str) -> None:
    """Raise UsageError, which names what is wrong, for a model that OpenVINO GenAI would sample wrongly."""
    if plan.solver_name != "lcm":
        raise UsageError(
            f"OpenVINO GenAI has no counterpart of the {plan.solver_name} solver, which this model needs",
            "of few-step solvers it has lcm alone: use an LCM-LoRA",
        )
    if prediction_type != "epsilon":
        raise UsageError(
            f"OpenVINO GenAI's LCM scheduler takes only models that predict epsilon, not {prediction_type}",
            f"leave out {option('consumer')}, and sample the folder with fewstep",
        )
    grid = lcm_grid(plan.steps, GENAI_K, 1000)
    if plan.k != GENAI_K or list(plan.timesteps) != grid:
        raise UsageError(
            f"OpenVINO GenAI's LCM scheduler steps at {', '.join(map(str, grid))}, this model at"
            f" {', '.join(map(str, plan.timesteps))}",
            f"leave out {option('consumer')}, and sample the folder with fewstep",
        )
