"""docs/results.md: what it says follows from its figures, and nothing that is measured is measured again."""

import io
import json
import os
import pickle
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.configs import CompareConfig, TuneConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.candidates import grid_of
from fewstep.evaluate.prompts import read_prompts
from fewstep.evaluate.rows import parse_row
from fewstep.sheets import small_jpeg
from studies import results
from studies.results.verdicts import FAILED, MET, OPEN, Figure
from tests.tiny import tiny_images, tiny_model

DOCS = Path(__file__).parents[2] / "docs"
SHEET = Image.new("RGB", (300, 200), "white")
PIECES = tuple(results.config.PIECES)


# --- plausible figures, made here ---------------------------------------------------------------------------


def compared(config: CompareConfig) -> dict:
    """A comparison's document as table.json has it: the more steps, the nearer to the real images."""
    rows: list[dict] = []
    for text in config.rows:
        rows.append(row_of(text, config, rows[0] if rows else None))
    return {"protocol": protocol_of(config), "rows": rows}


def row_of(text: str, config: CompareConfig, first: dict | None) -> dict:
    """A row of it."""
    spec = parse_row(text)
    guidance = 1.5 if spec.best else spec.guidance_scale
    nfe = spec.steps * (1 if guidance == 1 else 2)
    worse, many = 1 / (8 if spec.solver == "lcm" else spec.steps), config.images > 2048
    search = [{"guidance_scale": g, "kid": 0.02 + g / 1000, "kid_low": 0.02, "kid_high": 0.04} for g in (1.0, 1.5)]
    row = {
        "row": text, "solver": spec.solver, "eta": None, "gamma": None, "steps": spec.steps,
        "timesteps": [999] * spec.steps, "guidance_scale": guidance, "guidance_search": search if spec.best else None,
        "lora": [], "nfe": nfe, "time_s": nfe / 100,
        "time_split_s": {"text": 0.0, "network": nfe / 100, "decoder": 0.0},
        "fid": 20 + 4 * worse if many else None, "fid_spread": 0.3 if many and config.seed_sets > 1 else None,
        "kid": 0.02 + worse / 1000, "kid_low": 0.018, "kid_high": 0.023, "lpips_teacher": 0.1 + worse,
        "agreement": 0.5 - worse / 10, "diversity": 0.4, "efficientnet_score": 9.0, "inception_score": None,
        "efficientnet_distance": 150 + 10 * worse if config.images > 1280 else None, "beside_first": None,
    }  # fmt: skip
    return row | {"beside_first": beside(row, first) if first else None}


def beside(row: dict, first: dict) -> dict:
    """A row beside the first one."""
    difference, ratio = row["kid"] - first["kid"], row["agreement"] / first["agreement"]

    def over(key: str) -> dict:
        value = None if row[key] is None else row[key] / first[key]
        return {f"{key}_ratio{end}": value and value + off for end, off in (("", 0), ("_low", -0.01), ("_high", 0.01))}

    return {
        **over("fid"), **over("efficientnet_distance"),
        "kid_difference": difference, "kid_difference_low": difference - 0.001,
        "kid_difference_high": difference + 0.001, "agreement_ratio": ratio, "agreement_ratio_low": ratio - 0.02,
        "agreement_ratio_high": ratio + 0.02, "speedup": first["time_s"] / row["time_s"],
    }  # fmt: skip


def protocol_of(config: CompareConfig) -> dict:
    """Its protocol."""
    return {
        "fewstep": "0", "versions": {"torch": "2"}, "machine": "a processor, 1 thread, cpu, Linux",
        "model": {"name": config.model, "sha256": "0" * 64}, "dtype": config.dtype, "size": 128,
        "prompts": {"source": f"captions of {config.reference}, shuffled", "count": 9, "sha256": "1" * 64},
        "images": config.images, "seed_sets": config.seed_sets, "seeds": "they count up",
        "batch_size": config.batch_size, "times": "seconds an image", "networks": {},
        "reference": {"source": str(config.reference), "images": 868, "sha256": "2" * 64},
        "teacher": {"solver": "ddim", "steps": 100, "guidance_scale": 4.0, "images": 256}, "diversity": None,
        "agreement": None, "guidance_search": None, "left_out": [],
    }  # fmt: skip


