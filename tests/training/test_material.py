"""What a run is trained on: views and captions that visits draw, shapes, a cache made before."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fewstep.configs import DistillConfig, FinetuneConfig, build
from fewstep.data.cache import encode
from fewstep.data.framing import Framing
from fewstep.data.sources import FileSample, list_samples
from fewstep.errors import UsageError
from fewstep.models.load import load_model
from fewstep.models.model import Model, free_encoders
from fewstep.training.adapt import LatentData, chosen
from fewstep.training.draws import SampleId, generator
from fewstep.training.material import with_its_framing

TINY = ["--rank", "2", "--steps", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]


@pytest.fixture
def model(tiny_model_folder: Path) -> Model:
    return load_model(str(tiny_model_folder))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def visits(count: int, index: int = 0) -> list[SampleId]:
    return [SampleId(0, epoch, index) for epoch in range(count)]


def test_a_visit_draws_a_view_and_a_caption(model: Model, tiny_data_folder: Path) -> None:
    samples = list_samples(tiny_data_folder).samples[:2]
    samples = [FileSample(Path(samples[0].key), ("a cat", "red dog")), samples[1]]
    encoded = encode(samples, model, Framing(16, flip=True))
    batch = LatentData(encoded, model.embed([""]), 0.0).batch(visits(40), torch.device("cpu"))
    views, texts = encoded.latents([0, 0], [0, 1]), encoded.conditioning([0, 0], captions=[0, 1]).text
    seen = [
        (int(torch.equal(x, views[1])), int(torch.equal(c, texts[1])))
        for x, c in zip(batch.x_0, batch.conditioning.text, strict=True)
    ]
    assert set(seen) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(torch.equal(x, views[view]) for x, (view, _) in zip(batch.x_0, seen, strict=True))


def test_what_has_no_choice_draws_nothing() -> None:
    one, other = generator(SampleId(0, 0, 0)), generator(SampleId(0, 0, 0))
    assert chosen(one, 1) == 0
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


def test_latents_are_drawn_from_the_posterior(model: Model, tiny_data_folder: Path) -> None:
    encoded = encode(list_samples(tiny_data_folder).samples, model, Framing(16, deviations=True))
    batch = LatentData(encoded, model.embed([""]), 0.0).batch(visits(4000), torch.device("cpu"))
    mean, deviation = encoded.latents([0]), encoded.deviations([0])
    assert deviation is not None
    spread = ((batch.x_0 - mean) / deviation).flatten()
    assert abs(float(spread.mean())) < 0.01
    assert float(spread.std()) == pytest.approx(1, abs=0.01)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of three shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(40, 20), (20, 40), (30, 30), (42, 20), (44, 20), (31, 30)]):
        Image.linear_gradient("L").resize(size).rotate(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a cat {number}")
    return folder


def test_buckets_train_on_all_shapes(fewstep, tiny_model_folder, photos, tmp_path) -> None:
    common = {"model": tiny_model_folder, "data": photos}
    plain = fewstep("finetune", *TINY, **common, out=tmp_path / "squares")
    assert plain.code == 0, plain.err
    assert "note: squares leave out 35% of the images' area; --buckets keeps their shapes" in plain.err
    done = fewstep("finetune", *TINY, "--buckets", "--random-flip", "--random-crops", "2", "--sample-latents",
                   **(common | {"out": tmp_path / "run"}))  # fmt: skip
    assert done.code == 0, done.err
    assert "squares" not in done.err
    whole = load_file(tmp_path / "run" / "lora.safetensors")
    again = fewstep("finetune", *TINY, "--buckets", "--random-flip", "--random-crops", "2", "--sample-latents",
                    "--workers", "1", **(common | {"out": tmp_path / "again"}))  # fmt: skip
    assert again.code == 0, again.err
    assert all(torch.equal(x, whole[name]) for name, x in load_file(tmp_path / "again" / "lora.safetensors").items())


def test_a_run_on_a_cache_made_before_is_the_run_on_its_images(
    fewstep, model, tiny_model_folder, tiny_data_folder, tmp_path
) -> None:
    done = fewstep("finetune", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=tmp_path / "images")
    assert done.code == 0, done.err
    samples = list_samples(tiny_data_folder).samples
    encode(samples, model, Framing(16, model.multiple), tmp_path / "encoded")
    moved = shutil.move(tmp_path / "encoded", tmp_path / "moved")
    done = fewstep("finetune", *TINY, model=tiny_model_folder, data=moved, out=tmp_path / "run")
    assert done.code == 0, done.err
    assert 'sample "a a"' in done.err  # a caption
    first, second = (load_file(tmp_path / name / "lora.safetensors") for name in ("images", "run"))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["size"] == 16


def test_a_cache_that_does_not_fit_is_refused(fewstep, model, tiny_model_folder, tiny_data_folder, tmp_path) -> None:
    encode(list_samples(tiny_data_folder).samples, model, Framing(16, model.multiple), tmp_path / "set")
    common = {"data": tmp_path / "set", "out": tmp_path / "run"}
    done = fewstep("finetune", *TINY, "--size", "8", model=tiny_model_folder, **common)
    assert (done.code, done.error) == (2, f"--size 8: the cache in {tmp_path / 'set'} was made with 16")
    done = fewstep("finetune", *TINY, "--buckets", model=tiny_model_folder, **common)
    assert (done.code, done.error) == (2, f"--buckets True: the cache in {tmp_path / 'set'} was made with False")
    other = Path(shutil.copytree(tiny_model_folder, tmp_path / "other"))
    config = other / "text_encoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    done = fewstep("finetune", *TINY, model=other, **common)
    assert done.code == 2
    assert done.error.endswith(f"was encoded by a model with another text encoder than {other}")
    next((tmp_path / "set").glob("latents-*/*")).unlink()
    done = fewstep("finetune", *TINY, model=tiny_model_folder, **common)
    assert done.code == 2
    assert "the cache is damaged" in done.error
    assert not (tmp_path / "run").exists()


def test_a_cache_brings_its_framing(model: Model, tiny_data_folder: Path, tmp_path: Path) -> None:
    samples = list_samples(tiny_data_folder).samples
    encode(samples, model, Framing(8, model.multiple, buckets=True, flip=True), tmp_path / "set")
    config = with_its_framing(build(FinetuneConfig, model="m", out=tmp_path / "o", data=tmp_path / "set"))
    assert (config.size, config.buckets, config.random_flip, config.random_crops) == (8, True, True, 0)
    plain = build(FinetuneConfig, model="m", out=tmp_path / "o", data=tiny_data_folder)
    assert with_its_framing(plain) is plain


def test_options_of_images_need_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^buckets needs data"):
        build(DistillConfig, model="m", out=tmp_path, synthetic=True, buckets=True)


def test_encoders_that_are_freed_take_no_memory(model: Model) -> None:
    free_encoders(model)
    assert {p.device.type for p in model.vae.parameters()} == {"meta"}
    assert {p.device.type for p in model.text_encoder.parameters()} == {"meta"}
    assert model.takes_text
    assert (model.size, model.multiple, model.latent_shape(16, 16)) == (16, 2, (4, 8, 8))
