"""Captioned images in an archive, laid out as in a folder, or as in a shard of WebDataset."""

import posixpath
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from fewstep.data.archives import Archive, Member, whole
from fewstep.data.captions import JSON_SUFFIX, TEXT_SUFFIXES, captions_in, decoded, json_object
from fewstep.data.found import OTHERS, SUFFIXES
from fewstep.data.places import is_address
from fewstep.data.sources.source import Broken, Item
from fewstep.data.sources.table import not_there
from fewstep.data.tables import TABLES, Cells, cells, image_row
from fewstep.errors import FewstepError

NOTHING: Cells = {}
SECOND_IMAGE = "image{s} beside another of the same key"


class ArchivedSample(NamedTuple):
    """A sample whose image is in an archive."""

    archive: Archive
    member: Member
    captions: tuple[str, ...]
    columns: Cells = NOTHING  # as Sample's
    size: tuple[int, int] | None = None  # as Sample's

    @property
    def key(self) -> str:
        """The archive's path or address, and the file's in it."""
        return f"{self.archive.name}/{self.member.name}"

    @property
    def stamp(self) -> str | None:
        """The archive's, with the file's place in it."""
        return self.archive.stamp and f"{self.archive.stamp} {self.member.place} {self.member.size_bytes}"

    def open(self) -> bytes:
        """The content of the image's file. Raises FewstepError if it cannot be read."""
        return whole(self.archive, self.member)


class Contents(NamedTuple):
    """What an archive holds, by the names of its files."""

    archive: Archive
    images: dict[str, Member]  # in the archive's order
    texts: dict[str, Member]  # captions, and what else JSON says
    tables: dict[str, Member]
    fetched: dict[Member, bytes]  # what was read on the way

    def fetch(self, member: Member) -> None:
        """Read a text now, if it lies on a server: what is around it is here already."""
        name = posixpath.normpath(member.name)
        if is_address(self.archive.name) and member in (self.texts.get(name), self.tables.get(name)):
            self.fetched[member] = whole(self.archive, member, ahead=True)

    def text(self, member: Member) -> str:
        """The text of a file."""
        data = self.fetched[member] if member in self.fetched else whole(self.archive, member)
        return decoded(data, f"{self.archive.name}/{member.name}")


def archived_samples(
    archive: Archive, captioned: bool, columns: Collection[str], left_out: Counter[str]
) -> Iterator[Item]:
    """The images of an archive with what belongs to them, in the archive's order, then what is broken.

    left_out: to which is added what is no sample. captioned, columns: as of `sources.open_source`.
    """
    contents, broken = Contents(archive, {}, {}, {}, {}), list[Broken]()
    try:
        for member in archive.members():
            if (repeated := _sort(member, contents, left_out)) is not None:
                broken.append(repeated)
            contents.fetch(member)
    except FewstepError as error:
        broken.insert(0, Broken(archive.name, error))
    yield from broken
    tables = sorted(contents.tables, key=lambda name: (name.count("/"), *(name.endswith(end) for end in TABLES)))
    if tables:
        yield from _in_table(contents, contents.tables[tables[0]], columns, left_out)
        return
    for member in contents.images.values():
        try:
            sample = _sample(contents, member, captioned, columns)
        except FewstepError as error:
            yield Broken(f"{archive.name}/{member.name}", error)
            continue
        if sample is None:
            left_out[SECOND_IMAGE] += 1
        else:
            yield sample


def _sort(member: Member, contents: Contents, left_out: Counter[str]) -> Broken | None:
    """Put a file of the archive where it belongs. Gives back what is broken: a name that is there twice."""
    name = posixpath.normpath(member.name)
    file = posixpath.basename(name)
    suffix = posixpath.splitext(file)[1].lower()
    if any(part[0] == "." and part != ".." for part in name.split("/") if part):
        return None  # hidden, as in a folder
    kinds = {
        **dict.fromkeys(SUFFIXES, contents.images),
        **dict.fromkeys((*TEXT_SUFFIXES, JSON_SUFFIX), contents.texts),
    }
    held = contents.tables if file in (f"metadata{end}" for end in TABLES) else kinds.get(suffix)
    if held is None:
        left_out[f"{suffix} file{{s}}"] += suffix in OTHERS
        return None
    if name in held:
        key = f"{contents.archive.name}/{member.name}"
        return Broken(key, FewstepError(f"{key} is there twice", "give each image a key of its own"))
    held[name] = member
    return None


def _in_table(contents: Contents, table: Member, columns: Collection[str], left_out: Counter[str]) -> Iterator[Item]:
    """The images that a table in the archive names, relative to itself."""
    path = f"{contents.archive.name}/{table.name}"
    folder, file = posixpath.split(table.name)
    named = set()
    for line, row in TABLES[posixpath.splitext(file)[1]](contents.text(table), path):
        where = f"{path} line {line}"
        try:
            found = image_row(row, where, columns)
            name = posixpath.normpath(posixpath.join(folder, found.name))
            if name not in contents.images:
                raise not_there(where, found.name, contents.archive.name)
        except FewstepError as error:
            yield Broken(where, error)
            continue
        named.add(name)
        yield ArchivedSample(contents.archive, contents.images[name], found.captions, found.cells)
    left_out[f"image{{s}} that {file} does not name"] += len(contents.images.keys() - named)


def _sample(contents: Contents, member: Member, captioned: bool, columns: Collection[str]) -> ArchivedSample | None:
    """The image with what the files beside it say; None for one of several that have one key and one caption.

    In a shard a key ends at the first dot: 000.seg.png belongs to 000.png.
    """
    name = posixpath.normpath(member.name)
    stem, first = posixpath.splitext(name)[0], _key(name)
    own = any(f"{stem}{suffix}" in contents.texts for suffix in (*TEXT_SUFFIXES, JSON_SUFFIX))
    if not own and stem != first:
        if any(f"{first}{suffix}" in contents.images for suffix in SUFFIXES):
            return None
        stem = first
    sidecar = contents.texts.get(f"{stem}{JSON_SUFFIX}")
    facts = NOTHING
    if sidecar is not None and (columns or (captioned and not _text_of(contents, stem))):
        facts = json_object(contents.text(sidecar), f"{contents.archive.name}/{sidecar.name}")
    captions: tuple[str, ...] = ()
    if captioned:
        text = _text_of(contents, stem)
        captions = captions_in(facts) if text is None else (contents.text(text).strip(),)
        if not captions:
            raise FewstepError(
                f"no caption for {contents.archive.name}/{member.name}",
                f"put it beside it as {stem}.txt or {stem}.json",
            )
    return ArchivedSample(contents.archive, member, captions, cells(facts, columns))


def _key(name: str) -> str:
    """The name up to the first dot of the file's own, as WebDataset has it."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.partition(".")[0])


def _text_of(contents: Contents, stem: str) -> Member | None:
    """The text file with this name."""
    names = (f"{stem}{suffix}" for suffix in TEXT_SUFFIXES)
    return next((contents.texts[name] for name in names if name in contents.texts), None)
