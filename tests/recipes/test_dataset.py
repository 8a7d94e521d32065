"""The emoji image folder: names, the held-out choice, and a folder built from small tarballs."""

import hashlib
import io
import json
import tarfile

import pytest

from fewstep.errors import FewstepError

pytest.importorskip("resvg_py")
Image = pytest.importorskip("PIL.Image")
from recipes.emoji import dataset, drawing, packages  # noqa: E402
from recipes.emoji.drawing import SourceDrawing  # noqa: E402
from recipes.emoji.names import (  # noqa: E402
    code_points,
    is_held_out,
    match_files,
    match_icons,
    old_names,
    squash,
)

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
DISC = f'{HEAD}<circle cx="50" cy="50" r="48" fill="#ff0000"/></svg>'
SMALL = f'{HEAD}<rect x="10" y="10" width="20" height="20" fill="#0000ff"/></svg>'
EMPTY = f"{HEAD}</svg>"
BROKEN = "<svg"
FIELDS = {"file_name", "text", "style", "concept", "label", "tags", "group", "split", "license"}


def concept(hexcode, label, order, group=3):
    return {"hexcode": hexcode, "label": label, "tags": [label], "group": group, "order": order}


EMOJIBASE = [
    concept("1F431", "cat face", 2),
    concept("2764-FE0F", "red heart", 1, 0),
    concept("25AA-FE0F", "black small square", 3, 8),
    concept("1F914", "thinking face", 4, 0),
    concept("1F915", "bandaged face", 5, 0),
    concept("1F1E6", "regional indicator A", 6, 2),
    concept("1F3C1", "chequered flag", 7, 9),
]
GROUPS = {"groups": {"0": "smileys-emotion", "2": "component", "3": "animals-nature", "8": "symbols", "9": "flags"}}


