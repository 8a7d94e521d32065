"""The cache of latents and embeddings: used when nothing changed, and only then."""

import copy
import os
import shutil
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fewstep.data.cache import INDEX, Encoded, encode, read_index, store
from fewstep.data.cache.ahead import ahead
from fewstep.data.cache.batches import at_once
from fewstep.data.cache.encoded import Table
from fewstep.data.cache.index import Rows, write_index
from fewstep.data.cache.store import Keys, Store, as_array
from fewstep.data.framing import Framing, ImageFacts
from fewstep.data.sources import FileSample, list_samples
from fewstep.errors import FewstepError
from fewstep.images import read_image
from fewstep.models.load import load_model
from fewstep.models.model import Model

SQUARE = Framing(16)


class Counting(Model):
    """A model that counts the batches of images and captions it encodes."""

    encoded = embedded = 0

    def posterior(self, pixels):
        Counting.encoded += 1
        return super().posterior(pixels)

    def embed(self, prompts):
        Counting.embedded += 1
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
    """Six images of this test's own, and a cache of its own: batches of two, files of two rows."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "MOST_ROWS", 2)
    for module in ("encoding", "batches"):
        monkeypatch.setattr(f"fewstep.data.cache.{module}.BATCH", 2)
    return list_samples(shutil.copytree(tiny_data_folder, tmp_path / "images")).samples


def files(tmp_path, kind="*-*"):
    return sorted((tmp_path / "cache" / "encoded").glob(f"{kind}/*"))


def test_what_is_read_is_what_the_model_makes(samples, model):
    encoded = encode(samples, model, SQUARE)
    assert len(encoded) == 6
    order = [5, 0, 4, 3]  # across files
    pixels = torch.stack([read_image(samples[i].path, 16, 16) for i in order])
    latents = encoded.latents(order)
    assert latents.shape == (4, 4, 8, 8)
    torch.testing.assert_close(latents, model.encode(pixels), rtol=2e-3, atol=2e-3)
    text = encoded.conditioning(order).text
    assert text.dtype == torch.float32
    torch.testing.assert_close(text, model.embed([samples[i].captions[0] for i in order]).text, rtol=2e-3, atol=2e-3)


def test_the_second_time_calls_no_model_and_reads_no_image(samples, model, tmp_path, monkeypatch):
    first = encode(samples, model, SQUARE)
    assert (Counting.encoded, Counting.embedded) == (3, 3)
    monkeypatch.setattr(FileSample, "open", lambda sample: pytest.fail("an image was read"))
    again = encode(samples, model, SQUARE)
    assert torch.equal(again.latents(range(6)), first.latents(range(6)))
    assert again.identity == first.identity
    encode(samples[:5], model, SQUARE)  # another set of the same images: what they are is remembered
    assert (Counting.encoded, Counting.embedded) == (3, 3)
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 6  # and nothing half-written


def change_caption(samples, model, framing):
    return [*samples[:5], FileSample(samples[5].path, ("another caption",))], model, framing


def change_image(samples, model, framing):
    Image.new("RGB", (16, 16), "red").save(samples[5].path)
    return samples, model, framing


def change_size(samples, model, framing):
    return samples, model, Framing(8)


def add_image(samples, model, framing):
    Image.new("RGB", (16, 16), "red").save(samples[0].path.with_name("a.png"))
    return [FileSample(samples[0].path.with_name("a.png"), samples[0].captions), *samples], model, framing


def move_images(samples, model, framing):
    folder = shutil.copytree(samples[0].path.parent, samples[0].path.parents[1] / "moved")
    return list_samples(folder).samples, model, framing


def flip(samples, model, framing):
    return samples, model, Framing(16, flip=True)


def change_encoder(samples, model, framing):
    vae = copy.deepcopy(model.vae)
    vae.encoder.conv_in.bias[0] += 0.1
    return samples, replace(model, vae=vae), framing


def change_decoder(samples, model, framing):
    vae = copy.deepcopy(model.vae)
    vae.decoder.conv_in.bias[0] += 0.1
    return samples, replace(model, vae=vae), framing


def change_text_encoder(samples, model, framing):
    folder = Path(shutil.copytree(model.path, samples[0].path.parents[1] / "other"))
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    return samples, replace(model, path=folder), framing


@pytest.mark.parametrize(
    ("change", "images", "captions"),
    [
        (change_caption, 0, 1),
        (change_image, 1, 0),
        (change_size, 3, 0),
        (add_image, 1, 0),
        (move_images, 0, 0),
        (flip, 6, 0),
        (change_encoder, 3, 0),
        (change_decoder, 0, 0),
        (change_text_encoder, 0, 3),
    ],
)
def test_a_change_is_encoded_anew_and_nothing_else(samples, model, change, images, captions):
    before = encode(samples, model, SQUARE)
    changed = encode(*change(samples, model, SQUARE))
    assert (Counting.encoded, Counting.embedded) == (3 + images, 3 + captions)
    assert (changed.identity == before.identity) == (change in (move_images, change_decoder))


def test_an_image_that_is_there_twice_is_encoded_once_and_is_two_samples(samples, model):
    encoded = encode([samples[0], samples[0], samples[1]], model, SQUARE)
    x = encoded.latents([0, 1, 2])
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])


def test_the_unet_does_not_matter(samples, model, tmp_path):
    encode(samples, model, SQUARE)
    folder = Path(shutil.copytree(model.path, tmp_path / "other"))
    shutil.rmtree(folder / "unet")
    encode(samples, replace(model, path=folder), SQUARE)
    assert Counting.encoded == 3


class Interrupting(Counting):
    """A model that is interrupted before its third batch of images."""

    def posterior(self, pixels):
        if Counting.encoded >= 2:
            raise KeyboardInterrupt
        return super().posterior(pixels)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_run_keeps_what_it_has_and_ends_with_the_same_bits(
    samples, model, tmp_path, monkeypatch, workers
):
    framing = Framing(16, multiple=2, buckets=True, flip=True)
    for sample, size in zip(samples, islice(cycle([(16, 16), (32, 16)]), 6), strict=True):
        Image.open(sample.path).resize(size).save(sample.path)
    whole = encode(samples, model, framing)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "other"))
    Counting.encoded = 0
    with pytest.raises(KeyboardInterrupt):
        encode(samples, Interrupting(**vars(model)), framing, workers=workers)
    assert Counting.encoded == 2
    encoded = encode(samples, model, framing, workers=workers)
    assert Counting.encoded == 6
    for group, other in zip(encoded.groups, whole.groups, strict=True):
        assert torch.equal(group, other)
        for view in (0, 1):
            same = group.tolist(), [view] * len(group)
            assert torch.equal(encoded.latents(*same), whole.latents(*same))


def test_an_unreadable_image_is_named_and_earlier_ones_stay(samples, model, tmp_path):
    samples[5].path.write_bytes(samples[5].path.read_bytes()[:100])
    with pytest.raises(FewstepError, match=rf"^unreadable image: .*{samples[5].path.name}"):
        encode(samples, model, SQUARE)
    assert len(files(tmp_path, "latents-*")) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"", lambda data: b"junk" * 100])
def test_a_damaged_file_is_encoded_anew(samples, model, tmp_path, damage):
    whole = encode(samples, model, SQUARE).latents(range(6))
    paths = files(tmp_path)
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(encode(samples, model, SQUARE).latents(range(6)), whole)
    assert (Counting.encoded, Counting.embedded) == (6, 6)
    for path in paths:
        with safe_open(path, "pt") as file:
            assert "values" in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("name", ["images.sqlite", "sets"])
def test_without_what_is_remembered_nothing_is_encoded_anew(samples, model, tmp_path, name):
    first = encode(samples, model, SQUARE)
    for path in (tmp_path / "cache" / "encoded" / name, tmp_path / "cache" / "encoded" / "sets"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (tmp_path / "cache" / "encoded" / "images.sqlite").write_bytes(b"junk")
    again = encode(samples, model, SQUARE)
    assert torch.equal(again.latents(range(6)), first.latents(range(6)))
    assert Counting.encoded == 3


def test_samples_that_only_their_content_tells_are_known_by_it(samples, model, monkeypatch):
    monkeypatch.setattr(FileSample, "stamp", None)
    encode(samples, model, SQUARE)
    encode(samples, model, SQUARE)
    assert Counting.encoded == 3
    change_image(samples, model, SQUARE)
    encode(samples, model, SQUARE)
    assert Counting.encoded == 4


def test_a_folder_of_its_own_can_be_moved(samples, model, tmp_path):
    first = encode(samples, model, SQUARE, tmp_path / "set")
    shutil.move(tmp_path / "set", tmp_path / "elsewhere")
    moved = read_index(tmp_path / "elsewhere" / INDEX)
    assert moved.identity == first.identity
    assert torch.isfinite(moved.latents(range(6))).all()
    change_caption_of = change_caption(samples, model, SQUARE)[0]
    changed = encode(change_caption_of, model, SQUARE, tmp_path / "elsewhere")
    assert changed.identity == read_index(tmp_path / "elsewhere" / INDEX).identity != first.identity
    assert Counting.encoded == 3


def test_several_captions_are_all_there(samples, model):
    more = [FileSample(s.path, (*s.captions, f"{i} again")[: 1 + i % 2]) for i, s in enumerate(samples)]
    encoded = encode(more, model, SQUARE)
    assert [encoded.captions(i) for i in range(6)] == [1, 2] * 3
    text = encoded.conditioning([1, 1, 3], captions=[0, 1, 1]).text
    expected = model.embed([samples[1].captions[0], "1 again", "3 again"]).text
    torch.testing.assert_close(text, expected, rtol=2e-3, atol=2e-3)


def test_views_are_what_they_say(samples, model):
    encoded = encode(samples, model, Framing(16, flip=True, deviations=True))
    pixels = read_image(samples[2].path, 16, 16)[None]
    mean, deviation = model.posterior(pixels.flip(3))
    torch.testing.assert_close(encoded.latents([2], [1]), mean, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(encoded.deviations([2], [1]), deviation, rtol=2e-3, atol=2e-3)
    assert encode(samples, model, SQUARE).deviations([2]) is None


def test_keys_are_found_where_they_are_and_only_there():
    random = np.random.default_rng(0)
    keys = random.integers(0, 256, (1000, 16), dtype=np.uint8)
    keys[500:, :8] = keys[:500, :8]  # half of them begin alike
    places = np.stack([np.arange(1000), np.arange(1000) % 7], 1).astype(np.int32)
    found = Keys(keys, places).find(keys[::-1])
    assert (found == places[::-1]).all()
    others = keys.copy()
    others[:, 15] ^= 1
    assert (Keys(keys, places).find(others) == -1).all()
    assert keys[3].tobytes() in Keys(keys, places)
    assert (Keys(as_array([]), places[:0]).find(keys) == -1).all()


def test_files_that_go_away_while_they_are_written_are_named(samples, model, tmp_path, monkeypatch):
    message = r"^files of the cache .* went away while it was written\n\nhint: run it again$"
    with pytest.raises(FewstepError, match=message):
        Rows(Store(tmp_path), as_array([bytes(16)])).awaited()
    monkeypatch.setattr(Store, "read", lambda self: ([], Keys(as_array([]), np.zeros((0, 2), np.int32))))
    with pytest.raises(FewstepError, match=message):
        encode(samples, model, SQUARE)


def test_the_index_of_many_samples_opens_in_a_second(tmp_path):
    """A million rows take a second; here are 200,000, and a fifth of it."""
    count, rows = 200_000, 1024
    numbers = torch.arange(count)
    places = torch.stack([numbers // rows, numbers % rows], 1).int()
    paths = [tmp_path / f"{number:04}" for number in range(-(-count // rows))]
    for path in paths:
        path.write_bytes(b"rows")
    written = Encoded(
        Table(paths, places), Table(paths, places.clone()), first_captions=torch.arange(count + 1), identity="i"
    )
    write_index(tmp_path / INDEX, written)
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        found = read_index(tmp_path / INDEX)
        took.append(time.perf_counter() - begun)
    assert len(found) == count
    assert torch.equal(found.images.places, places)
    assert min(took) < 0.2
    paths[77].write_bytes(b"row")
    assert read_index(tmp_path / INDEX) is None


def test_work_ahead_keeps_the_order_and_stops_with_who_asks():
    begun = []

    def slow_where_even(number):
        begun.append(number)
        time.sleep(0.002 * (number % 2 == 0))
        return number

    assert list(ahead(slow_where_even, range(20), 3)) == list(range(20))
    begun.clear()
    items = ahead(slow_where_even, range(10_000), 2)
    assert next(items) == 0
    items.close()
    assert len(begun) < 30


def test_large_pictures_are_fewer_in_a_batch(samples, model, monkeypatch):
    monkeypatch.setattr("fewstep.data.cache.batches.PIXELS", 2 * 16**2)
    assert [at_once(shape) for shape in ((8, 8), (16, 16), (16, 18), (64, 64))] == [2, 2, 1, 1]
    encode(samples, model, Framing(18))
    assert Counting.encoded == 6


def test_a_store_that_is_used_is_not_old(samples, model, tmp_path):
    encode(samples, model, SQUARE)
    folders = [path for path in (tmp_path / "cache" / "encoded").iterdir() if path.is_dir()]
    assert len(folders) == 3
    for folder in folders:
        os.utime(folder, (0, 0))
    encode(samples, model, SQUARE)
    assert min(folder.stat().st_mtime for folder in folders) > time.time() - 3600


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_told_of_the_image_as_it_is_seen(samples, model, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.linear_gradient("L").resize((30, 20))
    image.save(tmp_path / "turned.png", exif=exif)
    (image if orientation < 5 else image.rotate(90, expand=True)).save(tmp_path / "plain.png")
    turned = encode([FileSample(tmp_path / f"{name}.png", ("a",)) for name in ("turned", "plain")], model, SQUARE)
    rows = turned.images.rows([0, 1], "sizes")
    assert torch.equal(rows[0], rows[1])
    expected = (20, 30, 0, 4) if orientation < 5 else (30, 20, 4, 0)
    assert rows[0].tolist() == [*expected, 16, 16]


# Framing


def test_shapes_have_the_squares_area_on_a_grid():
    for size, multiple in ((512, 8), (1024, 8), (768, 8), (16, 2), (32, 1)):
        framing = Framing(size, multiple, buckets=True)
        assert (size, size) in framing.shapes
        assert {(b, a) for a, b in framing.shapes} == set(framing.shapes)
        for height, width in framing.shapes:
            assert height % multiple == width % multiple == 0
            assert 0.75 * size**2 < height * width <= size**2
    assert len(Framing(512, 8, buckets=True).shapes) == 9


def test_an_image_gets_the_nearest_shape_and_loses_little():
    framing = Framing(512, 8, buckets=True)
    assert framing.shape_of(3000, 2000) == (640, 384) or framing.shape_of(3000, 2000) == (576, 448)
    assert framing.shape_of(500, 501) == (512, 512)
    assert framing.shape_of(10, 1000) == (256, 1024)
    assert framing.cut_away(2000, 3000) < 0.15 < 0.3 < Framing(512).cut_away(2000, 3000)


def test_cuts_lie_inside_and_depend_on_the_content_alone():
    framing = Framing(16, crops=8, flip=True)
    facts = ImageFacts(b"a" * 16, 20, 64)
    views = list(framing.views_of(facts))
    assert len(views) == framing.views == 16
    assert views == list(framing.views_of(facts))
    assert all(view.top == 0 and 0 <= view.left <= 51 - 16 for view in views)
    assert len({view.left for view in views}) > 4
    assert len({view.key(facts) for view in views}) == len({(v.left, v.flip) for v in views})
    straight, mirrored = views[:2]
    assert straight.sizes(facts) == (20, 64, 0, straight.left, 16, 16)
    assert mirrored.sizes(facts) == (20, 64, 0, 51 - 16 - straight.left, 16, 16)
    assert views != list(framing.views_of(facts._replace(content=b"b" * 16)))
