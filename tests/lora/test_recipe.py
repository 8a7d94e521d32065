"""The recipe in a LoRA file's metadata: what cannot be is refused in a line that names the file, key and value."""

import json

import pytest

from fewstep.errors import FewstepError
from fewstep.lora.recipe import KEY, VERSION, Recipe, from_metadata, to_metadata

GOOD = {"method": "lcd", "solver": "lcm", "steps": 4, "k": 20, "guidance_scale": 1.0}
BAD = [
    ("k", [0, -20, 1001, 0.5, "many", float("nan")]),
    ("steps", [-4, 0, 1001, "many", float("inf")]),
    ("guidance_scale", [float("nan"), float("inf"), -1, 51]),
    ("eta", [float("nan"), -0.1, 1.1]),
    ("gamma", [float("nan"), -0.1, 1.1]),
    ("teacher_guidance_scale", [[1], [float("nan"), 1], 3]),
    ("solver", ["bogus", 3]),
    ("grid", ["bogus", 3]),
    ("method", [None, 3]),
]


@pytest.mark.parametrize(("key", "values"), BAD, ids=[key for key, _ in BAD])
def test_values_that_cannot_be(key, values):
    for value in values:
        with pytest.raises(FewstepError) as caught:
            from_metadata({KEY: json.dumps(GOOD | {key: value})}, "a.safetensors")
        assert caught.value.message.startswith(f"the sampling recipe inside a.safetensors is damaged: {key}")
        assert "\n" not in caught.value.message
        assert caught.value.hint == "get the file again from its source"


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 100_000, '{"k": ' + "9" * 6000 + "}"],
                         ids=["cut", "a list", "null", "nested", "digits"])  # fmt: skip
def test_what_is_no_recipe(text):
    with pytest.raises(FewstepError, match=r"^the sampling recipe inside a\.safetensors is damaged"):
        from_metadata({KEY: text}, "a.safetensors")


def test_a_recipe_lacks_no_method():
    with pytest.raises(FewstepError, match=r"is damaged: method is missing \("):
        from_metadata({KEY: "{}"}, "a.safetensors")


def test_of_a_newer_version_a_newer_program_is_asked_for():
    metadata = {KEY: json.dumps(GOOD | {"solver": "better"}), VERSION: "99.0"}
    with pytest.raises(FewstepError) as caught:
        from_metadata(metadata, "a.safetensors")
    assert caught.value.message.startswith('the sampling recipe inside a.safetensors is damaged: solver is "better" (')
    assert caught.value.hint == "install a newer fewstep"


def test_what_is_written_is_read():
    recipe = Recipe(**GOOD)
    assert from_metadata(to_metadata(recipe, 4), "a.safetensors") == recipe
    assert from_metadata({KEY: json.dumps(GOOD | {"of a newer version": 1})}, "a.safetensors") == recipe
