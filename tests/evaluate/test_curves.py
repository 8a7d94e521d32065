"""Curves of a run: a panel for what was measured, and none for what was not."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fewstep.errors import FewstepError
from fewstep.evaluate import curves
from fewstep.evaluate.curves import of_measure, plot_curves


def write(path: Path, *lines: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')


def test_a_run_has_the_curves_of_what_it_measured(tmp_path: Path) -> None:
    assert plot_curves(tmp_path) == []
    write(tmp_path / "metrics.jsonl", *({"step": i, "loss": 0.1 / i, "learning_rate": 0.0} for i in (1, 2)))
    assert plot_curves(tmp_path) == [tmp_path / "loss.png"]
    with Image.open(tmp_path / "loss.png") as narrow:
        width = narrow.width
    write(tmp_path / "metrics.jsonl", *({"step": i, "loss": 1, "gradient_norm": 1, "learning_rate": 1} for i in (1, 2)))
    write(tmp_path / "quality.jsonl", {"step": 1, "kid_t_1": 0.1}, {"step": 2, "kid_t_1": 0.1, "kid_t_4": 0.2})
    assert plot_curves(tmp_path) == [tmp_path / "loss.png", tmp_path / "quality.png"]
    with Image.open(tmp_path / "loss.png") as wide:
        assert wide.width == pytest.approx(width * 3 / 2, abs=2)


def test_a_run_without_scores_has_no_picture_of_them(tmp_path: Path) -> None:
    write(tmp_path / "quality.jsonl", {"step": 1, "measure": None, "best": False})
    assert plot_curves(tmp_path) == []


def test_each_number_of_steps_is_a_curve() -> None:
    lines = [{"step": 1, "kid_t_1": 0.1, "kid_t_error_1": 1}, {"step": 2, "kid_t_4": 0.2, "agreement_4": 1}]
    assert of_measure("kid_t", lines) == [("kid_t_1", "1 step", 1000), ("kid_t_4", "4 steps", 1000)]


def test_without_matplotlib_a_run_ends_well_with_a_note(
    fewstep, monkeypatch, tiny_model_folder, tiny_data_folder, tmp_path
):
    def missing() -> None:
        raise FewstepError("the plots need matplotlib, which is not installed", "pip install it")

    monkeypatch.setattr(curves, "check_matplotlib", missing)
    done = fewstep("finetune", "--rank", 2, "--steps", 1, "--device", "cpu", model=tiny_model_folder,
                   data=tiny_data_folder, out=tmp_path / "run")  # fmt: skip
    assert done.code == 0, done.err
    assert "note: no loss.png and no quality.png: the plots need matplotlib" in done.err
