"""The text encoder's first lessons at a tiny size: it learns to foresee drawings, and the teacher starts from it."""

import json

import pytest
import torch
from transformers import CLIPTextModel

from fewstep.errors import FewstepError
from fewstep.metrics.agreement import Pictures
from recipes.emoji import text
from recipes.emoji.latents import Packed
from recipes.emoji.teacher import TeacherConfig, load_tokenizer, new_teacher


def run_text(folder, **changes):
    """A run on twelve drawings whose features and latents are what their labels say."""
    rows = [{"style": "noto", "label": f"thing {i}", "tags": [f"tag {i}"]} for i in range(12)]
    chosen = torch.Generator().manual_seed(0)
    features = torch.randn(12, 16, generator=chosen)
    packed = Packed(torch.randn(12, 4, 8, 8, generator=chosen).half(), rows, torch.empty(0, 4, 8, 8).half())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "packed_latents", lambda *_: packed)
        patch.setattr(text, "drawing_features", lambda *_: Pictures(features, ["noto"] * 12, [""] * 12))
        settings = {
            "out": folder / "run", "tokenizer": folder / "tokenizer", "train_steps": 40, "batch_size": 12, "warmup": 2,
            "dims": 8, "text_width": 32, "text_layers": 1, "learning_rate": 1e-2, "ema": 0.5, "log_every": 5,
            "device": "cpu",
        }  # fmt: skip
        config = text.TextConfig(**settings | changes)
        text.run(config)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run_text(tmp_path_factory.mktemp("text"))


def test_it_learns_what_drawings_look_like(trained):
    losses = [json.loads(line)["loss"] for line in (trained.out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.6 * losses[0]


def test_another_run_goes_on_from_it_with_its_own_sizes(trained, tmp_path):
    start = trained.out / "text_encoder"
    config = run_text(
        tmp_path, tokenizer=trained.tokenizer, init=start, train_steps=1, learning_rate=1e-9, text_width=64
    )
    before, after = (CLIPTextModel.from_pretrained(f, local_files_only=True).state_dict()
                     for f in (start, config.out / "text_encoder"))  # fmt: skip
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)


def test_a_text_encoder_of_another_tokenizer_is_refused(trained, tmp_path):
    start = CLIPTextModel.from_pretrained(trained.out / "text_encoder", local_files_only=True)
    start.resize_token_embeddings(start.config.vocab_size + 1)
    start.save_pretrained(tmp_path / "larger")
    with pytest.raises(FewstepError, match=r"knows \d+ tokens"):
        run_text(tmp_path, tokenizer=trained.tokenizer, init=tmp_path / "larger", train_steps=1)


def test_the_teacher_starts_from_it(trained):
    exported = CLIPTextModel.from_pretrained(trained.out / "text_encoder", local_files_only=True)
    tokenizer = load_tokenizer(trained.tokenizer, [])
    config = TeacherConfig(text_encoder=trained.out / "text_encoder", channels=(32, 64), text_width=32)
    teacher = new_teacher(config, tokenizer, 8)
    assert teacher.text_encoder.training
    for name, value in exported.state_dict().items():
        assert torch.equal(teacher.text_encoder.state_dict()[name], value), name
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_targets_are_standardised_and_keep_the_leading_axes():
    mixing = torch.diag(torch.tensor([10.0, 5.0, 0.1, 0.1]))
    features = torch.randn(500, 4, generator=torch.Generator().manual_seed(1)) @ mixing
    seen = text.what_is_seen(features, torch.randn(500, 4, 8, 8), dims=2)
    assert seen.shape == (500, 2 + 4 * text.GRID**2)
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(seen.shape[1]), atol=1e-4, rtol=0)
    correlation = torch.corrcoef(torch.cat([seen[:, :2], features], dim=1).T)[:2, 2:].abs()
    assert correlation[:, :2].max(dim=1).values.min() > 0.9  # what varies most
    assert correlation[:, 2:].max() < 0.2
