"""Tiny models and folders that several tests share; the user's own cache is never touched."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before torch is imported: these tensors are tiny, and cores are shared

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the real hub; those of the hub turn it on for a stand-in

settings.register_profile(
    "same", derandomize=True
)  # a run that passed passes again; HYPOTHESIS_PROFILE=default looks further
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

COMPLAINT = re.compile(r"(?:^|\n)error: ([^\n]+)\n\nhint: ([^\n]+)\n\Z")


class Outcome(NamedTuple):
    """What a run of the program left."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The message of the one complaint at the end of stderr."""
        return self._complaint(1)

    @property
    def hint(self) -> str:
        """Its hint."""
        return self._complaint(2)

    def _complaint(self, group: int) -> str:
        found = COMPLAINT.search(self.err)
        assert found, f"no error line, blank line and hint at the end of stderr:\n{self.err}"
        assert self.err.count("error:") == 1, self.err
        assert "Traceback" not in self.err
        assert "pydantic" not in self.err
        return found[group]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """$FEWSTEP_CACHE, for every test."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fewstep-cache")
        patch.setenv("FEWSTEP_CACHE", str(folder))
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        yield folder


@pytest.fixture(autouse=True)
def notes_on_stderr() -> Iterator[None]:
    """Notes are printed on stderr as the command line prints them, where a test looks for them with capsys."""
    from fewstep.events import Event, Note, telling

    def printed(event: Event) -> None:
        if isinstance(event, Note):
            print(f"note: {event.text}", file=sys.stderr)

    with telling(printed):
        yield


@pytest.fixture(scope="session", autouse=True)
def one_precision() -> Iterator[None]:
    """--dtype auto is fp32 in tests, whatever the machine can do; a test of its own looks at what it is elsewhere."""
    from fewstep.engines import torch as engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "fast_dtype", lambda device: engine.DTYPES["fp32"])
        yield


@pytest.fixture(scope="session", autouse=True)
def one_engine() -> Iterator[None]:
    """--engine auto is torch in tests, whatever is installed; tests of their own look at what it is elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.engines.suits_openvino", lambda where: False)
        yield


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SD 1.x folder for 16 px images; do not write to it."""
    from tests.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL-like folder for 16 px images; do not write to it."""
    from tests.tiny import tiny_sdxl

    return tiny_sdxl(tmp_path_factory.mktemp("model") / "tiny-xl")


@pytest.fixture(scope="session")
def tiny_pixels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DDPM folder for 16 px images; do not write to it."""
    from tests.tiny import tiny_pixels

    return tiny_pixels(tmp_path_factory.mktemp("model") / "pixels", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six captioned images; do not write to it."""
    from tests.tiny import tiny_images

    return tiny_images(tmp_path_factory.mktemp("data") / "images", 6)


@pytest.fixture
def fewstep(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The program in this process: fewstep("sample", "a cat", steps=2) types `fewstep sample "a cat" --steps 2`."""
    from fewstep.cli import main

    def run(*arguments: object, **options: object) -> Outcome:
        typed = [str(argument) for argument in arguments]
        for name, value in options.items():
            typed += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        capsys.readouterr()
        code = main(typed)
        return Outcome(code, *capsys.readouterr())

    return run
