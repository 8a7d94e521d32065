"""A sequence of frames: each picture is the one that is drawn of its frame alone, however many are under way."""

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from fewstep.errors import UsageError
from fewstep.session import Session
from tests.tiny import tiny_model

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple")


def frames(count: int = 6) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), colour) for colour in COLOURS[:count]]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[Session]:
    with Session(str(tiny_model(tmp_path_factory.mktemp("tiny"))), dtype="fp32", device="cpu", engine="torch") as found:
        yield found


@pytest.mark.parametrize("how", [
    {"solver": "lcm", "steps": 3, "guidance_scale": 1.0},
    {"solver": "lcm", "steps": 4, "guidance_scale": 2.0, "negative_prompt": "a dog"},
    {"solver": "tcd", "steps": 2, "guidance_scale": 1.0},
    {"solver": "ddim", "steps": 3, "strength": 0.3},
    {"solver": "dpm-solver++2s", "steps": 4},
    {"solver": "lcm", "steps": 2, "strength": 1.0},
    {"solver": "lcm", "steps": 1},
], ids=str)  # fmt: skip
def test_a_picture_is_the_one_of_its_frame_alone(session, how) -> None:
    streamed = list(session.stream(frames(), "a cat", seed=3, **how))
    assert len(streamed) == 6
    for frame, picture in zip(frames(), streamed, strict=True):
        alone = next(session.draw("a cat", image=frame, seed=3, **how))
        torch.testing.assert_close(picture.pixels, alone.pixels, atol=2e-5, rtol=0)
        assert picture.recipe == alone.recipe


def test_one_network_call_takes_all_frames_under_way_a_step_on(session, monkeypatch) -> None:
    rows: list[int] = []
    unet = session.engine.model.unet
    forward = unet.forward
    monkeypatch.setattr(
        unet, "forward", lambda x, *args, **options: rows.append(len(x)) or forward(x, *args, **options)
    )
    list(session.stream(frames(6), "a cat", solver="lcm", steps=3, guidance_scale=1.0))
    assert rows == [1, 2, 3, 3, 3, 3, 2, 1]


def test_pictures_come_out_while_frames_go_in(session) -> None:
    taken: list[int] = []

    def camera() -> Iterator[Image.Image]:
        for number, frame in enumerate(frames(7)):
            taken.append(number)
            yield frame

    pictures = session.stream(camera(), "a cat", solver="lcm", steps=3, guidance_scale=1.0)
    next(pictures)
    assert taken == [0, 1, 2]
    next(pictures)
    assert taken == [0, 1, 2, 3]
    assert len(list(pictures)) == 5


def test_no_frames_give_no_pictures(session) -> None:
    assert list(session.stream([], "a cat", solver="lcm", steps=2)) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "dpm-solver++"}, "remembers earlier steps"),
        ({"count": 2}, "one picture a frame"),
        ({"mask": Image.new("L", (16, 16))}, "mask"),
        ({"control_image": Image.new("L", (16, 16))}, "control_image"),
    ],
    ids=["multistep", "count", "mask", "control_image"],
)
def test_what_a_sequence_cannot_have_is_refused_at_once(session, options, words) -> None:
    with pytest.raises(UsageError, match=words):
        session.stream(frames(), "a cat", **options)
