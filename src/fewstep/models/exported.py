"""Folders of networks as graphs, which `fewstep export` wrote for another program than torch, or optimum-intel did."""

from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, option
from fewstep.io import brief, read_object

GRAPH_FILES = {"openvino": "openvino_model.xml", "onnx": "model.onnx"}  # engine -> file of a graph in its folder
MANIFEST = "fewstep-export.json"  # at the folder's top, in folders that fewstep wrote
LAYOUT = 1  # of such a folder; fewstep reads this one


def exported_for(name: str) -> str | None:
    """The engine for which a folder was exported; None for any other model.

    Raises FewstepError for a folder whose layout is of another version of fewstep.
    """
    folder = Path(name).expanduser()
    engine = next((one for one, file in GRAPH_FILES.items() if (folder / "unet" / file).is_file()), None)
    if engine is not None and (folder / MANIFEST).is_file():
        layout = read_object(folder / MANIFEST, "list of an export").get("layout")
        if layout != LAYOUT:
            raise FewstepError(
                f"{folder} has layout {brief(layout)}, and this fewstep reads layout {LAYOUT}",
                "export the model again with this fewstep",
            )
    return engine


def refuse_exported(name: str) -> None:
    """Raise FewstepError for an exported folder, which has no weights for torch."""
    if (engine := exported_for(name)) is not None:
        raise FewstepError(
            f"{name} was exported for {engine} and has no weights for torch",
            f"sample it with {option('engine')} {engine}, or name the model that it was exported from",
        )


def manifest(engine: str, dtype: str, version: str, differences: dict[str, float]) -> dict[str, Any]:
    """The content of MANIFEST. dtype: of the weights. differences: graph -> relative error of its outputs."""
    return {"layout": LAYOUT, "to": engine, "weights": dtype, "fewstep": version, "differences": differences}
