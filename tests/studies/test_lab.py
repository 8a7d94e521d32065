"""The documents' bench: given noise and embeddings draw what prompts and seeds draw."""

import torch
from PIL import Image

from fewstep.diffusion.sampler import ImageNoise
from studies.lab import Given, Lab

PROMPTS = ("a red apple", "cat")


def test_a_seeds_own_noise_and_a_prompts_own_embedding_draw_its_ordinary_picture() -> None:
    lab, lora, how = Lab("cpu"), ("lcm",), {"solver": "lcm", "steps": 2}  # which adds noise on the way
    session, _ = lab.session(lora=lora)
    size = session.facts.size
    shape = session.facts.latent_shape(size, size)
    given = Given(session.engine.embed(PROMPTS, size, size), ImageNoise((0, 1), shape)(), (0, 1))
    (ordinary,) = lab.draw(PROMPTS, lora=lora, **how).batches()
    painted = lab.paint([given], lora=lora, **how)
    (pixels,) = painted.batches()
    torch.testing.assert_close(pixels, ordinary, rtol=0, atol=1.01 / 127.5)
    assert lab.paint([given], lora=lora, **how).files == painted.files  # kept
    moved = given._replace(noise=-given.noise)
    assert lab.paint([moved], lora=lora, **how).files != painted.files


def test_pictures_from_other_images_are_kept_apart(tmp_path) -> None:
    lab, files = Lab("cpu"), []
    for colour in ("red", "blue"):
        Image.new("RGB", (128, 128), colour).save(path := tmp_path / f"{colour}.png")
        options = {"solver": "lcm", "steps": 1, "image": path.read_bytes(), "strength": 0.5}
        files += lab.draw(("circle",), lora=("lcm",), **options).files
    assert len(set(files)) == 2
