"""What a file says of itself goes on to the file that its LoRA is written to; what it says of its tensors does not."""

import pytest

from fewstep.lora.carried import carried
from fewstep.lora.recipe import Recipe

SAID = {
    "modelspec.trigger_phrase": "sks dog",
    "modelspec.title": "Dogs",
    "modelspec.license": "CC-BY-4.0",
    "ss_tag_frequency": "{}",
    "ss_output_name": "dogs",
    "license": "CC-BY-4.0",
    "trigger_words": "sks",
}
STALE = {
    "format": "pt",
    "fewstep.recipe": "{}",
    "fewstep.sources": "[]",
    "lora_adapter_metadata": '{"unet.lora_alpha": 9}',
    "ss_network_dim": "4",
    "ss_network_alpha": "1.0",
    "ss_network_module": "lycoris.kohya",
    "ss_network_args": "{}",
    "sshs_model_hash": "0",
    "sshs_legacy_hash": "0",
    "modelspec.hash_sha256": "0",
    "unet": '["CrossAttention"]',
    "unet:0:rank": "4",
    "<s1>": "<embed>",
}


def test_one_file_keeps_what_does_not_speak_of_its_tensors() -> None:
    assert carried([SAID | STALE], Recipe(method="denoising", family="sd15")) == SAID


@pytest.mark.parametrize(
    ("family", "said", "kept"),
    [
        ("sdxl", {"ss_base_model_version": "sdxl_base_v0-9", "modelspec.architecture": "x/lora"}, True),
        ("sd21", {"ss_base_model_version": "sd_v2_v", "ss_v2": "True"}, True),
        ("custom", {"ss_base_model_version": "flux1"}, True),  # of a family that nobody knows it is all there is
        ("sdxl", {"ss_base_model_version": "sd_v1", "ss_v2": "False"}, False),
        ("sd15", {"ss_base_model_version": "sd_v2", "ss_v2": "True"}, False),
        ("sd15", {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, False),
    ],
)
def test_the_version_stays_if_it_is_of_the_family(family: str, said: dict[str, str], kept: bool) -> None:
    assert carried([said], Recipe(method="denoising", family=family)) == (said if kept else {})


def test_of_several_files_the_trigger_words_stay() -> None:
    cat, none = {"modelspec.trigger_phrase": "sks cat", "modelspec.title": "Cats"}, {"ss_output_name": "lcm"}
    recipe = Recipe(method="denoising")
    assert carried([SAID, none, cat, SAID], recipe) == {"modelspec.trigger_phrase": "sks dog, sks cat"}
    assert carried([none, none], recipe) == {}
