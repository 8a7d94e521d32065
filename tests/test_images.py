"""Pictures in: on white, scaled to cover, cut at the centre. Pictures out: with their recipe inside."""

import json
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fewstep.errors import FewstepError, printable
from fewstep.images import image_size, is_picture, read_image, read_mask, recipe_in, save_image, to_image, words_of


def save(path, array):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def test_pixels_are_exact_when_the_size_is_right(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = read_image(save(tmp_path / "x.png", array), width=8, height=6)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 6, 8)
    expected = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


@pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])
def test_the_centre_is_cut_out(tmp_path, wide):
    thirds = np.zeros((4, 12, 3))
    thirds[:, :4], thirds[:, 4:8], thirds[:, 8:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    pixels = read_image(save(tmp_path / "x.png", thirds if wide else thirds.transpose(1, 0, 2)), 4, 4)
    green = torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1).expand(3, 4, 4)
    assert torch.equal(pixels, green)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (5, 9), (9, 5), (3, 3), (16, 8)])
def test_a_small_picture_covers_what_is_asked(tmp_path, width, height):
    pixels = read_image(save(tmp_path / "x.png", np.full((5, 7, 3), 255)), width, height)
    assert pixels.shape == (3, height, width)
    assert torch.equal(pixels, torch.ones(3, height, width))  # no border of another colour


def test_transparency_lies_on_white(tmp_path):
    array = np.zeros((4, 4, 4))
    array[:2, :, 3] = 255  # black above, and black that cannot be seen below
    pixels = read_image(save(tmp_path / "x.png", array), 4, 4)
    assert torch.equal(pixels[:, :2], -torch.ones(3, 2, 4))
    assert torch.equal(pixels[:, 2:], torch.ones(3, 2, 4))


def test_a_palette_with_transparency_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info["transparency"] = 0
    image.save(tmp_path / "x.png", transparency=0)
    assert torch.equal(read_image(tmp_path / "x.png", 4, 4), torch.ones(3, 4, 4))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16"])
def test_other_modes_are_read(tmp_path, mode):
    name = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (4, 4)).save(name)
    assert read_image(name, 4, 4).isfinite().all()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_they_are_seen(tmp_path, suffix, orientation):
    path, lossless = tmp_path / f"x.{suffix}", {"lossless": True} if suffix == "webp" else {}
    array = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(array).save(path, exif=exif(orientation), **lossless)
    with Image.open(path) as file:
        seen = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    assert seen.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    height, width = seen.shape[:2]
    assert image_size(path) == (width, height)
    assert torch.equal(read_image(path, width, height), torch.tensor(seen).permute(2, 0, 1).float() / 127.5 - 1)
    grey = torch.tensor(np.array(Image.fromarray(seen).convert("L"))).float() / 255
    assert torch.equal(read_mask(path, width, height)[0], grey)


