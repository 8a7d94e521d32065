"""docs/results.md: what it says follows from its figures, and nothing that is measured is measured again."""

import io
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.assets import ACCELERATION
from fewstep.configs import CompareConfig, build
from fewstep.data.prompts import read_prompts
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.evidence import nfe_of
from fewstep.evaluate.rows import parse_row
from fewstep.sheets import small_jpeg
from studies import results
from studies.results.verdicts import FAILED, MET, OPEN, Figure
from tests.tiny import tiny_images, tiny_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHEET = Image.new("RGB", (300, 200), "white")
PIECES = tuple(results.config.PIECES)


# --- plausible figures, made here ---------------------------------------------------------------------------


def compared(config: CompareConfig) -> dict:
    """A comparison's document as table.json has it: the more network rows, the nearer; the LoRA is near in four."""
    rows: list[dict] = []
    for text in config.rows:
        rows.append(row_of(text, config, rows[0] if rows else None))
    return {"protocol": protocol_of(config), "rows": rows}


def interval(name: str, value: float, margin: float) -> dict:
    """A number and the ends of its interval."""
    return {name: value, f"{name}_low": value - margin, f"{name}_high": value + margin}


def row_of(text: str, config: CompareConfig, first: dict | None) -> dict:
    """A row of it."""
    spec = parse_row(text)
    nfe, lcm = nfe_of(spec), any(lora.endswith(f"{ACCELERATION}:1") for lora in spec.loras)
    far = 0.04 / (16 if lcm else nfe)
    with_teacher, many = config.teacher_images > 0, min(config.images, config.teacher_images) > 2048
    row = {
        "row": text, "solver": spec.solver, "eta": None, "gamma": None, "steps": spec.steps,
        "timesteps": [999] * spec.steps, "guidance_scale": spec.guidance_scale or 1.0, "guidance_search": None,
        "lora": [], "nfe": nfe, "time_s": nfe / 100, "speedup": first["nfe"] / nfe if first else 1.0,
        "time_split_s": {"text": 0.0, "network": nfe / 100, "decoder": 0.0},
        "fid": 20 + far if config.reference and config.images > 2048 else None, "fid_spread": None,
        **interval("kid", 0.02 + far, 0.002), "kid_blocks": [0.02 + far + i / 1e5 for i in range(10)],
        "lpips_teacher": 0.1 + far, "agreement": 0.5 - far, "diversity": 0.4, "efficientnet_score": 9.0,
        **interval("kid_t", far, 0.0005), "kid_t_without": [far + i / 1e5 for i in range(16)],
        "fid_t": 3 + far if many else None, "patch_fid_t": 5 + far if many else None, "mind": 30 + 100 * far,
        **interval("sharpness", 1 - 10 * far, 0.02), "efficientnet_distance": None, "clip_score": None,
    }  # fmt: skip
    if not with_teacher:
        row |= {key: None for key in row if key.startswith(("kid_t", "mind", "sharpness"))}
    ratio = row["agreement"] / first["agreement"] if first else 1.0
    return row | {"beside_first": {**interval("agreement_ratio", ratio, 0.02)} if first else None}


def protocol_of(config: CompareConfig) -> dict:
    """Its protocol."""
    teacher = {"images": config.teacher_images, "first_seed": 9, "solver": "ddim", "steps": 100, "guidance_scale": 4.0}
    return {
        "fewstep": "0", "versions": {"torch": "2"}, "machine": "a processor, 1 thread, cpu, Linux",
        "model": {"name": config.model, "sha256": "0" * 64}, "dtype": config.dtype, "size": 128,
        "prompts": {"source": str(config.prompt_file or config.reference), "count": 9, "sha256": "1" * 64},
        "images": config.images, "seed_sets": 1, "seeds": "they count up", "batch_size": config.batch_size,
        "networks": {"lpips": {"label": "lpips", "sha256": "3" * 64}},
        "reference": config.reference and {"source": str(config.reference), "images": 868, "sha256": "2" * 64},
        "teacher_pictures": teacher if config.teacher_images else None,
    }  # fmt: skip


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Inputs in a cache folder of the test's own, and what compare was called with, which only pretends."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "cache" / "emoji" / "images"
    images.mkdir(parents=True)
    known = [prompt.concept for prompt in read_prompts(ROOT / "src/fewstep/assets/prompts/names.jsonl")[:3]]
    for name in ("base", "high-contrast", "noto-mono", "fxemoji"):
        tiny_images(images / name, 4)
        lines = [
            json.dumps({"file_name": f"{name}/{file.name}", "text": f"flat emoji of {file.stem}", "style": "flat",
                        "concept": known[number % 3]})
            for number, file in enumerate(sorted(images.glob(f"{name}/*.png")))
        ]  # fmt: skip
        (images / f"{name}.jsonl").write_text("\n".join(lines * 400))
    tiny_model(tmp_path / "cache" / "emoji" / "fxemoji" / "model")
    made = []

    def measure(config):
        made.append(config)
        config.out.mkdir(parents=True)
        SHEET.save(config.out / "sheet.png")
        (config.out / "table.json").write_text(json.dumps(compared(config)))

    monkeypatch.setattr(results.jobs.comparing, "compare", measure)
    monkeypatch.setattr(results.pictures, "rows_sheet", lambda job, count: SHEET)
    monkeypatch.setattr(results.pictures, "typed_sheet", lambda job, count: SHEET)
    return made


