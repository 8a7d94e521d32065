"""Training data through a model's encoders into the cache, and from there.

A store has the latents of one autoencoder, or the embeddings of one model's text encoders, each under a key: a hash of
the image's file and of how it is cut, or of the caption. So runs and sources share what they have in common. An index
names the rows of one set of samples. It is found again by the stamps of the images' files, without reading them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewstep.data.cache.ahead import Prepared, ahead, content_of, default_workers, prepared
from fewstep.data.cache.batches import BATCH, PictureEncoder, embedded
from fewstep.data.cache.encoded import Encoded
from fewstep.data.cache.index import INDEX, Rows, read_index, write_index
from fewstep.data.cache.processes import awaited, mark_of, meet, this_process
from fewstep.data.cache.remembered import Remembered
from fewstep.data.cache.store import Store, Writer, as_array, encoded_folder, key_of
from fewstep.data.framing import Framing, ImageFacts
from fewstep.data.sources import Sample
from fewstep.events import counted, doing
from fewstep.io import atomic_path
from fewstep.models.model import Model, encoder_sha256

REMEMBERED = "images.sqlite"  # facts of images that were read before
KEPT_CAPTIONS = 100  # that the index has as text, to show what the data is of


@dataclass(frozen=True)
class Encoding:
    """Samples to encode, the model that does it, and where the result lies."""

    samples: Sequence[Sample]
    model: Model
    framing: Framing
    root: Path  # of stores and indices
    alone: bool  # whether the root holds nothing but this set

    @cached_property
    def facts(self) -> dict[str, str]:
        """What the result depends on besides the samples."""
        return facts_of(self.model, self.framing)

    @cached_property
    def images(self) -> Store:
        """Where the latents are."""
        return Store(self.root / f"latents-{key_of(self.facts['kind'], self.facts['encoder']).hex()}")

    @cached_property
    def texts(self) -> Store:
        """Where the embeddings are."""
        return text_store(self.root, self.model)

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each sample: one or more, "" for an image without one."""
        return [list(sample.captions) or [""] for sample in self.samples]

    @cached_property
    def stamps(self) -> list[bytes]:
        """A hash for each image, which is another if the image is. Images that only their content tells are read."""
        return [key_of(stamp) if (stamp := s.stamp) is not None else content_of(s.open()) for s in self.samples]

    @cached_property
    def name(self) -> str:
        """A hash of all that the result depends on."""
        words = (key_of(*captions) for captions in self.captions)
        return key_of(*self.facts.values(), *self.stamps, *words).hex()

    @property
    def index(self) -> Path:
        """The file of the index."""
        return self.root / INDEX if self.alone else self.root / "sets" / f"{self.name}.safetensors"

    def found(self) -> Encoded | None:
        """The result, if it is there."""
        encoded = read_index(self.index)
        return encoded if encoded is not None and encoded.facts["set"] == self.name else None


def facts_of(model: Model, framing: Framing) -> dict[str, str]:
    """What encoded data depends on besides the samples."""
    kind = "masked latents" if model.inpaints else "latents"
    return {
        "kind": f"5 {kind}{' and deviations' if framing.deviations else ''}",
        "encoder": encoder_sha256(model.vae),
        "text": _text_kind(model),
        "framing": json.dumps(asdict(framing)),
    }


def text_store(root: Path, model: Model) -> Store:
    """Where the embeddings of the model's text encoders are. The key of a caption's row is `key_of` it."""
    return Store(root / f"text-{key_of(_text_kind(model)).hex()}")


def _text_kind(model: Model) -> str:
    return f"4 text {model.text_sha256()}"


class Findings(NamedTuple):
    """What a process knows of the images of its share."""

    numbers: list[int]  # of the samples
    facts: list[ImageFacts]


def captions_of(samples: Sequence[Sample]) -> list[str]:
    """The first caption of each sample; "" for an image without one, which a model without text learns from."""
    return [sample.captions[0] if sample.captions else "" for sample in samples]


def encode(
    samples: Sequence[Sample], model: Model, framing: Framing, folder: Path | None = None, workers: int | None = None
) -> Encoded:
    """The latents and text embeddings of these samples, from the cache or through the model.

    folder: where to keep them, to be taken elsewhere; None = with those of other runs in the cache.
    workers: threads that read and cut images ahead of the encoder; None = one for each processor. They change no bit.
    Several processes, of one machine or more, encode a share each; they must see the same folder.
    Raises FewstepError naming an image that cannot be read by its key. What was encoded before is kept then.
    """
    with doing("looking for encoded data"):
        job = Encoding(samples, model, framing, folder or encoded_folder(), alone=folder is not None)
        found = job.found()
    if found is None:
        if this_process().of > 1:
            meet(job.index)
        encode_captions(chain.from_iterable(job.captions), job.model, job.texts)
        found = combined(job, encode_images(job, workers or default_workers()))
    for store in (job.images, job.texts, Store(job.index.parent)):
        store.touch()
    return found


