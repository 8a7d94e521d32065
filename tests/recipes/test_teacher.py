"""The teacher's recipe at a tiny size: images to latents, loss, export, resume from an export."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from fewstep.configs import DistillConfig
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.schedule import schedule_from_config
from fewstep.errors import FewstepError, UsageError
from fewstep.families import family_of
from fewstep.lora.layers import module_shapes
from fewstep.training.draws import Order, SampleId
from recipes.emoji import lcm, teacher
from recipes.emoji.captions import STYLES
from recipes.emoji.latents import packed_latents, read_packed
from recipes.emoji.sheet import SHEET_CONCEPTS, save_samples, sheet_prompts
from recipes.emoji.teacher import SCHEDULER, Ahead, Captioned, TeacherConfig, min_snr_weight, new_unet

CPU = torch.device("cpu")
TARGETS = """to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut
downsamplers.0.conv upsamplers.0.conv time_emb_proj"""


def tiny_vae(folder, seed=0):
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
        mid_block_add_attention=False,
    )
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixteen drawings of 32 px, one of them held out."""
    folder = tmp_path_factory.mktemp("emoji") / "images"
    folder.mkdir()
    random, lines = np.random.default_rng(0), []
    for i in range(16):
        pixels = np.full((32, 32, 3), random.integers(0, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        style = list(STYLES)[i % 9]
        split = "held-out" if i == 15 else "base"
        lines.append(
            {
                "file_name": f"{i}.png",
                "style": style,
                "label": f"thing {i}",
                "tags": ["a tag"],
                "group": "objects",
                "split": split,
            }
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "dataset.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def config(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return TeacherConfig(
        images=images,
        vae=tiny_vae(folder / "vae"),
        tokenizer=folder / "tokenizer",
        out=folder / "run",
        train_steps=24,
        checkpoint_every=24,
        batch_size=8,
        learning_rate=3e-3,
        warmup=2,
        log_every=8,
        ema=0.5,
        channels=(32, 64),
        text_width=32,
        text_layers=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(teacher, "save_samples", lambda model, path: save_samples(model, path, steps=2))
    teacher.run(config)
    yield config.out
    patch.undo()


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_loss_falls(trained):
    first, *_, last = losses(trained)
    assert last < 0.9 * first


def test_export_is_a_stable_diffusion_folder(trained):
    pipe = StableDiffusionPipeline.from_pretrained(trained / "model", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert not pipe.scheduler.config.clip_sample
    image = pipe("noto emoji of thing 3", num_inference_steps=2, guidance_scale=2.0, output_type="np").images[0]
    assert image.shape == (32, 32, 3)
    assert np.isfinite(image).all()
    assert pipe.tokenizer("").input_ids == [pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id]


def test_sheet_is_drawn(trained):
    with Image.open(trained / "samples-000024.png") as sheet:
        assert sheet.size == (8 * 38, 8 * 66)


def test_init_starts_from_an_export(trained, config, tmp_path):
    again = config.model_copy(update={"out": tmp_path / "again", "init": trained / "model", "train_steps": 1})
    teacher.run(again)
    assert losses(again.out)[0] < 0.9 * losses(trained)[0]


def test_latents_of_another_autoencoder_are_refused(images, config, tmp_path):
    cache = tmp_path / "cache"
    packed = packed_latents(images, config.vae, None, cache, CPU)
    (file,) = cache.iterdir()
    assert packed.latents.shape == (15, 4, 4, 4)
    assert packed.latents.dtype == torch.float16
    assert torch.equal(read_packed(file, config.vae).latents, packed.latents)
    with pytest.raises(FewstepError, match=r"made with another autoencoder .*\n\nhint: "):
        read_packed(file, tiny_vae(tmp_path / "other", seed=1))


def test_latents_are_encoded_once(images, config, tmp_path, monkeypatch):
    packed_latents(images, config.vae, None, tmp_path, CPU)
    monkeypatch.setattr("recipes.emoji.latents.pack", None)
    assert len(packed_latents(images, config.vae, None, tmp_path, CPU).rows) == 15


def test_missing_autoencoder_and_images_are_named(images, config, tmp_path):
    with pytest.raises(FewstepError, match=r"no autoencoder in .*\n\nhint: run python -m recipes.emoji.autoenc"):
        packed_latents(images, tmp_path / "none", None, tmp_path, CPU)
    with pytest.raises(FewstepError, match=r"no emoji images in .*\n\nhint: run python -m recipes.emoji.dataset first"):
        packed_latents(tmp_path / "none", config.vae, None, tmp_path, CPU)


def test_visits_decide_batches_and_captions_vary(trained, images, config, tmp_path):
    packed = packed_latents(images, config.vae, None, tmp_path, CPU)
    tokenizer = teacher.load_tokenizer(config.tokenizer, packed.rows)
    data = Captioned(packed, tokenizer, 0.0, schedule_from_config(SCHEDULER))
    visits = [SampleId(0, epoch, 3) for epoch in range(8)]
    batch = data.batch(visits, CPU)
    assert equal(batch, data.batch(visits, CPU))
    assert torch.equal(data.batch(visits[2:3], CPU).tokens[0], batch.tokens[2])
    assert len(batch.tokens.unique(dim=0)) > 4
    dropped = Captioned(packed, tokenizer, 1.0, schedule_from_config(SCHEDULER)).batch(visits, CPU)
    assert torch.equal(dropped.tokens, teacher.tokens_of(tokenizer, [""] * 8))
    assert torch.equal(dropped.eps, batch.eps)


def test_a_drawing_is_seen_in_other_colours_under_their_names(trained, images, config, tmp_path):
    packed = packed_latents(images, config.vae, None, tmp_path, CPU)
    data = Captioned(packed, None, 0.0, schedule_from_config(SCHEDULER))
    index, row = next((i, row) for i, row in enumerate(packed.rows) if row["recoloured"])
    assert len(row["recoloured"]) == 2
    named = {colour: packed.recoloured[number] for colour, number in row["recoloured"].items()}
    seen = [data.seen(index, seed) for seed in range(200)]
    for colour, drawing in named.items():
        texts = [text for found, text in seen if torch.equal(found, drawing)]
        assert len(texts) > 20
        assert all(f"{colour} {row['label']}" in text for text in texts)
    plain = [text for found, text in seen if torch.equal(found, packed.latents[index])]
    assert len(plain) > 80
    assert not any(set(text.split()) & named.keys() for text in plain)


def test_its_lora_is_distilled_from_the_same_latents(trained, images, tmp_path):
    out = tmp_path / "lcm"
    lcm.run(
        DistillConfig(model=str(trained / "model"), data=images, out=out, rank=4, train_steps=2, batch_size=4,
                      device="cpu")
    )  # fmt: skip
    assert (out / "lora.safetensors").is_file()


def test_captions_of_other_colours_follow_by_number():
    rows = [
        row_of("noto", "robot", red=1, blue=0),
        row_of("twemoji", "man"),
        row_of("twemoji", "owl", pink=2),
    ]
    captions = lcm.captions_of(rows)
    assert captions[:2] + captions[3:5] == ["robot", "twemoji emoji of man", "blue robot", "noto emoji of red robot"]
    assert "owl" in captions[2]
    assert "pink owl" in captions[5]


def test_at_least_half_of_the_captions_name_no_style():
    rows = [row_of(style, "man") for style in ("noto", "twemoji", "fluent-3d") * 30]
    names = [words for style in ("noto", "twemoji", "fluent-3d") for words in STYLES[style].words]
    plain = [text for text in lcm.captions_of(rows) if not any(name in text for name in names)]
    assert len(plain) == 60


def row_of(style: str, label: str, **recoloured: int) -> dict[str, object]:
    """A row of a packed file."""
    return {"style": style, "label": label, "tags": [], "group": "objects", "recoloured": recoloured}


def equal(one, other):
    return all(torch.equal(x, y) for x, y in zip(one.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("first", [0, 4], ids=["new run", "resumed in an epoch"])
def test_batches_prepared_ahead_are_the_same(trained, images, config, tmp_path, first):
    packed = packed_latents(images, config.vae, None, tmp_path, CPU)
    tokenizer = teacher.load_tokenizer(config.tokenizer, packed.rows)
    data = Captioned(packed, tokenizer, 0.1, schedule_from_config(SCHEDULER))
    ahead, order = Ahead(data, config.model_copy(update={"workers": 2})), Order(len(data), config.seed)
    for step in range(first, first + 5):  # over the end of an epoch of 15
        visits = order.visits(step * config.batch_size, config.batch_size)
        assert equal(ahead.batch(visits, CPU), data.batch(visits, CPU))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_graph_needs_a_gpu(config, tmp_path):
    with pytest.raises(UsageError, match=r"--graph needs an NVIDIA GPU\n\nhint: leave it out"):
        teacher.run(config.model_copy(update={"out": tmp_path / "graphed", "graph": True}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graphed_step_learns_the_same(trained, config, tmp_path):
    out = tmp_path / "graphed"
    asked = {"out": out, "graph": True, "device": "auto", "log_every": 1, "workers": 1}  # which end with the run
    teacher.run(config.model_copy(update=asked))
    again = config.model_copy(update={"out": tmp_path / "plain", "device": "auto", "log_every": 1})
    teacher.run(again)
    np.testing.assert_allclose(losses(out)[1:], losses(again.out)[:-1], rtol=1e-3)  # told one step late


def test_the_real_network_keeps_its_budget_and_has_every_target():
    with torch.device("meta"):
        unet = new_unet(TeacherConfig().channels, TeacherConfig().text_width, 16)
    assert 12.0e6 < sum(p.numel() for p in unet.parameters()) <= 12.5e6
    names = [name for name, _ in unet.named_modules()]
    for target in TARGETS.split():
        assert any(name.endswith(f".{target}") for name in names), target


def test_the_real_network_is_the_family_emoji():
    with torch.device("meta"):
        unet = new_unet(TeacherConfig().channels, TeacherConfig().text_width, 16)
    assert family_of(module_shapes(unet)) == "emoji"


def test_min_snr_weighs_x_0_alike_for_both_predictions():
    level = schedule_from_config(SCHEDULER).at([1.0, 300.0, 999.0])
    v, eps = (min_snr_weight(prediction_named(name), level).ravel() for name in ("v_prediction", "epsilon"))
    snr = (level.alpha / level.sigma).ravel() ** 2
    torch.testing.assert_close(v * (snr + 1), snr.clamp(max=5))
    torch.testing.assert_close(eps * snr, snr.clamp(max=5))


def test_sheet_shows_each_concept_held_out_once():
    prompts = sheet_prompts()
    assert len(prompts) == 64
    assert sum(prompts.values()) == len(SHEET_CONCEPTS)