def tuned(config: TuneConfig) -> dict:
    """A tuning's document: the more of both, the nearer to the style."""
    pairs = sorted(product(*grid_of(config.grid)), reverse=True)
    candidates = [
        {
            "lora": [f"{config.style}:{style:g}", f"{config.acceleration}:{other:g}"], "style_weight": style,
            "style_blocks": {}, "acceleration_weight": other, "acceleration_blocks": {}, "found_in": "grid",
            "style_distance": 100.0 + rank, "style_distance_error": 2.0, "behind": float(rank), "behind_error": 1.5,
            "within_error": rank < 2, "agreement": 0.4, "agreement_error": 0.1, "rank": rank + 1,
        }
        for rank, (style, other) in enumerate(pairs)
    ]  # fmt: skip
    protocol = {
        "model": {"name": config.model, "sha256": "0" * 64}, "size": 128, "dtype": config.dtype, "solver": "lcm",
        "steps": 4, "guidance_scale": 1.0, "images": config.images, "prompts": {"count": 8, "source": "the kit"},
        "seeds": "they count up", "style_distance": "Fréchet", "agreement_chance": 0.001, "score": "score",
        "errors": "errors", "search": "grid", "left_out": [],
    }  # fmt: skip
    typed = " ".join(f"--lora {lora}" for lora in candidates[0]["lora"])
    return {"protocol": protocol, "candidates": candidates, "best": {"lora": candidates[0]["lora"], "typed": typed}}


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Inputs in a cache folder of the test's own, and what compare and tune were called with, which only pretend."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "cache" / "emoji" / "images"
    images.mkdir(parents=True)
    for name in ("base", "high-contrast", "noto-mono", "fxemoji"):
        tiny_images(images / name, 4)
        lines = [
            json.dumps(
                {
                    "file_name": f"{name}/{file.name}",
                    "text": f"flat emoji of {file.stem}",
                    "style": "flat",
                    "concept": file.stem,
                }
            )
            for file in sorted(images.glob(f"{name}/*.png"))
        ]
        (images / f"{name}.jsonl").write_text("\n".join(lines * 400))
    tiny_model(tmp_path / "cache" / "emoji" / "fxemoji" / "model")
    made = []

    def pretend(document):
        def measure(config):
            made.append(config)
            config.out.mkdir(parents=True)
            SHEET.save(config.out / "sheet.png")
            (config.out / "table.json").write_text(json.dumps(document(config)))

        return measure

    monkeypatch.setattr(results.jobs, "compare", pretend(compared))
    monkeypatch.setattr(results.jobs, "tune", pretend(tuned))
    return made


def config(tmp_path, **options):
    return build(results.config.ResultsConfig, out=tmp_path / "page" / "results.md", **options)


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_is_what_its_figures_make() -> None:
    figures = DOCS / "results.json"
    document = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {}
    assert results.page.page(document) == (DOCS / "results.md").read_text(encoding="utf-8")


def test_its_pictures_are_there_and_small() -> None:
    linked = [DOCS / path for path in re.findall(r"!\[.*\]\((.*)\)", (DOCS / "results.md").read_text())]
    sizes = [path.stat().st_size for path in linked]
    assert max(sizes, default=0) <= 250_000
    assert sum(sizes) <= 1_100_000


def test_a_page_without_figures_says_what_is_missing() -> None:
    page = results.page.page({})
    assert [page.count(f"Not measured yet: `python -m studies.results --pieces {piece}`") for piece in PIECES] == [
        1
    ] * 6
    assert "The table is not measured yet." in page


def test_all_pieces_make_a_page(calls, tmp_path, capsys) -> None:
    results.run.run(config(tmp_path))
    folder = tmp_path / "page"
    page, document = (folder / "results.md").read_text(), json.loads((folder / "results.json").read_text())
    assert capsys.readouterr().out.strip() == page.strip()
    assert page == results.page.page(document)
    assert "Not measured" not in page
    assert "| solver       | steps | time (s) |   FID | LPIPS |" in page
    assert "| LCM-LoRA     |     4 |    0.040 | 20.50 | 0.225 |" in page
    assert page.count("* **") == 5 + 1 + 2 + 1
    assert str(tmp_path) not in page + json.dumps(document)
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert len(pictures) == 8
    assert all((folder / picture).is_file() for picture in pictures)


