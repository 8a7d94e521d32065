"""docs/ablations.md: runs are what they are called, what it says follows from its figures, and it can all be done."""

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fewstep.configs import build
from fewstep.diffusion.schedule import lcm_grid, skipping_grid
from fewstep.errors import FewstepError, UsageError
from fewstep.metrics.estimate import Estimate
from fewstep.session.plan import psi_named
from fewstep.sheets import small_jpeg
from fewstep.training.players import Average
from studies import ablations
from tests.tiny import tiny_model

DOCS = Path(__file__).parents[2] / "docs"
GROUPS = ablations.groups.all_groups(100, long=True)
MEASURES = ablations.measures.MEASURES


def config(**changes: object):
    return build(ablations.config.AblationsConfig, **changes)


def runs(of: str = "model data", **changes: object) -> dict:
    """All runs of all groups, by group and name."""
    wanted = config(**changes)
    return {
        (name, run): trained
        for name, group in ablations.groups.all_groups(wanted.train_steps, wanted.long).items()
        for run, trained in ablations.runs.runs_of(name, group, wanted, Path("data"), of).items()
    }


def patched(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """Other globals for the generator's functions."""
    for name, value in values.items():
        for module in (ablations.groups, ablations.measures, ablations.run, ablations.runs):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


# --- the runs -----------------------------------------------------------------------------------------------


def test_every_group_begins_with_the_base_and_no_run_is_another() -> None:
    found = runs()
    bases = {next(folder for (name, _), folder in found.items() if name == group).config.out for group in GROUPS}
    assert len(bases) == 1
    folders = [run.config.out for run in found.values()]
    assert len(set(folders)) == len(folders) - len(GROUPS) + 1
    names = [run.name for run in found.values()]
    assert len(set(names)) == len(names) - len(GROUPS) + 1


def test_a_run_differs_from_the_base_in_what_its_name_says() -> None:
    found = runs()
    base = found["rank", "rank 16"].config.model_dump()
    changed = {
        place: {field for field, value in run.config.model_dump().items() if value != base[field]} - {"out"}
        for place, run in found.items()
    }
    assert changed["target", "EMA 0.99"] == {"target_decay"}
    assert changed["guidance", "2 to 6, drawn"] == {"guidance_scale", "guidance_scale_max"}
    assert changed["rank", "full"] == {"full", "learning_rate"}
    assert changed["length", "37 steps, a quarter"] == {"train_steps", "warmup"}
    assert all(
        len(fields) == 1
        for (group, _), fields in changed.items()
        if group in {"loss", "psi", "k", "weighting", "grid"} and fields
    )


@pytest.mark.parametrize(
    "changes", [{"batch_size": 8}, {"train_steps": 152}, {"precision": "fp32"}, {"of": "other data"}], ids=str
)
def test_other_runs_lie_elsewhere(changes) -> None:
    assert not {run.config.out for run in runs().values()} & {run.config.out for run in runs(**changes).values()}


def test_a_run_is_the_command_that_trains_it() -> None:
    run = runs()["rank", "full"]
    typed = ablations.runs.command(run.config)
    assert typed[1:4] == ["-m", "fewstep", "distill"]
    assert {"--full", "--resume"} < set(typed)
    for option, value in {"--steps": "150", "--learning-rate": "0.0003", "--out": str(run.config.out)}.items():
        assert typed[typed.index(option) + 1] == value


def test_four_steps_lie_on_the_grid_of_every_k() -> None:
    for name, changes in GROUPS["k"].runs.items():
        k = changes.get("k", 20)
        points = lcm_grid(4, k)
        assert len(set(points)) == 4
        assert set(points) <= set(skipping_grid(k))
        assert name == f"k = {k}: {1000 // k} timesteps"


def test_every_psi_is_one() -> None:
    assert [psi_named(name).calls for name in GROUPS["psi"].runs] == [1, 2, 2, 2, 3]


def test_the_teacher_as_a_target_stays_the_teacher() -> None:
    average = Average(GROUPS["target"].runs["teacher"]["target_decay"], {"B": torch.zeros(3)})
    for step in range(1, 300):
        average.update({"B": torch.ones(3)}, step)
    assert float(average.shadow["B"].max()) < 1e-9


def test_short_runs_have_no_shorter_ones() -> None:
    assert list(ablations.groups.all_groups(2)["length"].runs) == ["2 steps", "1 steps, a half"]
    assert list(ablations.groups.all_groups(1)["length"].runs) == ["1 steps"]


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown group speed"):
        ablations.run.chosen(config(groups=("k", "speed")))
    assert list(ablations.run.chosen(config(groups=("psi", "k")))) == ["psi", "k"]


# --- training them ------------------------------------------------------------------------------------------


def test_a_failed_run_is_one_line_and_the_others_go_on(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    bad, good, old = list(runs().values())[:3]
    line = json.dumps({"step": 150, "images_per_s": 8.0})
    written = f"import pathlib; pathlib.Path({str(good.config.out / 'metrics.jsonl')!r}).write_text({line!r})"
    does = {bad.config.out: "print('no luck'); raise SystemExit(3)", good.config.out: written}
    patched(monkeypatch, command=lambda config: [sys.executable, "-S", "-c", does[config.out]])
    old.config.out.mkdir(parents=True)
    old.mark.write_text("{}")
    ablations.runs.train([bad, good, old], processes=2)
    said = capfd.readouterr().err.splitlines()
    assert "3 runs, 1 of them finished before" in said[0]
    assert f"{bad.name}: failed with exit code 3, see {bad.log}" in "\n".join(said)
    assert "150 steps, 8.0 images/s" in "\n".join(said)
    assert {said[1][:5], said[2][:5]} == {"[2/3]", "[3/3]"}
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
        ablations.runs.train(list(runs().values())[:2], processes=2)
    assert time.monotonic() - begun < 50


def test_every_third_drawing_is_taken_and_a_third_of_these_name_no_style(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with pytest.raises(FewstepError, match=re.escape("base.jsonl\n\nhint: run python -m recipes.emoji.dataset")):
        ablations.runs.drawings()
    folder = tmp_path / "emoji" / "images"
    folder.mkdir(parents=True)
    (folder / "base.jsonl").write_text("".join(f'{{"text": "flat emoji of é {i}"}}\n' for i in range(12)), "utf-8")
    told = [json.loads(line)["text"] for line in ablations.runs.drawings().read_text("utf-8").splitlines()]
    assert told == ["é 0", "flat emoji of é 3", "flat emoji of é 6", "é 9"]


# --- what the page says -------------------------------------------------------------------------------------


def estimated(value: float, error: float = 0.0) -> Estimate:
    """With that jackknife error, of two groups."""
    return Estimate(value, (value - error, value + error))


def run_said(name: str, base: tuple[float, ...] = (), now: tuple[float, ...] = (0.4, 100, 0.3, 0.9), **more) -> dict:
    """A run as data. base: its measures before, for a run that is not the base; every error is a hundredth."""

    def measured(numbers: tuple[float, ...], share: float = 0.01):
        return ablations.measures.Measured(*(estimated(x, share * x) for x in numbers))

    at = {"steps": 4, **ablations.measures.values(measured(now))}
    if base:
        at["change"] = ablations.measures.values(ablations.measures.less(measured(now, 0.02), measured(base, 0.01)))
    return {"name": name, "time": 1.0, "bytes": 1_400_000, "at": [at]} | more


BASE = (0.4, 100, 0.3, 0.9)


def document(**groups: dict) -> dict:
    """A document of these groups."""
    numbers = run_said("any")["at"][0]
    same = {"fewstep": "0", "model": "emoji", "model_sha256": "", "samples": 12, "train_steps": 100}
    same |= {"batch_size": 4, "precision": "bf16", "processes": 2, "images": 8, "styleless": 3, "prompt": "é"}
    return same | {"teacher": numbers, "not_distilled": numbers, "groups": groups}


def group(*runs: dict, pairs: tuple = (), failed: tuple = ()) -> dict:
    return {"runs": list(runs), "pairs": list(pairs), "failed": list(failed)}


def test_the_page_is_what_its_figures_make() -> None:
    if not (DOCS / "ablations.json").is_file():
        pytest.skip("not measured yet")
    found = json.loads((DOCS / "ablations.json").read_text(encoding="utf-8"))
    assert ablations.page.page(found) == (DOCS / "ablations.md").read_text(encoding="utf-8")


def test_a_page_has_a_section_a_group_and_survives_json() -> None:
    base, other = run_said("rank 16"), run_said("rank 1", BASE, (0.2, 150, 0.4, 0.7), bytes=100_000)
    full = document(rank=group(base, other), psi=group(run_said("ddim"), failed=("heun",)))
    text = ablations.page.page(json.loads(json.dumps(full)))
    assert text.index("## Rank") < text.index("## Psi")
    assert "| rank 1  |  20.0 ± 0.2 |" in text
    assert "**+50.0 ± 2.0**" in text
    assert "file, MB" in text.split("## Rank")[1].split("## Psi")[0]
    assert "file, MB" not in text.split("## Psi")[1]
    assert "* Left out, because training failed: `heun`." in text
    assert "](pictures/ablations-rank.jpg)" in text
    assert "{" not in text
    assert not re.search(r"\n\n\n", text)


@pytest.mark.parametrize(
    ("name", "now", "sentence"),
    [
        ("distance", (0.4, 80, 0.3, 1), "* distance: best is `B`; better than A: `B`."),
        ("distance", (0.4, 120, 0.3, 1), "* distance: best is `A`; worse than A: `B`."),
        ("distance", (0.4, 99, 0.3, 1), "* distance: best is `B`; not told apart from A: `B`."),
        ("distance", (0.4, 100, 0.3, 1), "* distance: best are `A`, `B`; not told apart from A: `B`."),
        ("agreement", (0.5, 100, 0.3, 1), "* agreement: best is `B`; better than A: `B`."),
        ("agreement", (0.3, 100, 0.3, 1), "* agreement: best is `A`; worse than A: `B`."),
        ("lpips", (0.4, 100, 0.1, 1), "* LPIPS: best is `B`; better than A: `B`."),
    ],
)
def test_verdicts(name, now, sentence) -> None:
    assert ablations.page.verdict(name, [run_said("A"), run_said("B", BASE, now)]) == sentence


def test_equal_pictures_are_not_told_apart() -> None:
    same = run_said("B", BASE, BASE)
    same["at"][0]["change"] = {name: {"value": 0.0, "error": 0.0} for name in MEASURES}
    assert ablations.page.verdict("distance", [run_said("A"), same]).endswith("not told apart from A: `B`.")
    assert not ablations.measures.certain({"value": 2.0, "error": 1.0})


def test_a_group_of_the_base_alone_says_nothing() -> None:
    text = ablations.page.section("seed", group(run_said("seed 0")), GROUPS["seed"])
    assert "best" not in text
    assert "| seed 0 |" in text


def test_errors_of_changes_are_paired() -> None:
    one, other = ([estimated(x, share * x) for x in BASE] for share in (0.02, 0.01))
    changes = ablations.measures.less(ablations.measures.Measured(*one), ablations.measures.Measured(*other))
    assert changes.distance.value == 0
    assert changes.distance.error == pytest.approx(1)


def test_other_numbers_of_steps_have_a_table_of_their_own() -> None:
    base, other = run_said("A"), run_said("B", BASE)
    for run, more in ((base, run_said("A")), (other, run_said("B", BASE))):
        run["at"].append(more["at"][0] | {"steps": 1})
    lines = ablations.page.steps_table([base, other]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1 step: A", "1 step: B"]
    assert ablations.page.steps_table([run_said("A")]) == ""


def test_chance_is_said_and_counted() -> None:
    found = document(rank=group(run_said("A"), run_said("B", BASE, (0.4, 150, 0.3, 0.9))))
    said = ablations.page.by_chance(found)
    assert said == "1 of 4 are; of 4 differences of nothing, about 0 would be"


def test_what_other_seeds_do_is_said() -> None:
    seeds = group(
        run_said("seed 0"), run_said("1", BASE, (0.41, 97, 0.3, 0.9)), run_said("2", BASE, (0.4, 101, 0.31, 1))
    )
    said = ablations.page.by_seed(document(seed=seeds))
    assert "agreement % by 1.0, distance by 3.0, LPIPS by 0.0100, sharpness by 0.100 at most" in said
    assert ablations.page.by_seed(document()) == ""


def test_pairs_beside_the_base_are_said() -> None:
    pair = {"run": "B", "beside": "C", "change": run_said("B", BASE, (0.4, 150, 0.3, 0.9))["at"][0]["change"]}
    assert "`B` beside `C`: agreement % +0.0 ± 0.4, distance **+50.0 ± 2.0**" in ablations.page.pair_text(pair)


def test_sheets_are_small_enough() -> None:
    torch.manual_seed(0)
    noise = Image.fromarray(torch.randint(0, 256, (700, 700, 3), dtype=torch.uint8).numpy())
    largest = 6 * ablations.measures.ROW_BYTES
    assert len(small_jpeg(noise, largest)) <= largest


# --- all of it ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_tiny_runs_make_a_page_and_are_kept(tmp_path, tiny_data_folder, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    patched(monkeypatch, TEACHER_STEPS=2)
    model = tiny_model(tmp_path / "model", unet={"sample_size": 16})
    wanted = config(model=str(model), data=tiny_data_folder, groups=("length",), train_steps=2, batch_size=4,
                    images=8, processes=2, precision="fp32", out=tmp_path / "page.md")  # fmt: skip
    patched(monkeypatch, ROW_BYTES=50_000)  # large enough for its pictures not to be scaled
    ablations.run.run(wanted)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in found["groups"]["length"]["runs"]] == ["2 steps", "1 steps, a half"]
    assert found["groups"]["length"]["failed"] == []
    assert ablations.page.page(found) == text
    with Image.open(tmp_path / "pictures" / "ablations-length.jpg") as sheet:
        assert sheet.height > 3 * ablations.measures.CELL
    patched(monkeypatch, started=None, measure=lambda *ignored: found)  # nothing is trained again
    ablations.run.run(wanted)