@pytest.mark.parametrize("tags", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0", b"Exif\0\0junk junk junk", exif(9), exif(0)])
def test_a_damaged_orientation_turns_nothing(tmp_path, tags):
    Image.new("RGB", (4, 2)).save(tmp_path / "x.jpg", exif=tags)
    assert image_size(tmp_path / "x.jpg") == (4, 2)


SIXTEEN = np.array([[0, 257, 1000, 32768, 65535, 128 * 257, 65407, 65406]], dtype=np.uint16)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(path, channels):
    """A PNG of SIXTEEN with 16 bits in each of its channels, which Pillow does not write."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", SIXTEEN.size, 1, 16, kind, 0, 0, 0)
    values = np.repeat(SIXTEEN, channels).reshape(-1, channels).astype(">u2")
    if channels in (2, 4):
        values[:, -1] = 65535
    row = zlib.compress(b"\0" + values.tobytes())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["I;16", "I", "I;16B", "pgm", "png1", "png2", "png3", "png4"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, kind):
    path = tmp_path / ("x.pgm" if kind == "pgm" else "x.tif" if kind[0] == "I" else "x.png")
    if kind.startswith("png"):
        png16(path, int(kind[3]))
    else:
        values = SIXTEEN.astype({"I": np.int32, "I;16B": ">u2"}.get(kind, np.uint16))
        Image.fromarray(values).save(path)
    with Image.open(path) as file:
        assert kind[0] != "I" or file.mode == kind
    read = (read_image(path, SIXTEEN.size, 1)[:, 0] + 1) * 127.5
    exact = torch.tensor(SIXTEEN[0].astype(np.float32)) / 257
    assert torch.equal(read, read[:1].expand_as(read))  # grey
    assert (read - exact).abs().max() < 1  # Pillow itself takes the high byte of colour
    assert (read[0, [0, 1, 4, 5]] - torch.tensor([0, 1, 255, 128.0])).abs().max() < 1e-4
    if kind in ("I;16", "I", "I;16B", "pgm", "png1"):
        assert (read - exact).abs().max() <= 0.5
        torch.testing.assert_close(read_mask(path, SIXTEEN.size, 1)[0, 0], exact.round() / 255)


@pytest.mark.parametrize("values", [np.float32([[0, 1]]), np.int32([[0, 70_000]]), np.int32([[-1, 5]])])
def test_values_whose_white_nobody_says_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(FewstepError, match=r"^unreadable image: .*x\.tif \(grey of 32 bits; save it with 8 or 16 bits"):
        read_image(tmp_path / "x.tif", 2, 1)


def test_a_missing_picture(tmp_path):
    with pytest.raises(FewstepError, match=r"^image not found: .*x\.png\n\nhint: check the path$"):
        read_image(tmp_path / "x.png", 4, 4)


def test_unreadable_pictures(tmp_path):
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3))).read_bytes()
    contents = {
        "cut.png": whole[: len(whole) // 2],
        "text.png": b"no picture",
        "empty.png": b"",
        "head.png": whole[:20],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            FewstepError, match=rf"^unreadable image: .*{name} \(.*\)\n\nhint: replace the file"
        ) as caught:
            read_image(tmp_path / name, 4, 4)
        assert str(caught.value).count(name) == 1


def test_a_pointer_in_place_of_a_picture_is_named(tmp_path):
    (tmp_path / "x.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(
        FewstepError, match=r"^.*x\.png is a Git LFS pointer, not the file itself\n\nhint: run `git lfs"
    ):
        read_image(tmp_path / "x.png", 4, 4)


def test_paths_that_lead_to_no_file(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("loop.png", "folder.png", "n" * 300 + ".png", "n\0l.png"):
        with pytest.raises(FewstepError, match=r"^unreadable image: |^image .* is a folder\n") as caught:
            read_image(tmp_path / name, 4, 4)
        assert str(caught.value).count(printable(name)) == 1


def test_a_large_picture_is_read_without_a_word(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert image_size(save(tmp_path / "x.png", np.zeros((8, 8, 3)))) == (8, 8)
    assert not recwarn.list


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(FewstepError, match=r"^unreadable image: .*exceeds limit"):
        read_image(save(tmp_path / "x.png", np.zeros((8, 8, 3))), 4, 4)


def test_the_recipe_is_in_the_png(tmp_path):
    recipe = {"prompt": "a fox — ein Fuchs 狐", "steps": 4, "lora": []}
    pixels = torch.linspace(-1, 1, 3 * 4 * 6).view(3, 4, 6)
    save_image(tmp_path / "new" / "x", to_image(pixels), "png", recipe)
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert json.loads(image.text["fewstep"]) == recipe
        assert image.size == (6, 4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]


@pytest.mark.parametrize(("kind", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_every_kind_of_file_carries_the_recipe(tmp_path, kind, suffix):
    recipe = {"prompt": 'a fox — ein Fuchs 狐 \n"', "fewstep": "1"}
    pixels = torch.linspace(-1, 1, 3 * 32 * 48).view(3, 32, 48)
    path = save_image(tmp_path / "a.b", to_image(pixels), kind, recipe)
    assert path == tmp_path / f"a.b{suffix}"
    assert recipe_in(path) == recipe
    assert is_picture(path)
    with Image.open(path) as image:
        assert image.format.lower() == kind
        wrong = np.abs(np.asarray(image).astype(int) - np.asarray(to_image(pixels)))
    assert wrong.max() == 0 if kind == "png" else 0 < wrong.mean() < 3
    bare = save_image(tmp_path / "bare", to_image(pixels), kind)
    with pytest.raises(FewstepError, match=r"bare.* carries no recipe of fewstep\n"):
        recipe_in(bare)


def test_a_recipe_that_is_none_of_ours_or_too_long_is_refused(tmp_path):
    image = Image.new("RGB", (8, 8))
    for number, other in enumerate(({"prompt": "x"}, ["fewstep"], "fewstep")):
        with pytest.raises(FewstepError, match="carries no recipe"):
            recipe_in(save_image(tmp_path / str(number), image, "jpeg", other))
    with pytest.raises(FewstepError, match="does not fit into a jpeg"):
        save_image(tmp_path / "long", image, "jpeg", {"prompt": "x" * 70_000, "fewstep": "1"})
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "text").write_text("no picture")
    assert not is_picture(tmp_path / "text")
    assert not is_picture(tmp_path / "none")
    with pytest.raises(FewstepError, match=r"^unreadable image"):
        recipe_in(tmp_path / "text")


def test_saving_and_reading_agree_within_rounding(tmp_path):
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_image(tmp_path / "x", to_image(pixels), "png", {})
    assert (read_image(tmp_path / "x.png", 8, 8) - pixels).abs().max() <= 0.5 / 127.5 + 1e-6


def test_values_outside_are_clamped():
    image = to_image(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).expand(3, 1, 5))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A red fox, in the snow!", "a-red-fox-in-the-snow"),
        ("../../x.png\0\n", "x-png"),
        ("_a__b_", "a-b"),
        ("ein großer Fuchs", "ein-großer-fuchs"),
        ("cafe\u0301 crème", "café-crème"),
        ("狐は赤い。雪", "狐は赤い-雪"),
        ("लाल लोमड़ी", "लाल-लोमड़ी"),
        ("สุนัขจิ้งจอก สีแดง", "สุนัขจิ้งจอก-สีแดง"),
        ("ثعلب أحمر، في الثلج", "ثعلب-أحمر-في-الثلج"),
        ("می\u200cخواهم", "میخواهم"),
        ("красная лиса 7", "красная-лиса-7"),
        ("여우 한 마리", "여우-한-마리"),
        ("🦊 ...", "image"),
        ("", "image"),
        ("x" * 60, "x" * 48),
        ("x" * 47 + " y", "x" * 47),
    ],
)
def test_files_are_named_for_the_words_of_any_script(prompt, words):
    assert words_of(prompt) == unicodedata.normalize("NFC", words)


def test_names_are_short_enough_for_file_systems():
    assert len(words_of("𠀀" * 100).encode()) + len("-9223372036854775807-10000.png") + len("..12345678.png") < 255


def test_letters_that_the_file_system_lacks_are_left_out(monkeypatch):
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "latin-1")
    assert words_of("größer 狐 fox") == "größer-fox"
    assert words_of("狐") == "image"
