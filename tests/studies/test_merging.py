"""docs/merging.md: its table is what its generator computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies import merging

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OWN = [name for name in merging.COLUMNS if not name.startswith("PEFT")]  # quick, without PEFT


def written_rows() -> dict[str, dict[str, str]]:
    """The table as written: first three cells -> column -> cell."""
    lines = [line for line in (DOCS / "merging.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {" | ".join(row[:3]): dict(zip(head[3:], row[3:], strict=True)) for row in rows}


def test_ours_is_the_exact_sum() -> None:
    assert max(merging.error(merging.ours, terms) for _, terms in merging.cases()) < 1e-6


def test_the_table_is_current() -> None:
    rows = written_rows()
    assert list(rows) == [row for row, _ in merging.cases()]
    for row, terms in merging.cases():
        computed = {name: merging.cell(merging.COLUMNS[name], terms) for name in OWN}
        assert {name: rows[row][name] for name in OWN} == computed, "run python -m studies.merging"
        assert rows[row]["fewstep"] == rows[row]["PEFT `cat`"] == "0"


def test_compressing_is_as_good_as_pefts_svd() -> None:
    for row, cells in written_rows().items():
        if "," in row.split(" | ")[2]:
            assert cells["fewstep at the largest rank"] == cells["PEFT `svd`"]


@pytest.mark.long
def test_the_whole_page_is_current(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studies.merging", str(tmp_path / "merging.md")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "merging.md").read_bytes() == (DOCS / "merging.md").read_bytes(), "run python -m studies.merging"
