"""The source of several files that are read one after the other, such as shards."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fewstep.data.found import counts_in_words
from fewstep.data.sources.source import Item
from fewstep.events import counted

ShardReader = Callable[[str, Counter[str]], Iterator[Item]]  # of one file; it adds what it leaves out to the counter


@dataclass(frozen=True)
class Shards:
    """The samples of some files, of which every `step`-th from number `first` on."""

    places: Sequence[str]  # the files' paths or addresses
    reader: ShardReader
    first: int = 0
    step: int = 1
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def left_out(self) -> str:
        """As Source's."""
        return counts_in_words(+self.counts)

    def __iter__(self) -> Iterator[Item]:
        self.counts.clear()
        return islice(self._items(), self.first, None, self.step)

    def _items(self) -> Iterator[Item]:
        for place in counted(self.places, "reading the shards", "shard", len(self.places)):
            yield from self.reader(place, self.counts)

    def part(self, rank: int, of: int) -> "Shards":
        """Whole files, every `of`-th of them, if there are as many; else every `of`-th sample."""
        if self.step == 1 and len(self.places) >= of:
            return Shards(self.places[rank::of], self.reader)
        return Shards(self.places, self.reader, self.first + rank * self.step, self.step * of)
