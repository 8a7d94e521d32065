"""With --offload one group of networks is on the GPU at a time, and the pictures are the same."""

import pytest
import torch
from torch import nn

from fewstep.configs import Where, build
from fewstep.engines import open_engine
from fewstep.engines.torch import TorchEngine
from fewstep.errors import UsageError
from fewstep.lora.recipe import Recipe
from fewstep.models.load import load_model
from fewstep.models.turns import CPU, Turns
from fewstep.session import Session
from tests.bridge.test_export import a_lora

GPU, STEPS = torch.device("cuda"), 3


class Placed(nn.Module):
    """A network that knows where it is; it takes up all of a GPU."""

    def __init__(self, name: str, places: dict[str, torch.device]) -> None:
        super().__init__()
        self.name, self.places = name, places

    def to(self, device: torch.device) -> "Placed":  # type: ignore[override]
        self.places[self.name] = device
        assert [*self.places.values()].count(GPU) <= 1
        return self


def test_one_group_is_on_the_device_at_a_time():
    places = dict.fromkeys("abc", CPU)
    turns = Turns(GPU, {name: [Placed(name, places)] for name in places})
    for name in "abbacab":
        turns.take(name)
        assert places == {**dict.fromkeys("abc", CPU), name: GPU}


def test_a_group_for_which_there_is_no_room_is_brought_again_later():
    class Large(nn.Module):
        moves: list[torch.device] = []  # noqa: RUF012

        def to(self, device: torch.device) -> None:  # type: ignore[override]
            self.moves.append(device)
            if len(self.moves) == 1:
                raise torch.OutOfMemoryError

    turns = Turns(GPU, {"a": [Large()]})
    with pytest.raises(torch.OutOfMemoryError):
        turns.take("a")
    turns.take("a")
    assert Large.moves == [GPU, GPU]


def test_networks_come_when_they_compute_and_draw_the_same(tiny_model_folder, tmp_path, monkeypatch):
    where = build(Where, model=str(tiny_model_folder), loras=(), dtype="fp32", device="cpu", engine="torch")
    lora = a_lora(tmp_path / "one.safetensors", tiny_model_folder, Recipe(method="denoising"), 0)
    (expected,) = Session.on(open_engine(where), where).draw("a cat", steps=STEPS)
    taken: list[str] = []
    monkeypatch.setattr(Turns, "take", lambda self, name: taken.append(name))
    session = Session.on(TorchEngine(load_model(where.model), device=CPU), where)
    (picture,) = session.draw("a cat", steps=STEPS)
    assert torch.equal(picture.pixels, expected.pixels)
    assert [name for name in taken if name != "text"] == [*["network"] * STEPS, "pixels"]
    assert taken[0] == "text"
    session.plug([str(lora)])
    (other,) = session.draw("a cat", steps=STEPS)
    assert not torch.equal(other.pixels, expected.pixels)


def test_it_is_refused_without_a_gpu_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr("fewstep.engines.torch.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="is for a GPU"):
        Session(engine="torch", device="cpu", offload=True)
    with pytest.raises(UsageError, match="the openvino engine does not take"):
        Session(engine="openvino", offload=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_it_takes_less_of_a_gpus_memory():
    peaks, pictures = [], []
    for offload in (False, True):
        torch.cuda.reset_peak_memory_stats()
        with Session(engine="torch", device="cuda", dtype="fp32", offload=offload) as session:
            pictures += session.draw("a red fox", steps=STEPS)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]
    assert torch.equal(pictures[0].pixels, pictures[1].pixels)
