"""Sources: a new kind is one file in the folder; --data and --reference, the cache and errors take it as any other."""

import textwrap

import pytest
import torch
from PIL import Image

from fewstep.data import sources
from fewstep.data.cache import encode
from fewstep.data.framing import Framing
from fewstep.data.sources import FileSample, SampleList, list_samples, open_source
from fewstep.errors import FewstepError
from fewstep.evaluate.prompts import reference_images
from fewstep.images import placed, read_image
from fewstep.metrics.features import read_real
from fewstep.models.load import load_model

TOY = """
    import io
    from typing import NamedTuple
    from PIL import Image
    from fewstep.data.sources.source import SampleList

    LAYOUT = "toy:N"

    class Square(NamedTuple):
        key: str
        captions: tuple
        size: tuple
        green: int
        stamp: None = None
        columns: dict = {}

        def open(self):
            file = io.BytesIO()
            Image.new("RGB", self.size[::-1], (0, self.green, 0)).save(file, "PNG")
            return file.getvalue() if self.green < 200 else file.getvalue()[:40]

    def takes(given):
        return given.startswith("toy:")

    def open_source(given, captioned, columns):
        greens = range(0, 50 * int(given.removeprefix("toy:")), 50)
        samples = [Square(f"toy/{green}", (f"green {green}",) * (green < 250), (20, 30), green) for green in greens]
        return SampleList(samples, "1 yellow square")
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder of sources with one more file in it."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "toy_squares.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "more")])
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def saved(samples, folder):
    """The same images and captions as a folder."""
    folder.mkdir()
    for number, sample in enumerate(samples):
        (folder / f"{number}.png").write_bytes(sample.open())
        (folder / f"{number}.txt").write_text(sample.captions[0])
    return folder


@pytest.mark.usefixtures("toy")
def test_a_new_source_is_encoded_as_a_folder_of_its_images_is(tiny_model_folder, tmp_path, monkeypatch):
    model = load_model(str(tiny_model_folder))
    listing = list_samples("toy:4")
    assert listing.notes == ("left out of toy:4: 1 yellow square",)
    encoded = encode(listing.samples, model, Framing(16))
    pixels = torch.stack([read_image(sample.open(), 16, 16) for sample in listing.samples])
    torch.testing.assert_close(encoded.latents(range(4)), model.encode(pixels), rtol=2e-3, atol=2e-3)
    samples = list_samples(saved(listing.samples, tmp_path / "folder")).samples
    monkeypatch.setattr(
        "fewstep.data.cache.store.save_file", None
    )  # the cache's content has one key, wherever it is from
    again = encode(samples, model, Framing(16))
    assert torch.equal(again.latents(range(4)), encoded.latents(range(4)))
    assert torch.equal(again.conditioning(range(4)).text, encoded.conditioning(range(4)).text)


@pytest.mark.usefixtures("toy")
def test_data_takes_a_new_source(fewstep, tiny_model_folder, tmp_path):
    small = {"model": tiny_model_folder, "steps": 1, "batch_size": 2, "rank": 1, "size": 16}
    done = fewstep("finetune", data="toy:4", out=tmp_path / "run", **small)
    assert (done.code, "note: left out of toy:4: 1 yellow square" in done.err) == (0, True), done.err
    broken = fewstep("finetune", data="toy:5", out=tmp_path / "other", **small)
    assert broken.code == 1
    assert broken.err.splitlines()[-3].startswith("error: unreadable image: toy/200 (")


class Means(torch.nn.Linear):
    """A network of features: each channel's mean."""

    label, sha256 = "means", "0"

    def forward(self, pixels):
        return super().forward(pixels.mean(dim=(2, 3)))


@pytest.mark.usefixtures("toy")
def test_reference_takes_a_new_source():
    network = Means(3, 3, bias=False)
    network.weight.data.copy_(torch.eye(3))
    samples, notes, _ = reference_images("toy:4")
    real = read_real(samples, "toy:4", 16, network)
    greens = torch.tensor([0, 50, 100, 150]) / 127.5 - 1
    torch.testing.assert_close(real.features.detach(), torch.stack([-torch.ones(4), greens, -torch.ones(4)], dim=1))
    assert notes == ("left out of toy:4: 1 yellow square",)
    with pytest.raises(FewstepError, match=r"^unreadable image: toy/200 \("):
        read_real(reference_images("toy:5").samples, "toy:5", 16, network)
    with pytest.raises(FewstepError, match=r"^reference toy:0: no images in toy:0 .*\n\nhint: images with captions "):
        reference_images("toy:0")


@pytest.mark.usefixtures("toy")
def test_what_a_source_lacks_is_said(tmp_path):
    with pytest.raises(FewstepError, match=r"^no images in toy:0 \(left out: 1 yellow square\)\n\nhint: .* or toy:N$"):
        list_samples("toy:0")
    with pytest.raises(FewstepError, match=r"^no caption for toy/250\n"):
        list_samples("toy:6")
    assert len(list_samples("toy:6", captioned=False).samples) == 6
    with pytest.raises(FewstepError, match=r"^data not found: toi:6\n\nhint: .* or toy:N$"):
        open_source("toi:6")


def test_captions_are_read_only_where_they_are_asked_for(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("größer".encode("latin-1"))
    assert list(open_source(tmp_path, captioned=False)) == [FileSample(tmp_path / "a.png", ())]
    with pytest.raises(FewstepError, match="is not UTF-8"):
        list_samples(tmp_path)


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_the_parts_of_a_source_are_the_source(of):
    samples = [FileSample(f"{number}.png", (str(number),)) for number in range(5)]
    whole = SampleList(samples, "1 .gif file")
    parts = [whole.part(rank, of) for rank in range(of)]
    assert sorted(sample for part in parts for sample in part) == list(whole) == list(whole)
    assert max(len(part.samples) for part in parts) - min(len(part.samples) for part in parts) <= 1


@pytest.mark.usefixtures("toy")
def test_the_network_is_told_the_sizes_of_images_and_cuts(tiny_sdxl_folder):
    model, samples = load_model(str(tiny_sdxl_folder)), list_samples("toy:3").samples
    _, left, top = placed((30, 20), 16, 16)
    sizes = encode(samples, model, Framing(16)).conditioning(range(3)).sizes
    assert sizes.tolist() == [[20, 30, top, left, 16, 16]] * 3


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FewstepError, match=r"^image not found: .*absent\.png"):
        FileSample(tmp_path / "absent.png", ()).open()
    with pytest.raises(FewstepError, match=r"^unreadable image: .* \(Is a directory\)"):
        FileSample(tmp_path, ()).open()
