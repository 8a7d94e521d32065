"""Reports: one file that needs nothing else, with every text as it was written."""

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image

from fewstep.evaluate.report import figure, heading, page, paragraph, preformatted, table, text_table

VOID = {"meta", "img"}


class Nesting(HTMLParser):
    """Fails when a tag is closed that is not the one open."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_is_well_formed_and_needs_no_network():
    image = Image.new("RGB", (4, 4), "red")
    blocks = [
        heading("A & B"),
        paragraph("1 < 2", faint=True),
        table(["x"], [["<b>"]], marked=[0]),
        figure(image, 'a "b"'),
    ]
    text = page("Title <1>", [*blocks, preformatted("fewstep --help")])
    parser = Nesting()
    parser.feed(text)
    assert parser.open == []
    assert {"A & B", "1 < 2", "<b>", "fewstep --help", "Title <1>"} <= set(parser.text)
    assert not re.search(r"https?:|src=\"(?!data:)|<script|<link", text)


def test_pictures_come_back_as_they_were():
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    data = re.search(r"base64,([^\"]+)", figure(image, "x"))[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as back:
        assert back.size == (3, 2)
        assert back.getpixel((0, 0)) == (1, 2, 3)


def test_text_tables_line_up():
    lines = text_table(["solver", "ms"], [["ddim", "1200"], ["lcm", "7"]]).splitlines()
    assert lines == ["| solver |   ms |", "| ------ | ---: |", "| ddim   | 1200 |", "| lcm    |    7 |"]
