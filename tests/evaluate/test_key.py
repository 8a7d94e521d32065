"""The key of pictures: nothing that was asked may change without it, nor the source that draws."""

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from inspect import getfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.assets import CHECKSUMS
from fewstep.configs import Draw, SampleConfig, Where, build
from fewstep.diffusion.solvers import SOLVERS
from fewstep.engines.torch import TorchEngine
from fewstep.evaluate import key, row_pictures
from fewstep.evaluate.key import IRRELEVANT, content_sha256, key_of, source_sha256
from fewstep.io import sha256_file
from fewstep.models.references import parse_reference
from fewstep.session import Plan

SOURCE = Path(row_pictures.__file__)
PLAN = Plan("ddim", (999, 499), 7.5)


@dataclass
class Engine:
    """What the key asks of an engine."""

    dtype: str


@pytest.fixture
def base(tmp_path: Path) -> SampleConfig:
    """A config in which everything may be changed, with files that are there."""
    for name in ("image", "mask", "control", "lora.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    for name in ("controlnet", "decoder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return SampleConfig(
        prompts=("a red fox",),
        model=str(tmp_path / "model.safetensors"),
        loras=(f"{tmp_path / 'lora.safetensors'}:0.8",),
        image=tmp_path / "image",
        mask=tmp_path / "mask",
        controlnet=str(tmp_path / "controlnet"),
        control_image=tmp_path / "control",
        decoder=str(tmp_path / "decoder"),
    )


def key_with(config: SampleConfig, plan: Plan = PLAN) -> str:
    """The key of a config's pictures, by a session of its own."""
    loras = [parse_reference(text) for text in config.loras or ()]
    files = tuple(
        {"file": str(r.path), "weight": r.weight, "blocks": dict(r.blocks), "sha256": sha256_file(r.file)}
        for r in loras
    )
    path = Path(config.model)
    session: Any = SimpleNamespace(
        where=config.where, engine=Engine(config.dtype), facts=SimpleNamespace(path=path), loras=files
    )
    return key_of(session, plan, config.draw(Path.read_bytes), {"model": content_sha256(path)}, SOURCE)


def changed(config: SampleConfig, name: str) -> SampleConfig:
    """The config with another value of one field."""
    others = {
        "prompts": ("a blue fox",),
        "solver": "ddim",
        "grid": "leading",
        "outpaint": "8",
        "dtype": "bf16",
        "device": "cpu",
        "engine": "torch",
        "negative_prompt": "grey",
        "out": Path("others"),
    }
    value = getattr(config, name)
    if name in others:
        return config.model_copy(update={name: others[name]})
    if name == "loras":
        return config.model_copy(update={name: (value[0].replace("0.8", "0.7"),)})
    if isinstance(value, bool):
        return config.model_copy(update={name: not value})
    if isinstance(value, int | float) or value is None:
        return config.model_copy(update={name: (value or 0) + 1})
    other = Path(value).with_name(f"other-{Path(value).name}")
    if Path(value).is_dir():
        other.mkdir()
        (other / "config.json").write_text('{"other": 1}')
    else:
        other.write_text("other")
    return config.model_copy(update={name: type(value)(other)})


@pytest.mark.parametrize("name", [*Where.model_fields, *Draw.model_fields])
def test_another_value_of_a_field_has_another_key_unless_it_cannot_matter(base, name):
    other = changed(base, name)
    assert getattr(other, name) != getattr(base, name)
    assert (key_with(other) == key_with(base)) == (name in IRRELEVANT)


@pytest.mark.parametrize("name", ["model", "loras", "image", "mask", "controlnet", "control_image", "decoder"])
def test_files_are_in_the_key_by_content_and_not_by_name(base, name, tmp_path):
    before, value = key_with(base), getattr(base, name)
    path = parse_reference(value[0]).path if name == "loras" else Path(value)
    moved = path.rename(tmp_path / "moved")
    if name == "loras":
        named: Any = (f"{moved}:0.8",)
    else:
        named = type(value)(moved) if name in ("model", "controlnet", "decoder") else moved
    config = base.model_copy(update={name: named})
    assert key_with(config) == before
    ((moved / "config.json") if moved.is_dir() else moved).write_text("something else")
    assert key_with(config) != before


def test_a_lora_at_0_is_none(base, tmp_path):
    lora = tmp_path / "lora.safetensors"
    without, at_0 = (key_with(base.model_copy(update={"loras": loras})) for loras in ((), (f"{lora}:0",)))
    assert at_0 == without
    assert key_with(base.model_copy(update={"loras": (f"{lora}:0,mid=1",)})) != without


def test_what_ships_is_in_the_key_only_where_it_is_used(monkeypatch):
    source_sha256.cache_clear()
    before, genuine = source_sha256(SOURCE), key.sha256_file
    monkeypatch.setattr(key, "sha256_file", lambda file: "other" if file.name == CHECKSUMS else genuine(file))
    source_sha256.cache_clear()
    assert source_sha256(SOURCE) == before


@pytest.mark.parametrize("name", [field.name for field in fields(Plan) if field.name != "notes"])
def test_another_plan_has_another_key(base, name):
    others = {"solver_name": "heun", "timesteps": (999,), "grid": "lcm", "k": 50}
    assert key_with(base, replace(PLAN, **{name: others.get(name, 0.5)})) != key_with(base)


def test_a_safety_checker_is_in_the_key(base, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    config = base.model_copy(update={"model": str(folder)})
    keys = [key_with(config)]
    for words in ("", "other"):
        for part in key.SAFETY:
            (folder / part).mkdir(exist_ok=True)
            (folder / part / "config.json").write_text(words)
        keys.append(key_with(config))
    assert len(set(keys)) == 3


def test_every_picture_of_a_prompt_has_its_own_seed():
    asked = build(Draw, prompts=("a", "b"), count=3, batch_size=4, seed=5)
    parts = list(row_pictures.batches_of(asked))
    assert [(part.prompts, part.count, part.seed) for part in parts] == [
        (("a", "a", "a", "b"), 1, 5),
        (("b", "b"), 1, 9),
    ]


# --- the source --------------------------------------------------------------------------------------------


def test_other_source_has_another_hash(tmp_path):
    file = tmp_path / "a.py"
    hashes = []
    for code in ("x = 1\n", "x = 2\n", "x = 2\nfrom fewstep import io\n"):
        file.write_text(code)
        source_sha256.cache_clear()
        hashes.append(source_sha256(file))
    assert len(set(hashes)) == 3


def test_the_source_that_draws_is_all_that_is_loaded_to_draw():
    """In a process of its own, a picture is drawn, and every module of fewstep that it took is among the source."""
    code = (
        "import sys, fewstep; fewstep.sample('cat', engine='torch', dtype='fp32', steps=1, solver='lcm');"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('fewstep.')), sep='\\n')"
    )
    environment = os.environ | {"PYTHONPATH": str(key.ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found, waiting = (
        set[Path](),
        [SOURCE, Path(getfile(TorchEngine)), *map(Path, map(getfile, map(type, SOLVERS.values())))],
    )
    while waiting:
        if (file := waiting.pop()) not in found:
            found.add(file)
            waiting += key.imported(file)
    loaded = {Path(line) for line in done.stdout.splitlines()}
    assert len(loaded) > 20
    assert loaded <= found
    assert not any(file.name in ("compare.py", "report.py", "cli.py") for file in found)
