"""What is known of image files that were read before, so that a file that has not changed is not read again."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from fewstep.data.framing import ImageFacts

AT_ONCE = 500  # rows in one question
PATIENCE = 30.0  # seconds to wait for another process that writes


class Remembered:
    """What is known of images, by the hash of their stamp, in a database. If that does not work, nothing is known."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, stamps: Sequence[bytes]) -> dict[bytes, ImageFacts]:
        """What is known, by stamp."""
        known: dict[bytes, ImageFacts] = {}
        with suppress(sqlite3.Error), closing(self._open()) as table:
            for start in range(0, len(stamps), AT_ONCE):
                part = stamps[start : start + AT_ONCE]
                ask = f"SELECT * FROM facts WHERE stamp IN ({','.join('?' * len(part))})"
                known |= {stamp: ImageFacts(*facts) for stamp, *facts in table.execute(ask, part)}
        return known

    def put(self, facts: Mapping[bytes, ImageFacts]) -> None:
        """Remember these."""
        with suppress(sqlite3.Error), closing(self._open()) as table, table:
            rows = [(stamp, *found) for stamp, found in facts.items()]
            table.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        table = sqlite3.connect(self.path, timeout=PATIENCE)
        with suppress(sqlite3.OperationalError):  # a full disk, or one that is only read
            table.execute(
                "CREATE TABLE IF NOT EXISTS facts"
                " (stamp BLOB PRIMARY KEY, content BLOB, height INTEGER, width INTEGER) WITHOUT ROWID"
            )
        return table
