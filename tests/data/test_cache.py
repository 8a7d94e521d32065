"""The cache of latents and embeddings: used when nothing changed, and only then."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fewstep.data import cache
from fewstep.data.cache import encode
from fewstep.data.sources import FileSample, list_samples
from fewstep.errors import FewstepError
from fewstep.images import read_image
from fewstep.models.load import load_model
from fewstep.models.model import Model


class Counting(Model):
    """A model that counts the images and captions it encodes."""

    encoded = embedded = 0

    def encode(self, pixels):
        Counting.encoded += len(pixels)
        return super().encode(pixels)

    def embed(self, prompts):
        Counting.embedded += len(prompts)
        return super().embed(prompts)


@pytest.fixture(scope="module")
def loaded(tiny_model_folder):
    return load_model(str(tiny_model_folder))


@pytest.fixture
def model(loaded):
    Counting.encoded = Counting.embedded = 0
    return Counting(**vars(loaded))


@pytest.fixture
def samples(tiny_data_folder, tmp_path, monkeypatch):
    """Six images of this test's own, and a cache of its own, in chunks of four."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CHUNK", 4)
    return list_samples(shutil.copytree(tiny_data_folder, tmp_path / "images")).samples


def files(tmp_path):
    return sorted((tmp_path / "cache" / "encoded").iterdir())


def test_what_is_read_is_what_the_model_makes(samples, model):
    encoded = encode(samples, model, 16)
    assert len(encoded) == 6
    order = [5, 0, 4, 3]  # across chunks
    pixels = torch.stack([read_image(samples[i].path, 16, 16) for i in order])
    latents = encoded.latents(order)
    assert latents.shape == (4, 4, 8, 8)
    torch.testing.assert_close(latents, model.encode(pixels), rtol=1e-5, atol=1e-5)
    text = encoded.conditioning(order).text
    assert text.dtype == torch.float32
    torch.testing.assert_close(text, model.embed([samples[i].captions[0] for i in order]).text, rtol=2e-3, atol=2e-3)


def test_the_second_time_calls_no_model(samples, model, tmp_path):
    first = encode(samples, model, 16).latents(range(6))
    assert Counting.encoded == 6
    assert torch.equal(encode(samples, model, 16).latents(range(6)), first)
    assert Counting.encoded == 6
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 4  # and nothing half-written


def change_caption(samples, model, size):
    return [*samples[:5], FileSample(samples[5].path, ("another caption",))], model, size


def change_image(samples, model, size):
    Image.new("RGB", (16, 16), "red").save(samples[5].path)
    return samples, model, size


def change_size(samples, model, size):
    return samples, model, 8


def change_encoder(samples, model, size):
    vae = copy.deepcopy(model.vae)
    vae.encoder.conv_in.bias[0] += 0.1
    return samples, replace(model, vae=vae), size


def change_decoder(samples, model, size):
    vae = copy.deepcopy(model.vae)
    vae.decoder.conv_in.bias[0] += 0.1
    return samples, replace(model, vae=vae), size


def change_text_encoder(samples, model, size):
    folder = Path(shutil.copytree(model.path, samples[0].path.parents[1] / "other"))
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    return samples, replace(model, path=folder), size


@pytest.mark.parametrize(
    ("change", "images", "captions"),
    [
        (change_caption, 0, 2),
        (change_image, 2, 0),
        (change_size, 6, 0),
        (change_encoder, 6, 0),
        (change_decoder, 0, 0),
        (change_text_encoder, 0, 6),
    ],
)
def test_a_change_is_encoded_anew_and_only_its_chunks(samples, model, change, images, captions):
    encode(samples, model, 16)
    encode(*change(samples, model, 16))
    assert (Counting.encoded, Counting.embedded) == (6 + images, 6 + captions)


def test_the_unet_does_not_matter(samples, model, tmp_path):
    encode(samples, model, 16)
    folder = Path(shutil.copytree(model.path, tmp_path / "other"))
    shutil.rmtree(folder / "unet")
    encode(samples, replace(model, path=folder), 16)
    assert Counting.encoded == 6


def test_an_interrupted_run_keeps_its_whole_chunks(samples, model, tmp_path):
    class Interrupting(Counting):
        def encode(self, pixels):
            if Counting.encoded >= 4:
                raise KeyboardInterrupt
            return super().encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode(samples, Interrupting(**vars(model)), 16)
    assert len(files(tmp_path)) == 2
    encode(samples, model, 16)
    assert Counting.encoded == 6


def test_an_unreadable_image_is_named_and_earlier_chunks_stay(samples, model, tmp_path):
    samples[5].path.write_bytes(samples[5].path.read_bytes()[:100])
    with pytest.raises(FewstepError, match=rf"^unreadable image: .*{samples[5].path.name}"):
        encode(samples, model, 16)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"", lambda data: b"junk" * 100])
def test_a_damaged_file_is_encoded_anew(samples, model, tmp_path, damage):
    whole = encode(samples, model, 16).latents(range(6))
    paths = files(tmp_path)
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(encode(samples, model, 16).latents(range(6)), whole)
    assert (Counting.encoded, Counting.embedded) == (12, 12)
    for path in paths:
        with safe_open(path, "pt") as file:
            assert "values" in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_told_of_the_image_as_it_is_seen(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.linear_gradient("L").resize((30, 20))
    image.save(tmp_path / "turned.png", exif=exif)
    (image if orientation < 5 else image.rotate(90, expand=True)).save(tmp_path / "plain.png")
    assert cache._sizes(tmp_path / "turned.png", 16) == cache._sizes(tmp_path / "plain.png", 16)
    height, width, top, left, *_ = cache._sizes(tmp_path / "turned.png", 16)
    assert ((height, width), (top, left)) == (((20, 30), (0, 4)) if orientation < 5 else ((30, 20), (4, 0)))