def config(tmp_path, **options):
    return build(results.config.ResultsConfig, out=tmp_path / "page" / "results.md", **options)


# --- the page -----------------------------------------------------------------------------------------------


def figures() -> dict:
    """Those that stand in docs."""
    file = DOCS / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def test_pieces_that_different_machines_measured_name_theirs() -> None:
    job = build(CompareConfig)
    one, other = ({"protocol": protocol_of(job) | {"machine": name}} for name in ("this machine", "that one"))
    alike = results.page.protocol({"names": {"a": one}, "typed": {"b": one}})
    assert alike.count("this machine") == 1
    lines = results.page.protocol({"names": {"a": one}, "typed": {"b": other}}).splitlines()
    assert [line.rpartition("; ")[2] for line in lines if line.startswith(("* names", "* typed"))] == [
        "this machine",
        "that one",
    ]


def test_the_page_is_what_its_figures_make() -> None:
    assert results.page.page(figures()) == (DOCS / "results.md").read_text(encoding="utf-8")


def test_the_readme_has_the_headline_table_of_the_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.page.with_table(text, figures()) == text
    assert results.page.TABLE.search(text)


def test_the_page_is_short_and_its_pictures_are_small() -> None:
    text = (DOCS / "results.md").read_text()
    assert len(text.splitlines()) <= 150
    if figures().keys() == set(PIECES):
        sizes = [(DOCS / path).stat().st_size for path in re.findall(r"!\[.*\]\((.*)\)", text)]
        assert max(sizes) <= 250_000


def test_a_page_without_figures_says_what_is_missing() -> None:
    page = results.page.page({})
    assert [page.count(f"Not measured yet: `python -m studies.results --pieces {piece}`") for piece in PIECES] == [
        1
    ] * len(PIECES)
    assert "not measured yet" in page


def test_all_pieces_make_a_page(calls, tmp_path, capsys) -> None:
    results.run.run(config(tmp_path, teacher_guidance=4))
    folder = tmp_path / "page"
    page, document = (folder / "results.md").read_text(), json.loads((folder / "results.json").read_text())
    assert capsys.readouterr().out.strip() == page.strip()
    assert page == results.page.page(document)
    assert "Not measured" not in page
    assert len(page.splitlines()) <= 150
    assert re.search(r"^\| sampler +\| steps \| time \(s\) \| +FID \| LPIPS \| +KID-T x 1000 \[95 %\] \|", page, re.M)
    assert re.search(r"^\| LCM-LoRA +\| +4 \| +0.040 \|", page, re.M)
    assert page.count("* **") == 6 + 5 + 6
    assert str(tmp_path) not in page + json.dumps(document)
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert all((folder / picture).is_file() for picture in pictures)
    assert (folder / "pictures" / "results-readme.jpg").is_file()


def test_the_readme_gets_the_headline_alone() -> None:
    document = {"survey": {"survey": compared(survey_job())}, "typed": {}}
    text = "a\n<!-- the table: python -m studies.results.page -->\nold\n<!-- its end -->\nb\n"
    found = results.page.with_table(text, document)
    assert found.count("| LCM-LoRA") == 1
    assert "old" not in found
    assert "Patch" not in found
    assert results.page.with_table(found, document) == found
    assert results.page.with_table(text, {}) == text