def encode_captions(captions: Iterable[str], model: Model, store: Store) -> None:
    """Encode this process's share of the captions that are missing, each in the batch in which it always is."""
    captions = list(dict.fromkeys(captions))
    missing = store.read()[1].find(as_array([key_of(caption) for caption in captions]))[:, 0] < 0
    starts = range(0, len(captions), BATCH)
    to_do = [start for start in starts if this_process().has(start, BATCH) and missing[start : start + BATCH].any()]
    writer = Writer(store)
    try:
        for start in counted(to_do, "encoding captions", "batch", len(to_do)) if to_do else ():
            batch, absent = captions[start : start + BATCH], torch.from_numpy(missing[start : start + BATCH])
            rows = embedded(batch, model)
            new = [key_of(caption) for caption, lacks in zip(batch, absent.tolist(), strict=True) if lacks]
            writer.add(new, {name: x[absent] for name, x in rows.items()})
    finally:
        writer.flush()


def encode_images(job: Encoding, workers: int) -> Findings:
    """Encode this process's share of the images that are missing. Returns what is known of all images of the share."""
    job.root.mkdir(parents=True, exist_ok=True)
    process, (_, kept), remembered = this_process(), job.images.read(), Remembered(job.root / REMEMBERED)
    numbers = [number for number in range(len(job.samples)) if process.has(number, BATCH)]
    known = remembered.get([job.stamps[number] for number in numbers])
    encoder, findings = PictureEncoder(job.model, job.images, job.framing), Findings([], [])

    def look(number: int) -> Prepared:
        return prepared(number, job.samples[number], known.get(job.stamps[number]), kept, job.framing)

    try:
        for sample in counted(ahead(look, numbers, workers), "encoding", "image", len(numbers)):
            findings.numbers.append(sample.number)
            findings.facts.append(sample.facts)
            encoder.add(sample)
        encoder.finish()
    finally:
        encoder.save()
        new = {job.stamps[n]: facts for n, facts in zip(*findings, strict=True) if job.stamps[n] not in known}
        remembered.put(new)
    return findings


def combined(job: Encoding, findings: Findings) -> Encoded:
    """The encoded data of all processes, of which the first writes the index when all have done their share."""
    process = this_process()
    part_files = [_part_file(job.index, rank, process.of) for rank in range(process.of)]
    if process.of > 1:
        _write_part(part_files[process.rank], findings)

    def joined() -> Encoded | None:
        parts = map(_read_part, part_files) if process.of > 1 else [findings]
        return _joined(job, [part for part in parts if part is not None])

    if process.rank == 0:
        write_index(job.index, awaited(joined, job.root))
        for rank, part_file in enumerate(part_files):
            part_file.unlink(missing_ok=True)
            mark_of(job.index, rank, process.of).unlink(missing_ok=True)
    return awaited(job.found, job.root)


def _joined(job: Encoding, parts: Sequence[Findings]) -> Encoded | None:
    """All samples, in their order; None while samples, or their rows in a store, are missing."""
    facts = dict(sorted(pair for findings in parts for pair in zip(*findings, strict=True)))
    if len(facts) < len(job.samples):
        return None
    views = [view.key(known) for known in facts.values() for view in job.framing.views_of(known)]
    texts = [key_of(caption) for captions in job.captions for caption in captions]
    images, captions = Rows(job.images, as_array(views)).table(), Rows(job.texts, as_array(texts)).table()
    if images is None or captions is None:
        return None
    numbers = {shape: number for number, shape in enumerate(job.framing.shapes)}
    shape = [numbers[job.framing.shape_of(known.height, known.width)] for known in facts.values()]
    counts = [len(captions) for captions in job.captions]
    return Encoded(
        images,
        captions,
        job.framing.views,
        None if max(counts) == 1 else torch.tensor([0, *accumulate(counts)]),
        torch.tensor(shape, dtype=torch.int16) if job.framing.buckets else None,
        key_of(*job.facts.values(), *views, *texts, str(counts)).hex(),
        job.facts
        | {
            "set": job.name,
            "captions": json.dumps([captions[0] for captions in job.captions[:KEPT_CAPTIONS]]),
            "cut_away": str(sum(job.framing.cut_away(f.height, f.width) for f in facts.values()) / len(facts)),
        },
    )


def _part_file(index: Path, rank: int, of: int) -> Path:
    return index.with_name(f"{index.stem}.{rank}-of-{of}.safetensors")


def _write_part(path: Path, findings: Findings) -> None:
    sizes = [(facts.height, facts.width) for facts in findings.facts]
    contents = torch.from_numpy(as_array([facts.content for facts in findings.facts]).copy())
    tensors = {"numbers": torch.tensor(findings.numbers), "contents": contents, "sizes": torch.tensor(sizes)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def _read_part(path: Path) -> Findings | None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    contents, sizes = tensors["contents"].numpy(), tensors["sizes"].tolist()
    return Findings(
        tensors["numbers"].tolist(), [ImageFacts(c.tobytes(), *size) for c, size in zip(contents, sizes, strict=True)]
    )
