"""The public door: every name is typed, lazy and does what its command does."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.errors import UsageError
from fewstep.lora.files import open_lora
from tests.sessions import session

ROOT = Path(__file__).parents[1]


def test_a_users_program_type_checks():
    """Its mistakes are found, each where a `type: ignore` stands, and nothing in it is of type Any."""
    strict = ["--strict", "--cache-dir", ".mypy_cache"]  # which `make test`'s own run has filled
    command = [sys.executable, "-m", "mypy", *strict, "tests/user_program.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    own = [line for line in done.stdout.splitlines() if line.startswith("tests/user_program.py")]
    assert own == []
    assert "1 source file" in done.stdout


def test_every_public_name_is_there():
    assert fewstep.__all__ == sorted(fewstep.__all__)
    named = {name for names in fewstep._HOMES.values() for name in names}
    assert set(fewstep.__all__) == named
    for name in fewstep.__all__:
        assert getattr(fewstep, name).__doc__, name
    assert set(fewstep.__all__) <= set(dir(fewstep))
    with pytest.raises(AttributeError, match="smaple"):
        fewstep.smaple  # type: ignore[attr-defined]  # noqa: B018


def test_types_go_with_the_package():
    assert (ROOT / "src" / "fewstep" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_importing_it_imports_nothing_slow():
    code = "import sys, fewstep; print({'torch', 'diffusers', 'numpy', 'PIL', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert done.stdout == "set()\n"


def test_commands_take_fields_or_a_config(tiny_model_folder, tiny_data_folder, tmp_path):
    fields = {"model": str(tiny_model_folder), "data": tiny_data_folder, "train_steps": 1, "rank": 2, "device": "cpu"}
    lora = fewstep.distill(**fields, out=tmp_path / "fast")
    style = fewstep.finetune(fewstep.FinetuneConfig(**fields, out=tmp_path / "style"))
    both = fewstep.merge(files=(f"{style}:0.5", str(lora)), model=str(tiny_model_folder), out=tmp_path / "both.st")
    assert lora == tmp_path / "fast" / "lora.safetensors"
    assert open_lora(lora).recipe.accelerates
    assert not open_lora(style).recipe.accelerates
    assert open_lora(both).recipe.accelerates
    assert "psi" in fewstep.distill.__signature__.parameters  # what help() shows


def test_a_wrong_field_is_named():
    with pytest.raises(UsageError, match="stpes"):
        fewstep.distill(model="m", data=Path("d"), out=Path("o"), stpes=4)
    with pytest.raises(UsageError, match="rank"):
        fewstep.merge(files=("a",), out=Path("o"), rank=0)
    for name, meant in (("steps", "train_steps"), ("rnak", "rank")):
        with pytest.raises(UsageError, match=f"^there is no option {name}\n\nhint: did you mean {meant}\\?$"):
            fewstep.distill(model="m", data=Path("d"), out=Path("o"), **{name: 4})
    for config in (fewstep.MergeConfig(files=("a",), out=Path("o")), "a.safetensors"):
        with pytest.raises(TypeError, match=r"^merge takes one MergeConfig, or its fields by name: files="):
            fewstep.merge(config, rank=1) if isinstance(config, fewstep.MergeConfig) else fewstep.merge(config)


def test_the_skins_draw_the_same_picture(fewstep, tiny_model_folder, tmp_path):
    """One Draw, one hash: from the command line and from Python, in float32 at the same batch shape."""
    import fewstep as package

    options = {"steps": 3, "seed": 5, "solver": "ddim", "guidance_scale": 2.0, "count": 2}
    where = {"model": str(tiny_model_folder), "dtype": "fp32", "device": "cpu"}
    typed = fewstep("sample", "a cat", **options, **where, out=tmp_path).out.splitlines()
    with session(tiny_model_folder) as opened:
        drawn = {
            "CLI": [np.asarray(Image.open(file)) for file in typed],
            "Session": [np.asarray(picture.image) for picture in opened.draw("a cat", **options)],
            "sample": [np.asarray(picture.image) for picture in package.sample("a cat", **options, **where)],
        }
    hashes = {skin: [sha256(pixels.tobytes()).hexdigest() for pixels in some] for skin, some in drawn.items()}
    assert hashes["CLI"] == hashes["Session"] == hashes["sample"]
    assert len(set(hashes["CLI"])) == 2
