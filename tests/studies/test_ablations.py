"""docs/ablations.md: runs are what they are called, what it says follows from its figures, and it can all be done."""

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from fewstep.configs import build
from fewstep.diffusion.schedule import lcm_grid, skipping_grid
from fewstep.errors import FewstepError, UsageError
from studies import ablations, bench, trainings
from tests.tiny import tiny_model

DOCS = Path(__file__).parents[2] / "docs"
ARMS = ablations.arms.arms(100)
MEASURES = ablations.measures.MEASURES


def config(**changes: object):
    return build(ablations.config.AblationsConfig, **changes)


def runs(of: str = "model data", **changes: object) -> dict:
    """All runs, by arm and seed."""
    wanted = config(**changes)
    return {
        (arm.name, seed): run
        for arm in ablations.arms.arms(wanted.train_steps)
        for seed, run in enumerate(ablations.runs.runs_of(arm, wanted, Path("data"), of))
    }


def patched(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """Other globals for the study's functions."""
    for name, value in values.items():
        for module in (ablations.measures, ablations.run, bench, trainings):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


# --- the runs -----------------------------------------------------------------------------------------------


def test_every_arm_has_its_own_trainings_and_every_seed_its_own() -> None:
    found = runs()
    assert len(found) == 3 * len(ARMS)
    assert len({run.config.out for run in found.values()}) == len(found)
    assert len({run.name for run in found.values()}) == len(found)
    assert [found["base", seed].config.seed for seed in range(3)] == [0, 1, 2]


def test_a_run_differs_from_the_base_of_its_seed_in_what_its_name_says() -> None:
    found = runs()
    changed = {}
    for (arm, seed), run in found.items():
        base = found["base", seed].config.model_dump()
        fields = {field for field, value in run.config.model_dump().items() if value != base[field]} - {"out"}
        assert changed.setdefault(arm, fields) == fields
    assert changed == {
        "base": set(),
        "guidance drawn, 2 to 6": {"guidance_scale", "guidance_scale_max"},
        "online target": {"target"},
        "online target, guidance drawn, 2 to 6": {"target", "guidance_scale", "guidance_scale_max"},
        "online target, guidance drawn, 6 to 16": {"target", "guidance_scale", "guidance_scale_max"},
        "Psi DPM-Solver++(2S)": {"psi"},
        "k = 50": {"k"},
        "k = 100": {"k"},
        "method TCD": {"method"},
        "rank 4": {"rank"},
        "rank 64": {"rank"},
        "half as long": {"train_steps", "warmup"},
        "twice as long": {"train_steps", "warmup"},
    }


def test_arms_are_judged_at_the_guidance_they_were_distilled_at() -> None:
    at = {arm.name: arm.guidance_scale for arm in ARMS}
    assert at["base"] == at["online target, guidance drawn, 2 to 6"] == 4
    assert at[ablations.page.PUBLISHED] == 11


@pytest.mark.parametrize(
    "changes", [{"batch_size": 8}, {"train_steps": 170}, {"precision": "fp32"}, {"of": "other data"}], ids=str
)
def test_other_runs_lie_elsewhere(changes) -> None:
    assert not {run.config.out for run in runs().values()} & {run.config.out for run in runs(**changes).values()}


def test_a_run_is_the_command_that_trains_it() -> None:
    run = runs()["rank 4", 2]
    typed = trainings.command(run.config)
    assert typed[1:4] == ["-m", "fewstep", "distill"]
    assert "--resume" in typed
    for option, value in {"--steps": "160", "--rank": "4", "--seed": "2", "--out": str(run.config.out)}.items():
        assert typed[typed.index(option) + 1] == value


@pytest.mark.parametrize("steps", [ablations.measures.STEPS, ablations.measures.FEWER])
def test_pictures_are_drawn_on_the_grid_of_every_k(steps) -> None:
    for arm in ARMS:
        k = arm.changes.get("k", ablations.arms.BASE["k"])
        points = lcm_grid(steps, k)
        assert len(set(points)) == steps
        assert set(points) <= set(skipping_grid(k))


def test_the_shortest_training_has_a_step() -> None:
    assert ablations.arms.arms(1)[-2].changes == {"train_steps": 1}


def test_an_unknown_arm_is_refused_and_the_base_is_always_there() -> None:
    with pytest.raises(UsageError, match="unknown arm speed"):
        ablations.run.chosen(config(arms=("rank 4", "speed")))
    assert [arm.name for arm in ablations.run.chosen(config(arms=("rank 4", "k = 50")))] == ["base", "k = 50", "rank 4"]
    assert ablations.run.chosen(config()) == ablations.arms.arms(160)


# --- training them ------------------------------------------------------------------------------------------


def test_a_failed_run_is_one_line_and_the_others_go_on(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    bad, good, old = list(runs().values())[:3]
    line = json.dumps({"step": 160, "images_per_s": 8.0})
    written = f"import pathlib; pathlib.Path({str(good.config.out / 'metrics.jsonl')!r}).write_text({line!r})"
    does = {bad.config.out: "print('no luck'); raise SystemExit(3)", good.config.out: written}
    patched(monkeypatch, command=lambda config: [sys.executable, "-S", "-c", does[config.out]])
    old.config.out.mkdir(parents=True)
    old.mark.write_text("{}")
    trainings.train([bad, good, old], processes=2)
    lines = capfd.readouterr().err.splitlines()
    assert "3 runs, 1 of them finished before" in lines[0]
    assert f"{bad.name}: failed with exit code 3, see {bad.log}" in "\n".join(lines)
    assert "160 steps, 8.0 images/s" in "\n".join(lines)
    assert {lines[1][:5], lines[2][:5]} == {"[2/3]", "[3/3]"}
    assert bad.log.read_text() == "no luck\n"
    assert [run.mark.is_file() for run in (bad, good, old)] == [False, True, True]


def test_what_stops_the_command_stops_its_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    patched(
        monkeypatch,
        command=lambda config: [sys.executable, "-S", "-c", "import time; time.sleep(100)"],
        time=SimpleNamespace(sleep=interrupted, monotonic=time.monotonic),
    )
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        trainings.train(list(runs().values())[:2], processes=2)
    assert time.monotonic() - begun < 50


def test_every_third_drawing_is_taken_and_half_of_these_name_no_style(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with pytest.raises(FewstepError, match=re.escape("base.jsonl\n\nhint: run python -m recipes.emoji.dataset")):
        trainings.drawings()
    folder = tmp_path / "emoji" / "images"
    folder.mkdir(parents=True)
    whole = folder / "base.jsonl"

    def captions() -> list[str]:
        return [json.loads(line)["text"] for line in trainings.drawings().read_text("utf-8").splitlines()]

    whole.write_text("".join(f'{{"text": "flat emoji of é {i}"}}\n' for i in range(12)), "utf-8")
    assert captions() == ["é 0", "flat emoji of é 3", "é 6", "flat emoji of é 9"]
    whole.write_text('{"text": "flat emoji of a"}\n', "utf-8")
    assert captions() == ["a"]  # of the data set that is there now


# --- seeds --------------------------------------------------------------------------------------------------


def test_the_error_is_that_of_seeds_by_students_t() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), and t = 4.303 with 2 degrees of freedom."""
    found = ablations.measures.change([1.5, 2.0, 5.0], [0.5, 0.0, 2.0])
    assert found.value == pytest.approx(2)
    assert found.error == pytest.approx(3**-0.5)
    assert found.margin == pytest.approx(4.302653 * 3**-0.5, rel=1e-5)


def test_what_sways_all_arms_of_a_seed_alike_is_no_error() -> None:
    base = [0.1, 0.5, 0.9]
    found = ablations.measures.change([value + 0.25 for value in base], base)
    assert found.margin == pytest.approx(0, abs=1e-12)
    assert ablations.page.is_certain(found._asdict())


# --- what the page says -------------------------------------------------------------------------------------


def trained(name: str, *values: tuple[float, float, float, float], base: tuple = (), **more: object) -> dict:
    """An arm as data. values: of each seed its measures. base: those of the base's seeds, for another arm."""
    rows, base_rows = ([dict(zip(MEASURES, one, strict=True)) for one in seeds] for seeds in (values, base))
    changes = ablations.measures.changes(rows, base_rows) if base else {}
    return {
        "name": name,
        "guidance_scale": 4.0,
        "bytes": 2_700_000,
        "time": 1.0,
        "runs": rows,
        "change": changes,
    } | more


BASE = ((0.004, 0.70, 0.8, 0.5), (0.005, 0.72, 0.8, 0.5), (0.006, 0.71, 0.8, 0.5))


def moved(*by: float) -> tuple:
    """The base's measures, moved by that much, a little otherwise in every seed."""
    return tuple(
        tuple(value + x * (1 + 0.01 * seed) for value, x in zip(values, by, strict=True))
        for seed, values in enumerate(BASE)
    )


def document(*arms: dict) -> dict:
    """A document of the base and these arms."""
    ends = dict(zip(MEASURES, BASE[0], strict=True))
    return {
        "fewstep": "0", "model": "emoji", "model_sha256": "a" * 64, "samples": 12, "styleless": 2, "seeds": 3,
        "train_steps": 100, "batch_size": 4, "precision": "bf16", "images": 8, "prompt": "é",
        "teachers": {"4": {"agreement": 0.8, "sharpness": 1.0}}, "not_distilled": ends,
        "arms": [trained("base", *BASE), *arms],
    }  # fmt: skip


def test_the_page_is_what_its_figures_make() -> None:
    found = json.loads((DOCS / "ablations.json").read_text(encoding="utf-8"))
    assert ablations.page.page(found) == (DOCS / "ablations.md").read_text(encoding="utf-8")


def test_what_seeds_do_is_not_bold_and_more_is() -> None:
    better = trained("rank 4", *moved(-0.002, 0.05, 0.1, 0.1), base=BASE)
    swayed = trained("k = 50", (0.001, 0.75, 0.7, 0.4), (0.009, 0.69, 0.9, 0.6), (0.006, 0.73, 0.8, 0.5), base=BASE)
    text = ablations.page.page(json.loads(json.dumps(document(better, swayed))))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["rank 4"].count("**") == 2 * len(MEASURES)
    assert "**-2.0 ± " in rows["rank 4"]
    assert "**" not in rows["k = 50"] + rows["base"]
    assert ablations.page.learnt(document(better, swayed)) == [
        "Other seeds of one and the same training move KID-T x 1000 by 2.0 and agreement by 2.0 points.",
        "By KID-T, “rank 4” is better than the base.",
        "By agreement, “rank 4” is better than the base.",
        "By no measure can “k = 50” be told from the base.",
    ]


def test_a_page_opens_with_at_most_five_sentences_a_table_and_a_picture_and_is_short() -> None:
    names = [arm.name for arm in ARMS[1:]]
    found = document(*(trained(name, *moved(0.001, 0, 0, 0), base=BASE) for name in names))
    text = ablations.page.page(found)
    assert 1 <= len(ablations.page.learnt(found)) <= 5
    opening = text.split("-->")[1].split("\n| ")[0]
    assert max(map(len, opening.splitlines())) <= 120
    assert text.count("pictures/ablations.jpg") == 1
    assert len(text.splitlines()) <= 150
    assert "(results.md)" in text
    assert "{" not in text
    assert "are worse than the base" in " ".join(opening.split())
    assert "2.7 MB at rank 16" in text
    assert not re.search(r"\n\n\n", text)


def test_a_change_of_nothing_is_said_to_be_one() -> None:
    same = trained("rank 4", *BASE, base=BASE)
    assert ablations.page.by_measure("kid_t", [same]) == "By KID-T, no arm differs from the base by more than seeds do."


def test_what_was_found_earlier_is_computed_from_what_is_kept() -> None:
    assert ablations.page.largest({"base": 0.5, "a": 0.6, "b": 0.3}) == pytest.approx(-0.2)
    text = " ".join(ablations.page.earlier().split())
    moves = [abs(float(number)) for number in re.findall(r"by (?:at most )?([-+]?\d+\.\d)", text)]
    seed, small, grid, full = moves
    assert small <= seed < min(grid, full)  # which is what the sentences say


def test_nothing_measured_is_said() -> None:
    assert "Not measured yet" in ablations.page.page({"arms": []})


# --- all of it ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_tiny_runs_make_a_page_and_are_kept(tmp_path, tiny_data_folder, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    patched(monkeypatch, TEACHER_STEPS=2)
    model = tiny_model(tmp_path / "model", unet={"sample_size": 16})
    wanted = config(model=str(model), data=tiny_data_folder, arms=("rank 4",), train_steps=2, batch_size=4, seeds=2,
                    images=8, processes=2, precision="fp32", out=tmp_path / "page.md")  # fmt: skip
    patched(monkeypatch, ROW_BYTES=50_000)  # large enough for its pictures not to be scaled
    ablations.run.run(wanted)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in found["arms"]] == ["base", "rank 4"]
    assert [len(arm["runs"]) for arm in found["arms"]] == [2, 2]
    assert ablations.page.page(found) == text
    with Image.open(tmp_path / "pictures" / "ablations.jpg") as sheet:
        assert sheet.height > 3 * ablations.measures.CELL
    patched(monkeypatch, started=None, measure=lambda *ignored: found)  # nothing is trained again
    ablations.run.run(wanted)
