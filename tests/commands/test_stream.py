"""`fewstep stream`: frames from a folder, a video or stdin; their rate is told; what is no frame is one line."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from PIL import Image

from fewstep.commands import stream as command
from fewstep.errors import FewstepError
from tests.tiny import tiny_model

COLOURS = ("red", "green", "blue", "white")
CPU = ("--device", "cpu", "--dtype", "fp32", "--steps", "2", "--solver", "ddim")


def picture(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("tiny")))


def test_a_folder_is_drawn_in_the_order_of_names(fewstep, model, tmp_path) -> None:
    for number, colour in enumerate(COLOURS):
        (tmp_path / f"{number}.png").write_bytes(picture(colour))
    (tmp_path / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    done = fewstep("stream", "--model", model, "a cat", "--frames", tmp_path, "--out", out, "--json", *CPU)
    found = json.loads(done.out)
    assert (done.code, found["frames"]) == (0, 4)
    assert found["frames_per_s"] > 0
    assert found["latency_s"] > 0
    assert sorted(file.name for file in out.iterdir()) == [f"frame-0000{i}.png" for i in range(1, 5)]
    shown = fewstep("inspect", out / "frame-00002.png")
    assert "a cat" in shown.out


def test_a_video_is_drawn_frame_by_frame(fewstep, model, tmp_path) -> None:
    file = tmp_path / "clip.mp4"
    with av.open(str(file), "w") as video:
        track = video.add_stream("mpeg4", rate=10)
        track.width = track.height = 32
        for colour in COLOURS:
            video.mux(track.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), colour))))
        video.mux(track.encode())
    done = fewstep("stream", "--model", model, "a cat", "--frames", file, "--most", "3",
                   "--out", tmp_path / "out", *CPU)  # fmt: skip
    assert done.code == 0
    assert done.out.startswith("3 frames in ")
    assert "frames/s, each" in done.out


def test_stdin_is_pngs_and_jpegs_one_after_another(monkeypatch) -> None:
    sent = [picture("red"), picture("green", "JPEG"), picture("blue")]
    pipe = io.BytesIO(b"".join(sent))
    monkeypatch.setattr(command, "CHUNK", 7)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
    assert list(command.frames_of("-")) == sent


def test_frames_come_on_stdin_as_help_says(fewstep, model, monkeypatch, tmp_path) -> None:
    pipe = io.BytesIO(picture("red") + picture("green"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
    done = fewstep("stream", "a", "--model", model, "--frames", "-", "--out", tmp_path / "out", *CPU)
    assert done.code == 0, done.err
    assert done.out.startswith("2 frames in ")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    done = fewstep("stream", "a", "--model", model, "--frames", "-", "--out", tmp_path / "none", *CPU)
    assert done.error == "there is no frame on stdin"


def test_out_that_is_a_file_is_refused_before_anything_is_drawn(fewstep, model, tmp_path) -> None:
    (tmp_path / "file").write_text("precious")
    done = fewstep("stream", "a", "--model", model, "--frames", tmp_path, "--out", tmp_path / "file", *CPU)
    assert (done.code, done.error) == (2, f"--out {tmp_path / 'file'} is a file")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GIF89a and more", "no PNG or JPEG"),
        (b"hello", "no PNG or JPEG"),
        (picture("red")[:-5], "is cut"),
        (b"\x89P", "is cut"),
    ],
    ids=["gif", "short", "cut", "begun"],
)
def test_other_things_on_stdin_are_refused(data, words) -> None:
    with pytest.raises(FewstepError, match=words):
        list(command.pictures_in(io.BytesIO(data)))


def test_what_is_no_frame_is_one_line_and_nothing_is_written(fewstep, model, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for frames, words in (
        ("missing", "is not there"),
        ("empty", "there is no frame"),
        ("broken.mp4", "unreadable video"),
    ):
        done = fewstep("stream", "--model", model, "a", "--frames", tmp_path / frames,
                       "--out", tmp_path / "out", *CPU)  # fmt: skip
        assert words in done.error
    assert not (tmp_path / "out").exists()


def test_a_controlnet_is_refused(fewstep, model, tmp_path) -> None:
    done = fewstep("stream", "--model", model, "a", "--frames", tmp_path, "--controlnet", "x", *CPU)
    assert "does not take --controlnet" in done.error


@pytest.mark.parametrize("typed", [(), ("a cat", "a dog")])
def test_a_sequence_has_one_prompt(fewstep, tmp_path, typed) -> None:
    done = fewstep("stream", *typed, "--frames", tmp_path)
    assert (done.code, done.error) == (2, f"{len(typed)} prompts were given, not one")


def test_the_option_that_was_is_answered(fewstep, tmp_path) -> None:
    done = fewstep("stream", "--prompt", "a cat", "--frames", tmp_path)
    assert done.hint == "here it is PROMPT, without an option"


def test_an_option_of_other_pictures_is_refused(fewstep, model, tmp_path) -> None:
    done = fewstep("stream", "a", "--model", model, "--frames", tmp_path, "--sheet", *CPU)
    assert done.error.startswith("unknown option: --sheet")


def test_a_missing_package_names_its_install_line(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FewstepError) as found:
        list(command.frames_of(str(tmp_path / "a.mp4")))
    assert 'pip install "fewstep[video]"' in str(found.value)