def test_each_piece_draws_what_it_is_for(calls, tmp_path) -> None:
    results.run.run(config(tmp_path))
    table, controls, labels, *figure3, contrast, mono, finetuned = calls
    assert (table.images, table.seed_sets, table.rows) == (5000, 3, results.pieces.TABLE_ROWS)
    assert (controls.images, controls.seed_sets, controls.rows) == (2112, 1, results.pieces.CONTROL_ROWS)
    assert (labels.images, labels.seed_sets, labels.rows) == (4, 1, results.pieces.LABEL_ROWS)
    assert sorted(prompt.text for prompt in read_prompts(labels.prompt_file)) == ["00", "01", "02", "03"]
    assert [job.rows for job in figure3[:2]] == [("dpm-solver++:25@best+high-contrast:1",),
                                                 ("dpm-solver++:25@best+noto-mono:1",)]  # fmt: skip
    assert figure3[2].rows[0] == "dpm-solver++:25@1.5+high-contrast:1"
    assert figure3[2].rows[-1] == "lcm:8@1+high-contrast:0.8+lcm:1"
    assert {len(job.rows) for job in figure3[2:]} == {9}
    assert {(job.images, job.seed_sets) for job in (*figure3, finetuned)} == {(1600, 1)}
    assert [(job.style, job.images, job.rounds) for job in (contrast, mono)] == [("high-contrast", 128, 0),
                                                                                 ("noto-mono", 128, 0)]  # fmt: skip
    assert finetuned.model.endswith("fxemoji/model")


def test_a_run_of_one_piece_leaves_the_others(calls, tmp_path) -> None:
    results.run.run(config(tmp_path, pieces="finetuned,grid"))
    figures = tmp_path / "page" / "results.json"
    before = json.loads(figures.read_text())
    assert list(before) == ["grid", "finetuned"]
    results.run.run(config(tmp_path, pieces="finetuned", images=1500))
    after = json.loads(figures.read_text())
    assert after["grid"] == before["grid"]
    assert after["finetuned"] != before["finetuned"]


def test_what_is_finished_is_not_measured_again(calls, tmp_path) -> None:
    results.run.run(config(tmp_path, pieces="grid,finetuned"))
    assert len(calls) == 3
    results.run.run(config(tmp_path, pieces="grid,finetuned", device="cpu"))
    assert len(calls) == 3
    results.run.run(config(tmp_path, pieces="grid,finetuned", batch_size=4))
    assert len(calls) == 6


@pytest.mark.parametrize("changed", ["emoji/images/fxemoji.jsonl", "emoji/fxemoji/model/unet/config.json"])
def test_what_was_measured_of_other_files_is_measured_again(calls, tmp_path, changed) -> None:
    results.run.run(config(tmp_path, pieces="finetuned"))
    file = tmp_path / "cache" / changed
    file.write_text(file.read_text() + "\n")
    results.run.run(config(tmp_path, pieces="finetuned"))
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
        results.pieces.pieces_of("table,figure4")
    assert results.pieces.pieces_of("finetuned, table") == ("table", "finetuned")


