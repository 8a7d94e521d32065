"""What `fewstep data check` found, as a text for people."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any, NamedTuple

from fewstep.errors import number_of, option, printable

BAR = 30  # letters of the longest bar
LINE = 100  # letters of an example


class Remark(NamedTuple):
    """A line about one thing that was looked for."""

    good: bool
    text: str
    examples: Sequence[str] = ()


def as_text(document: Mapping[str, Any]) -> str:
    """The document as text."""
    blocks = [heading(document)]
    if document["images"]:
        blocks += [facts(document), distribution(document)]
    blocks.append("\n".join(lines_of(remarks(document))))
    for name in ("picture", "skipped"):
        if name in document:
            blocks.append(f"{'picture' if name == 'picture' else 'what is broken'}: {document[name]}")
    return "\n\n".join(blocks)


def heading(document: Mapping[str, Any]) -> str:
    """How many images and captions there are."""
    captions = document.get("captions")
    words = [number_of(document["images"], "image")]
    words += [number_of(captions["count"], "caption")] if captions else []
    left_out = f"\nleft out: {document['left_out']}" if document["left_out"] else ""
    return f"{printable(document['source'])}: {', '.join(words)}{left_out}"


def facts(document: Mapping[str, Any]) -> str:
    """Sizes, kinds of file, lengths of captions."""
    size = {name: f"{width} x {height}" for name, (width, height) in document["size"].items()}
    rows = [("sizes", f"{size['smallest']} to {size['largest']} pixels, the median {size['median']}")]
    rows.append(("files", ", ".join(f"{count:,} {kind}" for kind, count in document["formats"].items())))
    cut = document["cut_away"]
    rows.append(("cut away", f"{cut['squares']:.0%} of an image by squares, {cut['buckets']:.0%} by buckets of shapes"))
    for name in ("turned", "transparent"):
        if document[name]["count"]:
            what = "as their EXIF says" if name == "turned" else "shown on white"
            rows.append((name, f"{number_of(document[name]['count'], 'image')}, {what}"))
    if captions := document["captions"]:
        words = f"{captions['median_tokens']} tokens in the median, {captions['longest']} at most"
        rows.append(("captions", f"{words}; the model reads {captions['limit']}"))
    return "\n".join(f"  {name:<12}{text}" for name, text in rows)


def distribution(document: Mapping[str, Any]) -> str:
    """Bars of the smaller sides and of the shapes."""
    at, bins = document["trained_at"], document["smaller_sides"]
    sides = [(f"{one['from']}...{one['to'] - 1}", one["images"]) for one in bins]
    shapes = list(document["shapes"].items())
    tables = (f"  smaller side in pixels (trained at {at})", sides), ("  width : height", shapes)
    most = max(count for _, rows in tables for _, count in rows)
    return "\n\n".join("\n".join((title, *bars(rows, most))) for title, rows in tables)


def bars(rows: Sequence[tuple[str, int]], most: int) -> Iterator[str]:
    """A line for each row, with a bar that is BAR letters long for `most`."""
    width = max(12, *(len(name) for name, _ in rows))
    for name, count in rows:
        eighths = max(round(8 * BAR * count / most), 1) if count else 0
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        yield f"  {name:>{width}}  {bar}{' ' * bool(bar)}{count:,}"


def lines_of(found: Sequence[Remark]) -> Iterator[str]:
    """The remarks, what is good first."""
    for remark in sorted(found, key=lambda remark: not remark.good):
        yield f"  {'ok' if remark.good else '!!'}  {remark.text}"
        yield from (f"        {shorten(printable(example), LINE, placeholder=' ...')}" for example in remark.examples)


def remarks(document: Mapping[str, Any]) -> list[Remark]:
    """What was looked for, and whether it is there."""
    found = [broken(document["broken"])]
    if not document["images"]:
        return found
    below, size = document["below"], document["trained_at"]
    found.append(
        Remark(False, f"{number_of(below['count'], 'image')} below {size} pixels, which would be scaled up:"
               f" {option('min_size')} {size} leaves {them(below['count'])} out", below["examples"])
        if below["count"]
        else Remark(True, f"no image has a side below {size} pixels")
    )  # fmt: skip
    found.append(copies(document["doubles"], "the same bytes as another", "no image is there twice"))
    if document["alike"] is not None:
        found.append(copies(document["alike"], "the looks of another", "no two images look alike"))
    if document["animated"]["count"]:
        text = f"{number_of(document['animated']['count'], 'image')} with several frames, of which the first counts"
        found.append(Remark(False, text, document["animated"]["examples"]))
    return found + (of_captions(document["captions"]) if document["captions"] else [])


def broken(found: Mapping[str, Any]) -> Remark:
    """About what cannot be read."""
    if not found["count"]:
        return Remark(True, "everything can be read")
    count, skip = found["count"], option("skip_broken")
    text = f"{count:,} broken, at which training would stop: {skip} leaves {them(count)} out"
    return Remark(False, text, [one["reason"] for one in found["examples"]])


def copies(found: Mapping[str, Any], what: str, otherwise: str) -> Remark:
    """About images of which one would do."""
    if not found["count"]:
        return Remark(True, otherwise)
    return Remark(
        False, f"{number_of(found['count'], 'image')} with {what}", [" = ".join(keys) for keys in found["examples"]]
    )


def of_captions(captions: Mapping[str, Any]) -> list[Remark]:
    """About captions that are too long, empty, or the same."""
    limit, repeated, long = captions["limit"], captions["repeated"], captions["too_long"]
    found = [
        Remark(False, f"{number_of(long, 'caption')} of more than {limit} tokens: what follows is not read")
        if long
        else Remark(True, f"no caption has more than {limit} tokens"),
        Remark(False, f"{number_of(captions['empty'], 'empty caption')}")
        if captions["empty"]
        else Remark(True, "no caption is empty"),
    ]
    if repeated["count"]:
        examples = [f"{one['images']:,} x {one['caption']}" for one in repeated["examples"]]
        return [*found, Remark(False, f"{number_of(repeated['count'], 'image')} with the caption of another", examples)]
    return [*found, Remark(True, "no two images have the same caption")]


def them(count: int) -> str:
    """The pronoun for so many."""
    return "it" if count == 1 else "them"