def test_columns_that_were_not_measured_are_left_out() -> None:
    rows = compared(survey_job().model_copy(update={"teacher_images": 528}))["rows"]
    found = results.page.table(results.page.SURVEY, rows)
    assert "FID-T" not in found
    assert "| KID-T x 1000 [95 %] |" in found


def survey_job() -> CompareConfig:
    return build(CompareConfig, rows=("ddim:32@4", "lcm:4+lcm:1"), reference=Path("real"), images=2112,
                 teacher_images=2112)  # fmt: skip


def test_each_piece_draws_what_it_is_for(calls, tmp_path) -> None:
    results.run.run(config(tmp_path, teacher_guidance=4))
    survey, names, typed, best, model, contrast, mono = calls
    assert (survey.images, survey.teacher_images, len(survey.rows)) == (2112, 528, 4)
    assert (names.images, names.teacher_images, len(names.rows)) == (528, 528, 19)
    assert (str(names.prompt_file), str(typed.prompt_file)) == ("names", "typed")
    assert (typed.images, typed.reference, typed.rows) == (208, None, names.rows)
    assert names.rows[:4] == survey.rows == ("ddim:32@4", "dpm-solver:16@4", "dpm-solver++:8@4", "lcm:4+lcm:1")
    assert (best.images, best.teacher_images) == (128, 0)
    assert [job.lpips_images for job in calls] == [256, 256, 0, 0, 0, 0, 0]  # where the table shows LPIPS
    assert best.rows[:5] == tuple(f"ddim:32@{scale:g}" for scale in (1.5, 2, 3, 4, 5))
    assert model.model.endswith("fxemoji/model")
    assert [job.rows[0] for job in (model, contrast, mono)] == [
        "dpm-solver++:25@4", "dpm-solver++:25@4+high-contrast:1", "dpm-solver++:25@4+noto-mono:1"]  # fmt: skip
    assert mono.rows[1] == "lcm:4+noto-mono:0.8+lcm:1"
    assert re.fullmatch(r"lcm,.*:4@1\+noto-mono:0.8\+lcm:0", mono.rows[2])
    assert len(Path(mono.reference).read_text().splitlines()) == mono.images == 256
    assert {job.teacher_guidance for job in calls} == {4}


def test_the_reference_has_two_drawings_of_each_thing_first(calls) -> None:
    rows = results.pieces.read_rows(results.pieces.named_drawings())
    assert len(rows) == 1600  # all there are, of three things
    assert sorted(row["concept"] for row in rows[:6]) == sorted(2 * list(dict.fromkeys(row["concept"] for row in rows)))


