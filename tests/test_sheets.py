"""Contact sheets: everything in its place."""

from PIL import Image

from fewstep.sheets import (
    CONTACT,
    GAP,
    MARGIN,
    WORDS,
    Cell,
    SheetRow,
    captioned,
    contact_columns,
    contact_sheet,
    cut,
    grid,
    small,
    wrapped,
)

RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (32, 32), "blue")


def test_a_grid_holds_every_picture_in_its_row_and_column():
    sheet = grid(
        [SheetRow("one", "a note", [RED, BLUE]), SheetRow("two", "", [BLUE, RED])], ["first", "second"], cell=16
    )
    assert sheet.size == (MARGIN + 2 * (16 + GAP), WORDS + 2 * (16 + GAP))
    centres = [
        [sheet.getpixel((MARGIN + x * (16 + GAP) + 8, WORDS + y * (16 + GAP) + 8)) for x in (0, 1)] for y in (0, 1)
    ]
    red, blue = (255, 0, 0), (0, 0, 255)
    assert centres == [[red, blue], [blue, red]]


def test_a_rows_label_stays_left_of_its_pictures():
    for label in ("ddim:32", "dpm-solver++,grid=quadratic:8"):
        sheet = grid([SheetRow(label, "", [RED])], ["one"], cell=128).convert("L")
        inked = sheet.crop((0, WORDS, MARGIN, sheet.height)).point(lambda grey: 255 * (grey < 250)).getbbox()
        assert inked is not None
        assert inked[2] < MARGIN - GAP


def test_pictures_are_captioned_in_reading_order():
    sheet = captioned([RED, RED, RED], ["a", "b", "c"], columns=2)
    assert sheet.size == (2 * (16 + GAP), 2 * (16 + WORDS))
    assert sheet.getpixel((GAP // 2 + 8, 16 + WORDS + 8)) == (255, 0, 0)
    assert sheet.getpixel((GAP // 2 + 16 + GAP + 8, 16 + WORDS + 8)) == (255, 255, 255)


def test_long_labels_take_two_lines():
    assert wrapped("one two three", 8) == "one two\nthree"
    assert wrapped("short", 8) == "short"
    assert wrapped("abcdefgh", 4) == "abcd\nefgh"
    assert wrapped("abcdefghijkl", 4) == "abcd\nefg…"
    assert wrapped("one two three", 5) == "one\ntwo…"


def test_a_contact_sheet_keeps_the_pictures_shape():
    wide = Image.new("RGB", (1024, 512), "red")
    cells = [Cell(small(wide), "a red fox " * 20, seed) for seed in (0, 1, 2)]
    assert cells[0].image.size == (CONTACT, CONTACT // 2)
    sheet = contact_sheet(cells, 2)
    assert sheet.size == (2 * (CONTACT + GAP), 2 * (CONTACT // 2 + WORDS))
    assert sheet.getpixel((GAP // 2 + 8, CONTACT // 2 + WORDS + 8)) == (255, 0, 0)
    between = sheet.crop((CONTACT + GAP // 2, CONTACT // 2, CONTACT + GAP, CONTACT // 2 + WORDS)).convert("L")
    assert between.getextrema() == (255, 255)  # words stay below their own picture
    assert small(RED) is RED


def test_the_pictures_of_a_prompt_stand_in_a_row():
    assert [contact_columns(12, 4), contact_columns(40, 20)] == [4, 8]
    assert [contact_columns(n, 1) for n in (1, 2, 4, 9, 10, 200)] == [1, 2, 2, 3, 4, 8]
    assert cut("a  red\nfox", 9) == "a red fox"
    assert cut("a red fox", 7) == "a red…"
