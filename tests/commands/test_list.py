"""list: what can be named is listed, with what the cache holds; it imports no torch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewstep.assets import shipped_lora, shipped_model
from fewstep.commands.list import in_units
from fewstep.diffusion.solvers import SOLVERS
from fewstep.engines import engine_names
from fewstep.hub import ALIASES

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def listed(fewstep, tmp_path, monkeypatch):
    """The document and the text, of a cache and a hub's cache with a few files."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(path, size, days):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x" * size)
        os.utime(tmp_path / path, (time.time() - days * 86400,) * 2)

    put("cache/compare/a.safetensors", 1000, 3.5)
    put("cache/compare/b.safetensors", 1048, 10.5)
    put("cache/encoded/c.safetensors", 3 * 2**20, 0)
    put("hub/models--segmind--SSD-1B/blobs/x", 5000, 1)
    document = json.loads(fewstep("list", "--json").out)
    return document, fewstep("list").out


def test_everything_that_can_be_named_is_listed(listed):
    document, text = listed
    names = [one["name"] for one in document["ships"]]
    assert shipped_model(names[0])
    assert all(map(shipped_lora, names[1:]))
    assert [one["name"] for one in document["hub"]["names"]] == list(ALIASES)
    assert (document["engines"], document["solvers"]) == (engine_names(), list(SOLVERS))
    for name in (*names, *ALIASES, *engine_names(), *SOLVERS):
        assert name in text
    assert max(map(len, text.splitlines())) < 160


def test_what_the_cache_holds_is_counted(listed, tmp_path):
    document, text = listed
    compare, encoded = document["cache"]["holds"]
    assert (compare["kind"], compare["files"], compare["bytes"]) == ("compare", 2, 2048)
    assert (compare["oldest_days"], compare["newest_days"]) == (10.5, 3.5)
    assert (encoded["kind"], encoded["bytes"], encoded["oldest_days"]) == ("encoded", 3 * 2**20, 0)
    assert document["cache"]["folder"] == str(tmp_path / "cache")
    here = {one["name"]: one["bytes_here"] for one in document["hub"]["names"]}
    assert (here["ssd-1b"], here["sd15"]) == (5000, 0)
    assert "  compare  2 files  2.0 KiB  3 to 10 days old  pictures" in text
    assert "  encoded  1 file   3.0 MiB  of today " in text


def test_it_imports_no_torch_and_needs_no_cache(tmp_path):
    code = "import sys; from fewstep.cli import main; main(['list']); print('torch' in sys.modules, file=sys.stderr)"
    environment = os.environ | {"FEWSTEP_CACHE": str(tmp_path / "none"), "HF_HUB_CACHE": str(tmp_path / "none")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SOURCE, env=environment)
    assert done.stderr == "False\n"
    assert "\n  nothing\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_short():
    assert [in_units(n) for n in (0, 1023, 1536, 200 * 1024, 5 * 2**30)] == [
        "0 B", "1023 B", "1.5 KiB", "200 KiB", "5.0 GiB"
    ]  # fmt: skip