def test_what_the_lora_is_no_part_of_may_be_drawn_before(calls, tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(results.run, "draw", lambda config, jobs: drawn.extend(jobs))
    results.run.run(config(tmp_path, rows="plain", processes=2, teacher_guidance=4))
    assert calls == []
    assert not any(results.pieces.is_lcm(lora) for job in drawn for row in job.rows for lora in parse_row(row).loras)
    assert [len(job.rows) for job in drawn] == [3, 11, 11, 15, 1, 1, 1]
    assert not (tmp_path / "page").exists()


def test_a_run_of_one_piece_leaves_the_others(calls, tmp_path) -> None:
    results.run.run(config(tmp_path, pieces="typed,plugin"))
    file = tmp_path / "page" / "results.json"
    before = json.loads(file.read_text())
    assert list(before) == ["typed", "plugin"]
    results.run.run(config(tmp_path, pieces="plugin", images=0.5))
    after = json.loads(file.read_text())
    assert after["typed"] == before["typed"]
    assert after["plugin"] != before["plugin"]


def test_what_is_finished_is_not_measured_again(calls, tmp_path) -> None:
    results.run.run(config(tmp_path, pieces="plugin"))
    assert len(calls) == 3
    results.run.run(config(tmp_path, pieces="plugin", device="cpu"))
    assert len(calls) == 3
    results.run.run(config(tmp_path, pieces="plugin", batch_size=4))
    assert len(calls) == 6


@pytest.mark.parametrize("changed", ["emoji/images/fxemoji.jsonl", "emoji/fxemoji/model/unet/config.json"])
def test_what_was_measured_of_other_files_is_measured_again(calls, tmp_path, changed) -> None:
    results.run.run(config(tmp_path, pieces="plugin"))
    file = tmp_path / "cache" / changed
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[: len(lines) // 2] if changed.endswith("l") else [*lines, "", ""]))
    results.run.run(config(tmp_path, pieces="plugin"))
    assert len(calls) == 4


def test_what_is_measured_with_other_source_is_measured_again(calls, tmp_path, monkeypatch) -> None:
    results.run.run(config(tmp_path, pieces="typed"))
    monkeypatch.setattr(results.jobs, "source_sha256", lambda file: "other")
    results.run.run(config(tmp_path, pieces="typed"))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("gone", "message", "hint"),
    [
        ("images/base.jsonl", "the real drawings are not there", "python -m recipes.emoji.dataset"),
        ("fxemoji/model/unet/config.json", "the fine-tuned model is not there", "python -m recipes.emoji.build"),
    ],
)
def test_inputs_that_are_missing_are_told_first(calls, tmp_path, gone, message, hint) -> None:
    path = tmp_path / "cache" / "emoji" / gone
    if path.suffix == ".json":
        path.parent.rename(path.parent.with_name("elsewhere"))
    else:
        path.unlink()
    with pytest.raises(FewstepError, match=message) as caught:
        results.run.run(config(tmp_path))
    assert hint in caught.value.hint
    assert calls == []


def test_unknown_pieces_are_refused() -> None:
    with pytest.raises(UsageError, match="'figure4' is no piece"):
        results.pieces.pieces_of("names,figure4")
    assert results.pieces.pieces_of("plugin, names") == ("names", "plugin")


def test_pictures_are_small() -> None:
    noise = Image.frombytes(
        "RGB", (900, 900), torch.randint(256, (900 * 900 * 3,), dtype=torch.uint8).numpy().tobytes()
    )
    smallest = small_jpeg(noise, 1000)
    assert len(smallest) < len(small_jpeg(noise, 10**7))
    assert Image.open(io.BytesIO(smallest)).size == (675, 675)


def test_sheets_are_stacked() -> None:
    whole = results.pictures.stacked([SHEET, Image.new("RGB", (100, 50), "black")])
    assert whole.size == (300, 250)
    assert whole.getpixel((10, 240)) == (0, 0, 0)
    assert whole.getpixel((200, 240)) == (255, 255, 255)


def test_the_typed_sheet_shows_the_rows_of_four_steps() -> None:
    rows = ("ddim:32@4", "ddim:4@1", "lcm:4+lcm:1", "lcm,grid=lcm,k=20:2@4+lcm:0", "lcm,grid=lcm,k=20:4@1+lcm:0",
            "lcm,grid=lcm,k=20:4@4+lcm:0")  # fmt: skip
    specs = list(map(parse_row, rows))
    found = [[spec.text for spec in specs if results.pictures.is_row(spec, start)] for start in results.pictures.STARTS]
    assert found == [[rows[0]], [rows[2]], [rows[4]]]


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "most", "least"),
    [
        (Figure(0.9, 0.8, 1.0), MET, OPEN),
        (Figure(1.1, 1.0, 1.2), OPEN, MET),
        (Figure(1.1, 1.01, 1.2), FAILED, MET),
        (Figure(0.8, 0.7, 0.99), MET, FAILED),
        (Figure(1.0, 0.9, 1.1), OPEN, OPEN),
        (Figure(None), OPEN, OPEN),
    ],
)
def test_verdicts_at_the_bar(figure, most, least) -> None:
    assert (results.verdicts.at_most(figure, 1.0), results.verdicts.at_least(figure, 1.0)) == (most, least)


def all_rows(**of_four) -> list[dict]:
    """The rows of names, the LoRA's in four steps as given."""
    rows = results.pieces.rows_of(ACCELERATION, results.pieces.recipe_of_lcm(), 4.0)
    document = compared(build(CompareConfig, rows=rows, images=528, teacher_images=528, reference=Path("real")))
    results.verdicts.fast(document["rows"], 4).update(of_four)
    return document["rows"]


def verdicts_of(lines: list[str]) -> list[str]:
    return [line.split("**")[1] for line in lines]


