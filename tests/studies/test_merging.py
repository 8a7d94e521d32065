"""docs/merging.md: its table is what its generator computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies import merging, merging_alone, merging_rounding

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OWN = [name for name in merging.COLUMNS if not name.startswith("PEFT")]  # quick, without PEFT


def written(number: int, first: int) -> dict[str, dict[str, str]]:
    """One of the page's tables as written: its first cells -> column -> cell."""
    blocks = (DOCS / "merging.md").read_text(encoding="utf-8").split("\n\n")
    lines = [block for block in blocks if block.startswith("|")][number].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {" | ".join(row[:first]): dict(zip(head[first:], row[first:], strict=True)) for row in rows}


def written_rows() -> dict[str, dict[str, str]]:
    """The first table."""
    return written(0, 3)


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


def test_one_lora_at_a_weight_is_what_is_said_of_ai_toolkit() -> None:
    row = written_rows()["Linear, 192 → 256 | 8 | 0.5"]  # a quarter and an eighth, of a half
    assert (row["ai-toolkit"], row["ai-toolkit, `.alpha`"], row["fewstep"]) == ("50 %", "75 %", "0")


def test_one_lora_alone_is_as_written() -> None:
    rows = written(1, 1)
    assert rows.keys() == merging_alone.CASES.keys()
    for row, config in merging_alone.CASES.items():
        lora = merging_alone.trained(config)
        for name in ("ai-toolkit", "fewstep"):
            assert rows[row][name] == merging_alone.cell(merging_alone.COLUMNS[name], lora), "python -m studies.merging"
        assert rows[row]["fewstep"] == "0"


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_what_is_called_exact_is_what_peft_does_before_merging() -> None:
    for row, config in merging_alone.CASES.items():
        method = merging_alone.COLUMNS["PEFT `cat`"]  # which checks it
        assert written(1, 1)[row]["PEFT `cat`"] == merging_alone.cell(method, merging_alone.trained(config))


def test_what_rounding_loses_is_as_written() -> None:
    rows = written(2, 1)
    assert list(rows) == [f"{size:g}" for size in merging_rounding.SIZES]
    for size in merging_rounding.SIZES:
        computed = {name: merging_rounding.cell(dtype, size) for name, dtype in merging_rounding.TYPES.items()}
        assert rows[f"{size:g}"] == computed, "run python -m studies.merging"


@pytest.mark.long
def test_the_whole_page_is_current(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studies.merging", str(tmp_path / "merging.md")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "merging.md").read_bytes() == (DOCS / "merging.md").read_bytes(), "run python -m studies.merging"
