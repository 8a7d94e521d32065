"""docs/methods.md: students are what they are called, what it says follows from its figures, and it can all be done."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fewstep.configs import build
from fewstep.errors import UsageError
from fewstep.metrics.estimate import Estimate
from studies import bench, methods, trainings
from studies.methods.students import EMBEDDED, FOUR, FREE, LCD, STUDENTS, SYNTHETIC
from tests.tiny import tiny_model

DOCS = Path(__file__).parents[2] / "docs"
STEPS = methods.measures.STEPS


def config(**changes: object):
    return build(methods.config.MethodsConfig, **changes)


def run_of(student):
    return methods.students.run_of(student, config(), Path("data"), "model data")


# --- the students -------------------------------------------------------------------------------------------


def test_every_student_has_its_own_training_of_as_many_samples() -> None:
    runs = [run_of(student).config for student in STUDENTS]
    assert len({run.out for run in runs}) == len(runs)
    assert {(run.train_steps, run.batch_size, run.psi, run.seed) for run in runs} == {(400, 16, "dpm-solver++", 0)}


def test_pcm_differs_from_lcd_in_its_method_alone() -> None:
    changed = run_of(FOUR).config.model_dump().items() - run_of(LCD).config.model_dump().items()
    assert {field for field, _ in changed} - {"out"} == {"method", "phases"}


def test_a_student_without_guidance_inside_is_compared_with_the_teacher_of_its_own_scale() -> None:
    assert [LCD.judged_at(1.0), FREE.judged_at(4.0), EMBEDDED.judged_at(7.0)] == [4.0, 4.0, 7.0]
    trained = run_of(EMBEDDED).config
    assert (trained.guidance_scale, trained.guidance_scale_max) == (min(EMBEDDED.scales), max(EMBEDDED.scales))


def test_an_unknown_student_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown student speed"):
        methods.students.chosen(("LCD", "speed"))
    assert methods.students.chosen(("LCD",)) == (LCD,)
    assert methods.students.chosen(()) == STUDENTS


# --- what the page says -------------------------------------------------------------------------------------


def row(student: str, steps: int, kid_t: float, agreement: float = 0.5, scale: float = 1.0) -> dict:
    """A row of four groups that differ little."""
    spread = (-1e-4, 1e-4, -1e-4, 1e-4)
    return {
        "student": student,
        "guidance_scale": scale,
        "steps": steps,
        **{
            name: Estimate(value, tuple(value + by for by in spread))._asdict()
            for name, value in (("kid_t", kid_t), ("agreement", agreement))
        },
    }


def document(*rows: dict, redness: dict | None = None) -> dict:
    return {
        "model": "emoji", "model_sha256": "a" * 64, "samples": 12, "styleless": 2, "train_steps": 4, "batch_size": 4,
        "images": 8, "precision": "bf16", "teachers": {"4": 0.7}, "images_per_s": {"LCD": 8.0}, "redness": redness,
        "rows": list(rows),
    }  # fmt: skip


def test_the_page_is_what_its_figures_make() -> None:
    found = json.loads((DOCS / "methods.json").read_text(encoding="utf-8"))
    assert methods.page.page(found) == (DOCS / "methods.md").read_text(encoding="utf-8")


def test_worse_pictures_in_more_steps_are_said() -> None:
    found = document(row(FOUR.name, 4, 0.002, 0.6), row(FOUR.name, 8, 0.009, 0.7))
    farther, oftener = methods.page.phased(found)
    assert farther.startswith("* **not met**: PCM, 4 phases, is at least as near")
    assert oftener.startswith("* **met**")


@pytest.mark.parametrize(("own", "verdict"), [(0.006, "met"), (0.0065, "not met")])
def test_a_student_without_images_may_be_a_tenth_of_the_undistilled_worse(own, verdict) -> None:
    rows = (row(methods.measures.PLAIN, 4, 0.02), row(LCD.name, 4, 0.0042), row(SYNTHETIC.name, 4, own))
    assert methods.page.without_images(document(*rows))[0].startswith(f"* **{verdict}**")


def test_the_page_is_short_and_says_what_there_is() -> None:
    names = [(student.name, scale) for student in STUDENTS for scale in student.scales]
    rows = [row(name, steps, 0.004, scale=scale) for name, scale in (*names, (methods.measures.PLAIN, 1.0))
            for steps in STEPS]  # fmt: skip
    red = {"without": [0.4, 0.3, 0.5], "with": [0.2, 0.1, 0.3], "change": [-0.2, -0.3, -0.1]}
    text = methods.page.page(json.loads(json.dumps(document(*rows, redness=red))))
    assert len(text.splitlines()) <= 150
    assert "{" not in text
    assert text.count("pictures/methods.jpg") == 1
    assert "**met**: PCM, 4 phases, no guidance inside, draws red things less red" in text
    assert all(name in text for name, _ in names)


def test_nothing_measured_is_said() -> None:
    assert "Not measured yet" in methods.page.page({"rows": []})


# --- all of it ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_tiny_trainings_make_a_page(tmp_path, tiny_data_folder, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench, "TEACHER_STEPS", 2)
    monkeypatch.setattr(methods.measures, "ROW_BYTES", 50_000)  # large enough for its pictures not to be scaled
    model = tiny_model(tmp_path / "model", unet={"sample_size": 16})
    methods.run.run(
        config(
            model=str(model),
            data=tiny_data_folder,
            train_steps=2,
            batch_size=4,
            images=8,
            processes=2,
            precision="fp32",
            out=tmp_path / "page.md",
        )
    )
    found = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert len(found["rows"]) == len(STEPS) * (1 + sum(len(student.scales) for student in STUDENTS))
    assert methods.page.page(found) == (tmp_path / "page.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "pictures" / "methods.jpg") as sheet:
        assert sheet.height > 8 * methods.measures.CELL
    monkeypatch.setattr(trainings, "started", None)  # nothing is trained again
    methods.run.run(config(model=str(model), data=tiny_data_folder, train_steps=2, batch_size=4, precision="fp32",
                           only_train=True, out=tmp_path / "page.md"))  # fmt: skip
