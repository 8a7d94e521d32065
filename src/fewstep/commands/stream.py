"""`fewstep stream`: a sequence of frames drawn anew, with the frames a second and the time of each on its way."""

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from fewstep.commands.result import Result
from fewstep.configs import Draw, StreamConfig, build
from fewstep.engines import for_changing_loras
from fewstep.errors import FewstepError, UsageError, number_of, option
from fewstep.images import read_bytes, save_image
from fewstep.io import refuse_file
from fewstep.session import Session
from fewstep.session.streaming import ANY_FRAME

STDIN = "-"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ENDS = {  # what a picture's file begins with: what it ends with
    b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82",
    b"\xff\xd8": b"\xff\xd9",
}
CHUNK = 65_536  # bytes read from stdin at once
LARGEST = 64_000_000  # bytes of a picture on stdin

Frames = Iterator[bytes | Image.Image]


class Way(NamedTuple):
    """A frame's way, by the clock."""

    entered_s: float
    left_s: float


def stream(config: StreamConfig) -> Result:
    """The pictures of every frame, saved as they are drawn."""
    if config.controlnet is not None:
        raise UsageError(f"stream does not take {option('controlnet')}", "leave it out")
    refuse_file(config.out)
    where = config.where.model_copy(update={"engine": for_changing_loras(config.engine)})
    own = {name: getattr(config, name) for name in Draw.model_fields if name in StreamConfig.model_fields}
    draw = build(Draw, image=ANY_FRAME, **own)
    entered: list[float] = []
    ways: list[Way] = []
    frames = islice(frames_of(config.frames), config.most)
    with Session.open(where) as session:
        for picture in session.stream(noted(frames, entered), draw):
            ways.append(Way(entered[len(ways)], time.perf_counter()))
            save_image(config.out / f"frame-{len(ways):05}", picture.image, config.format, picture.recipe)
    if not ways:
        place = "on stdin" if config.frames == STDIN else f"in {config.frames}"
        raise FewstepError(f"there is no frame {place}", "name a folder of pictures, a video, or -")
    found = rates(ways)
    text = (
        f"{number_of(len(ways), 'frame')} in {config.out}: {found['frames_per_s']:.1f} frames/s,"
        f" each {found['latency_s']:.2f} s on its way"
    )
    return Result({"out": str(config.out), "frames": len(ways), **found}, text)


def rates(ways: list[Way]) -> dict[str, Any]:
    """Frames a second once the first has come out, and the median time from a frame to its picture."""
    seconds = ways[-1].left_s - ways[0].left_s
    latency = median(way.left_s - way.entered_s for way in ways)
    return {"frames_per_s": (len(ways) - 1) / seconds if seconds else 1 / latency, "latency_s": latency}


def noted(frames: Iterable[bytes | Image.Image], entered: list[float]) -> Frames:
    """The frames; when each came in is added to `entered`."""
    for frame in frames:
        entered.append(time.perf_counter())
        yield frame


def frames_of(place: str) -> Frames:
    """The frames of a folder, a video file, or stdin. Raises FewstepError for anything else."""
    path = Path(place)
    if place == STDIN:
        return pictures_in(sys.stdin.buffer)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        return (read_bytes(file) for file in files)
    if path.is_file():
        return video_frames(path)
    raise UsageError(f"{option('frames')} {place} is not there", "name a folder of pictures, a video file, or -")


def pictures_in(pipe: BinaryIO) -> Frames:
    """PNGs and JPEGs that come one after another. Raises FewstepError for anything else, and for one that is cut."""
    data = b""
    while chunk := pipe.read1(CHUNK) if hasattr(pipe, "read1") else pipe.read(CHUNK):
        data += chunk
        while (length := first_length(data)) is not None:
            yield data[:length]
            data = data[length:]
        if len(data) > LARGEST:
            raise FewstepError("a picture on stdin has no end", "send PNG or JPEG pictures one after another")
    if data and not any(start.startswith(data[: len(start)]) for start in ENDS):
        raise no_pictures()
    if data:
        raise FewstepError("the last picture on stdin is cut", "send PNG or JPEG pictures one after another")


def no_pictures() -> FewstepError:
    """What is said of other things on stdin."""
    return FewstepError("stdin holds no PNG or JPEG picture", "send them one after another: ffmpeg -f image2pipe -")


def first_length(data: bytes) -> int | None:
    """The length of the picture that the data begin with; None if it has not all come. Raises FewstepError."""
    if len(data) < len(max(ENDS, key=len)):
        return None
    end = next((end for start, end in ENDS.items() if data.startswith(start)), None)
    if end is None:
        raise no_pictures()
    at = data.find(end)
    return None if at < 0 else at + len(end)


def video_frames(file: Path) -> Frames:
    """The frames of a video. Raises FewstepError if it cannot be read, or the package that reads videos is missing."""
    try:
        import av
    except ModuleNotFoundError:
        raise FewstepError("reading a video needs the package av", 'pip install "fewstep[video]"') from None
    try:
        with av.open(str(file)) as video:
            for frame in video.decode(video=0):
                yield frame.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise FewstepError(
            f"unreadable video: {file} ({error})", "name a video file, or a folder of pictures"
        ) from error
