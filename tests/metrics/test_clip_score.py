"""CLIP score equals transformers' own cosines, and what is no CLIP is refused in one line."""

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from fewstep.errors import FewstepError
from fewstep.evaluate.measure import load_judge
from fewstep.images import to_image
from tests.tiny import tiny_clip

PROMPTS = ["a cat", "a drawing of the red house with many more words than are read of it", "a cat", ""]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


def pixels(count, size=24):
    random = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, size, size, generator=random) * 2 - 1


@torch.no_grad()
def theirs(folder, images, prompts):
    """Cosines of each image with each prompt, by transformers' own forward."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    told = tokenizer(prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    seen = CLIPImageProcessor.from_pretrained(folder)([to_image(image) for image in images], return_tensors="pt")
    model = CLIPModel.from_pretrained(folder)
    return model(**told, **seen).logits_per_image / model.logit_scale.exp()


def test_it_is_the_mean_cosine_of_transformers(folder):
    images = pixels(4)
    judge = load_judge(str(folder), PROMPTS, CPU)
    cosines = theirs(folder, images, PROMPTS).diagonal()
    assert cosines.std() > 0.01
    assert judge.score(judge.network(images), PROMPTS) == pytest.approx(100 * float(cosines.mean()), abs=1e-4)
    assert len(judge.texts) == 3
    assert judge.network.label.startswith("CLIP tiny, ")


def test_other_weights_have_another_hash(folder, tmp_path):
    other = tiny_clip(tmp_path / "tiny")
    model = CLIPModel.from_pretrained(other)
    torch.nn.init.ones_(model.visual_projection.weight)
    model.save_pretrained(other)
    hashes = [load_judge(str(path), PROMPTS, CPU).network.sha256 for path in (folder, other)]
    assert len(set(hashes)) == 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (["config.json"], "CLIP model {folder} not found"),
        (["model.safetensors"], "cannot load {folder} ("),
        (["preprocessor_config.json"], "image processor config not found: {folder}"),
        (["tokenizer.json", "vocab.json"], "cannot load {folder} (it has no vocabulary)"),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path, broken, message):
    folder = tiny_clip(tmp_path / "tiny")
    for name in broken:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(FewstepError) as caught:
        load_judge(str(folder), PROMPTS, CPU)
    assert caught.value.message.startswith(message.format(folder=folder))
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_another_kind_of_model_is_refused(tiny_model_folder):
    with pytest.raises(FewstepError, match=r"text_encoder/config\.json: model_type is clip_text_model, not clip"):
        load_judge(str(tiny_model_folder / "text_encoder"), PROMPTS, CPU)