def test_the_bars_on_names() -> None:
    lines = results.verdicts.of_names(all_rows())
    assert verdicts_of(lines) == [MET, MET, OPEN, MET, MET]  # a quarter, as it happens, and as near as 16 NFE
    found = "KID-T x 1000 less that of the nearest, DDIM in 2 steps at guidance 4, is -7.50 [-7.50, -7.50]."
    assert lines[0].endswith(f"nearer to the teacher than all rows of 4 NFE without it: {found}")
    far = {"kid_t": 0.02, "kid_t_without": [0.02 + i / 1e4 for i in range(16)]}
    assert verdicts_of(results.verdicts.of_names(all_rows(**far)))[:4] == [FAILED] * 4
    rows = all_rows()
    results.verdicts.fast(rows, 2)["beside_first"] = interval("agreement_ratio", 0.8, 0.02)
    assert verdicts_of(results.verdicts.of_names(rows))[4:] == [FAILED]


def test_the_bar_of_the_survey() -> None:
    rows = all_rows()
    assert verdicts_of(results.verdicts.of_survey(rows)) == [MET]
    results.verdicts.fast(rows, 4)["beside_first"] = interval("agreement_ratio", 0.9, 0.02)
    assert verdicts_of(results.verdicts.of_survey(rows)) == [FAILED]


def test_the_bars_on_typed_prompts() -> None:
    assert verdicts_of(results.verdicts.of_typed(all_rows()))[-1] == MET
    assert verdicts_of(results.verdicts.of_typed(all_rows(**interval("sharpness", 0.85, 0.02))))[-1] == FAILED


def test_differences_are_paired() -> None:
    rows = all_rows()
    four, other = results.verdicts.fast(rows, 4), results.verdicts.best_plain(rows, 4)
    swayed = [one | {"kid_t_without": [value + i**2 / 1e3 for i, value in enumerate(one["kid_t_without"])]}
              for one in (four, other)]  # fmt: skip
    found = results.verdicts.beyond(*swayed)
    assert found.high - found.low < 1e-9
    assert found.value == pytest.approx(four["kid_t"] - other["kid_t"])
    assert results.verdicts.kid_beyond(four, other).value == pytest.approx(four["kid"] - other["kid"])


def test_the_bars_of_a_style() -> None:
    texts = ("dpm-solver++:25@4+noto-mono:1", "lcm:4+noto-mono:0.8+lcm:1", "lcm:4@1+noto-mono:0.8+lcm:0")
    rows = compared(build(CompareConfig, rows=texts, reference=Path("x")))["rows"]
    lines = results.verdicts.of_plugin("noto-mono", rows)
    assert verdicts_of(lines) == [FAILED, MET]
    assert lines[0].startswith("* **not met**: noto-mono with lcm in 4 steps is as near to its drawings as alone in 25")


# --- in several processes -----------------------------------------------------------------------------------


def test_cores_are_shared(monkeypatch) -> None:
    threads = []
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    results.jobs.share_cores(1)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    for processes, share in ((2, "3"), (4, "1"), (8, "1")):
        results.jobs.share_cores(processes)
        assert os.environ["OMP_NUM_THREADS"] == share
    assert threads == [3, 1, 1]


def test_errors_come_back_from_other_processes() -> None:
    for error in (FewstepError("what", "do"), UsageError("which", "so")):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), back.message, back.hint) == (type(error), error.message, error.hint)


@pytest.mark.long
def test_processes_draw_what_the_last_one_measures(tmp_path, monkeypatch) -> None:
    from fewstep.evaluate import row_pictures

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_pictures, "draw_batch", lambda *_: pytest.fail("drawn again"))
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    job = build(CompareConfig, model=str(tiny_model(tmp_path / "tiny")), rows=("ddim:2@1", "ddim:1@1"), images=4,
                batch_size=2, prompt_file=tmp_path / "prompts.txt", device="cpu", dtype="fp32")  # fmt: skip
    (done,) = results.jobs.measured(config(tmp_path, processes=2), [job])
    assert [row["row"] for row in done.document["rows"]] == list(job.rows)
    broken = job.model_copy(update={"model": str(tmp_path / "nothing")})
    with pytest.raises(FewstepError):
        results.jobs.draw(config(tmp_path, processes=2), [broken])
