"""docs/negative-prompts.md: its measures are right, and what it says of its prompts is so."""

import torch

from fewstep.session import Picture
from studies.negative_prompts import COUNT, NEGATIVE, PROMPTS, WAYS, measured
from studies.pages import DOCS


def picture(*colours: tuple[float, float, float]) -> Picture:
    """Columns of these colours, in [0, 1]."""
    pixels = torch.tensor(colours).T[:, None].expand(3, 4, len(colours))
    return Picture(2 * pixels - 1, {"nfe": 4})


def test_redness_is_that_of_what_is_drawn_on_white() -> None:
    white, red, grey = (1.0, 1.0, 1.0), (0.8, 0.2, 0.4), (0.5, 0.5, 0.5)
    found = measured([picture(white, white, red), picture(white, grey, grey)], time_s=3.0)
    torch.testing.assert_close(found.redness, 0.25)  # 0.5 of one picture, 0 of the other
    torch.testing.assert_close(found.error, 0.25)
    assert found.clipped == 0
    assert (found.nfe, found.time_s) == (4, 1.5)


def test_burnt_is_the_share_of_colour_values_at_the_end_of_their_range() -> None:
    white, burnt, half = (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 0.5, 0.5)
    found = measured([picture(white, burnt), picture(white, half)], time_s=1.0)
    torch.testing.assert_close(found.clipped, (1 + 1 / 3) / 2)


def test_the_page_is_of_these_prompts_and_ways() -> None:
    page = (DOCS / "negative-prompts.md").read_text(encoding="utf-8")
    assert page.startswith("<!-- written by python -m studies.negative_prompts -->\n")
    assert ", ".join(PROMPTS) in page
    assert f'{COUNT} pictures each from the same noise, negative prompt "{NEGATIVE}"' in page
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][1:] == [f"| {n}" for n in WAYS]