def test_pictures_are_small() -> None:
    noise = Image.frombytes(
        "RGB", (900, 900), torch.randint(256, (900 * 900 * 3,), dtype=torch.uint8).numpy().tobytes()
    )
    smallest = small_jpeg(noise, 1000)
    assert len(smallest) < len(small_jpeg(noise, 10**7))
    assert Image.open(io.BytesIO(smallest)).size == (675, 675)
    assert Image.open(io.BytesIO(small_jpeg(SHEET, results.pieces.LARGEST))).size == SHEET.size


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "most", "least"),
    [
        (Figure(1.0), MET, MET),
        (Figure(0.99), MET, FAILED),
        (Figure(1.01), FAILED, MET),
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


def test_no_bar_decides_nothing() -> None:
    assert results.verdicts.at_most(Figure(0.0), None) == OPEN


def table_of(**figures) -> list[str]:
    """The verdicts of the table, its lcm:4 beside ddim:32 as given."""
    document = compared(
        build(CompareConfig, rows=results.pieces.TABLE_ROWS, images=5000, seed_sets=3, reference=Path("real"))
    )
    document["rows"][0] |= {key: figures.pop(key) for key in ("kid",) if key in figures}
    row = results.verdicts.row_of(document, "lcm", 4)
    row["beside_first"] |= figures
    return results.verdicts.of_table(document)


def test_verdicts_of_the_table() -> None:
    fid, kid, agreement, fid_2, speed = table_of(
        kid=0.02, fid_ratio=1.03, fid_ratio_low=1.01, fid_ratio_high=1.05,
        kid_difference=0.001, kid_difference_low=0.0, kid_difference_high=0.00199,
        agreement_ratio=0.94, agreement_ratio_low=0.93, agreement_ratio_high=0.96, speedup=7.9,
    )  # fmt: skip
    assert fid == (
        "* **met**: lcm:4's FID is at most 1.05 of ddim:32's: 1.030 [1.010, 1.050],"
        " 20.50 (spread 0.30) to 20.12 (spread 0.30)."
    )
    assert kid.endswith("by at most 10 % of that: by 1.00 [0.00, 1.99] x 0.001, where 10 % is 2.00.")
    assert [line.split("**")[1] for line in (kid, agreement, fid_2, speed)] == [MET, OPEN, MET, FAILED]
    assert "0.940 [0.930, 0.960] times" in agreement
    assert speed.endswith("7.9 times.")


def test_what_the_table_does_not_decide() -> None:
    lines = table_of(kid=-0.001, fid_ratio=None, agreement_ratio=None, agreement_ratio_low=None,
                     agreement_ratio_high=None)  # fmt: skip
    assert [line.split("**")[1] for line in lines[:3]] == [OPEN] * 3
    assert lines[0].endswith("not measured.")


def test_what_the_lora_is_for_is_told_where_no_style_is_named() -> None:
    document = compared(build(CompareConfig, rows=results.pieces.LABEL_ROWS, images=1600, reference=Path("real")))
    verdict, beside = results.verdicts.of_labels(document)
    assert verdict.startswith("* **met**: lcm:4's KID is above ddim:32's by at most 10 % of that")
    assert beside.count("the LoRA") == 2


def styled(images: int) -> dict:
    rows = results.pieces.style_rows("noto-mono", 2.0)
    return compared(build(CompareConfig, rows=rows, images=images, reference=Path("real")))


def test_the_distance_to_a_style_is_the_best_that_was_measured() -> None:
    by_fid, by_other, by_none = (results.verdicts.of_style("noto-mono", styled(images)) for images in (3000, 1386, 500))
    assert by_fid.startswith("* **met**: noto-mono at 0.8 with lcm in 4 steps")
    assert "by FID, as alone in 25: 1.017 [1.007, 1.027], 20.5 to 20.2; KID ratio 1.004 [" in by_fid
    assert "by EfficientNet's Fréchet distance, as alone in 25: 1.006 [0.996, 1.016], 151.2 to 150.4;" in by_other
    assert by_none.startswith(f"* **{OPEN}**")
    assert "not measured; KID ratio 1.004 [" in by_none


def test_the_ratio_of_kids_takes_in_both_intervals() -> None:
    first = {"kid": 0.02, "kid_low": 0.01, "kid_high": 0.03}

    def ratio(low, high, first=first):
        difference = {"kid_difference": 0.002, "kid_difference_low": low, "kid_difference_high": high}
        return results.verdicts.kid_ratio(first, {"beside_first": difference})

    assert ratio(0.001, 0.003) == pytest.approx((1.1, 1 + 0.001 / 0.03, 1.3))
    assert ratio(-0.001, 0.003) == pytest.approx((1.1, 0.9, 1.3))
    assert ratio(-0.003, -0.001)[1:] == pytest.approx((0.7, 1 - 0.001 / 0.03))
    assert results.verdicts.at_most(ratio(0.001, 0.003, first | {"kid_low": -0.001}), 1.15) == OPEN
    assert ratio(0.001, 0.003, first | {"kid": -0.001}) == Figure(None)
    assert ratio(None, None) == Figure(None)


def test_a_finetuned_model_is_judged_by_kid() -> None:
    document = compared(build(CompareConfig, rows=results.pieces.FINETUNED_ROWS, images=868, reference=Path("real")))
    line = results.verdicts.of_model(document)
    assert line.startswith("* **met**: with lcm in 4 steps its KID is at most 1.15 of its own in 25: 1.004 [")
    assert line.endswith("KID x 1000 20.12 to 20.04.")


# --- in several processes -----------------------------------------------------------------------------------


def test_rows_are_shared_out_the_costliest_first() -> None:
    job = build(CompareConfig, rows=results.pieces.TABLE_ROWS, images=5000, seed_sets=3, reference=Path("real"))
    parts = results.jobs.by_cost(results.jobs.parts_of(job))
    assert {len(part.rows) for part in parts} == {1}
    assert sorted(part.rows[0] for part in parts) == sorted(job.rows)
    assert [part.rows[0] for part in parts][:3] == ["ddim:32@best", "dpm-solver:16@best", "dpm-solver++:8@best"]
    assert parts[-1].rows == ("lcm:2@1+lcm:1",)
    assert all(part.model_copy(update={"rows": job.rows}) == job for part in parts)
    assert results.jobs.cost(parts[-1]) == 2 * 15000
    assert results.jobs.cost(parts[0]) == 32 * 2 * (15000 + 7 * 512)


def test_the_styles_weights_are_shared_out() -> None:
    job = build(TuneConfig, style="noto-mono", grid=results.config.WEIGHTS, rounds=0)
    grids = [grid_of(part.grid) for part in results.jobs.parts_of(job)]
    assert sorted(pair for grid in grids for pair in product(*grid)) == sorted(product(*grid_of(job.grid)))
    assert len(grids) == 5


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
        results.jobs.measured(config(tmp_path, processes=2), [broken])