def write_tarball(folder, package, files, monkeypatch):
    """A tarball that passes for `package`: its own sha256 is pinned instead."""
    version, _ = packages.PACKAGES[package]
    file = folder / packages.tarball_name(package, version)
    with tarfile.open(file, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    pinned = (version, hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(packages.PACKAGES, package, pinned)
    return file


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    folder = tmp_path / "downloads"
    folder.mkdir()
    base = {"en/data.json": json.dumps(EMOJIBASE), "meta/groups.json": json.dumps(GROUPS)}
    write_tarball(folder, "emojibase-data", base, monkeypatch)
    flat = {
        "1f431": DISC,
        "2764-fe0f": DISC,
        "25aa-fe0f": SMALL,
        "1f914": EMPTY,
        "1f915": BROKEN,
        "1f3c1": DISC,
    }
    files = {f"assets/{code}.svg": text for code, text in flat.items()}
    write_tarball(folder, "@lobehub/fluent-emoji-flat", files, monkeypatch)
    book = {
        "width": 100,
        "height": 100,
        "icons": {"cat-face": {"body": '<rect width="50" height="100"/>'}},
        "aliases": {"red-heart": {"parent": "cat-face", "hFlip": True}},
    }
    noto = {
        "icons.json": json.dumps(book),
        "chars.json": json.dumps({"1f431": "cat-face", "2764": "red-heart", "1f914": "gone"}),
    }
    write_tarball(folder, "@iconify-json/noto", noto, monkeypatch)
    return folder


def build(tmp_path, downloads):
    return dataset.build(tmp_path / "out", downloads, 32, ("fluent-flat", "noto"), processes=1)


def test_folder_from_small_tarballs(tmp_path, downloads):
    lines = build(tmp_path, downloads)
    out = tmp_path / "out"
    assert [line["file_name"] for line in lines] == [
        "fluent-flat/2764.png",
        "fluent-flat/1f431.png",
        "fluent-flat/25aa.png",
        "noto/2764.png",
        "noto/1f431.png",
    ]
    assert lines == dataset.read_metadata(out)
    assert set(lines[1]) == FIELDS
    assert lines[1]["text"] == "flat emoji of cat face"
    assert lines[1]["group"] == "animals-nature"
    for line in lines:
        with Image.open(out / line["file_name"]) as image:
            assert image.size == (32, 32)
            assert image.mode == "RGB"
    skipped = json.loads((out / "dataset.json").read_text())["skipped"]
    assert skipped["fluent-flat/1f914.png"] == "empty"
    assert skipped["fluent-flat/1f915.png"].startswith("broken")
    assert (out / "contact-sheet.png").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert "fluent-flat" in dataset.table(lines)


def test_flipped_alias_is_drawn_flipped(tmp_path, downloads):
    build(tmp_path, downloads)
    with (
        Image.open(tmp_path / "out/noto/1f431.png") as left,
        Image.open(tmp_path / "out/noto/2764.png") as right,
    ):
        assert left.getpixel((4, 16)) == (0, 0, 0)
        assert left.getpixel((28, 16)) == (255, 255, 255)
        assert right.getpixel((4, 16)) == (255, 255, 255)
        assert right.getpixel((28, 16)) == (0, 0, 0)


def test_second_build_does_nothing_and_says_so(tmp_path, downloads, capsys, monkeypatch):
    lines = build(tmp_path, downloads)
    capsys.readouterr()
    monkeypatch.setattr(dataset, "fill", None)
    assert build(tmp_path, downloads) == lines
    assert "nothing to do" in capsys.readouterr().err


def test_changed_recipe_builds_the_same_bytes_anew(tmp_path, downloads, monkeypatch):
    build(tmp_path, downloads)
    before = (tmp_path / "out/fluent-flat/1f431.png").read_bytes()
    monkeypatch.setattr(dataset, "BUILDER", dataset.BUILDER + 1)
    build(tmp_path, downloads)
    assert (tmp_path / "out/fluent-flat/1f431.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "out"]


def test_foreign_folder_is_left_alone(tmp_path, downloads):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FewstepError, match="did not write\n\nhint: name another folder"):
        build(tmp_path, downloads)


def test_altered_tarball_is_refused(downloads):
    (downloads / packages.tarball_name("@iconify-json/noto", "1.2.9")).write_bytes(b"other")
    with pytest.raises(FewstepError, match=r"sha256 .*\n\nhint: delete the file"):
        packages.fetch("@iconify-json/noto", downloads)


def test_missing_npm_is_one_line_with_a_hint(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FewstepError,
        match="npm is needed to fetch twemoji@1 and is not installed\n\nhint: install npm",
    ):
        packages.npm_pack("twemoji@1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_held_out_is_stable_and_about_five_percent():
    share = sum(is_held_out(f"{code:x}", style) for code in range(4000) for style in ("noto", "twemoji"))
    assert 0.04 < share / 8000 < 0.06
    assert [is_held_out(f"{code:x}", "noto") for code in range(0x1F400, 0x1F440)].index(True) == 4


def test_code_points():
    assert code_points("0023_FE0F_20E3") == "23-20e3"
    assert code_points("1F468-200D-2764-FE0F-200D-1F468") == "1f468-200d-2764-200d-1f468"


def test_squash():
    assert squash("Pi\u00f1ata: two o\u2019clock") == "pinatatwooclock"


def test_match_files_forgives_missing_dots_and_joiners():
    names = ["a/1f447svg", "a/1f468-1f466.svg", "a/0023-fe0f-20e3.svg", "b/1f431.svg"]
    found = match_files(names, "a/", "svg", ["1f468-200d-1f466", "1f447", "23-20e3", "1f431"])
    assert found == {"1f468-200d-1f466": names[1], "1f447": names[0], "23-20e3": names[2]}


def test_match_icons_by_chars_or_by_name():
    icons = {"cat-face": {}, "bow": {}}
    assert match_icons(icons, {"1F431": "cat-face"}, {}, ["1f431", "1f380"]) == {"1f431": "cat-face"}
    names = {"catface": "1f431", "bow": "1f380"}
    assert match_icons(icons, {}, names, ["1f380", "1f431"]) == {"1f380": "bow", "1f431": "cat-face"}


def test_old_names_override_and_can_say_nothing():
    names = {"bullseye": "1f3af", "facewithcrossedouteyes": "1f635"}
    found = old_names("noto-blob", {"1f431": "cat-face"}, names)
    assert found["directhit"] == "1f3af"
    assert found["catface"] == "1f431"
    assert found["pistol"] == ""


def test_small_drawings_are_enlarged_and_centred_unless_size_matters():
    box = (
        drawing.draw(SourceDrawing("svg", SMALL.encode()), 100)
        .convert("L")
        .point(lambda grey: 255 * (grey < 128))
        .getbbox()
    )
    assert box == pytest.approx((5, 5, 95, 95), abs=1)
    kept = drawing.draw(SourceDrawing("svg", SMALL.encode()), 100, keep_size=True)
    assert kept.convert("L").point(lambda grey: 255 * (grey < 128)).getbbox() == (10, 10, 30, 30)
