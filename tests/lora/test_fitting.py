"""For which model a LoRA was made: what its recipe, its metadata and its modules say, beyond that they have a place."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import FewstepError
from fewstep.families import FAMILIES
from fewstep.lora.files import open_lora
from fewstep.lora.fitting import check_made_for, origin_of, untouched, whole_of
from fewstep.lora.low_rank import Adapter, Lazy, LowRank
from fewstep.lora.recipe import Recipe

SDXL, SSD_1B, SD15 = (FAMILIES[name].all_modules() for name in ("sdxl", "ssd-1b", "sd15"))
LCD = Recipe(method="lcd", family="ssd-1b", solver="lcm", steps=4, guidance_scale=1.0, k=20)
RECOGNISED = Recipe(method="lcd", solver="lcm", recognised_by="lcm")
FEW = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # in SDXL as in SSD-1B


def adapter(names: Iterable[str]) -> Adapter:
    def make(name: str) -> LowRank:
        out, in_, k = SDXL[name]
        return LowRank(torch.zeros(1, in_, *([k, k] if k else [])), torch.zeros(out, 1, *([1, 1] if k else [])))

    return Adapter(Lazy(names, make))


WHOLE = adapter(FAMILIES["ssd-1b"].modules())


def test_a_recipe_of_another_family_is_refused() -> None:
    check_made_for(WHOLE, LCD, SSD_1B, "x", "y")
    with pytest.raises(FewstepError, match="LoRA x was made for ssd-1b, and y is sdxl") as caught:
        check_made_for(WHOLE, LCD, SDXL, "x", "y")
    assert "merge FILE --model MODEL" in str(caught.value.hint)


@pytest.mark.parametrize("recipe", [None, RECOGNISED])
def test_without_one_it_is_said_what_stays_untouched(recipe: Recipe | None, capsys: pytest.CaptureFixture[str]) -> None:
    check_made_for(WHOLE, recipe, SDXL, "x", "y")
    assert capsys.readouterr().err == (
        "note: LoRA x leaves 365 of the 788 modules of its kinds in y unchanged: 120 in down2, 120 in up0, 20 in up1,"
        " 105 in mid; it changes all of them in ssd-1b, and may be made for that\n"
    )
    check_made_for(WHOLE, recipe, SSD_1B, "x", "y")
    check_made_for(WHOLE, Recipe(method="denoising"), SDXL, "x", "y")  # ours, of a model of no known family
    assert capsys.readouterr().err == ""


def test_kinds_that_a_file_does_not_adapt_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in SDXL if ".attn1." in name or name.startswith("text_encoder.")]
    check_made_for(adapter(names), None, SDXL, "x", "y")
    assert capsys.readouterr().err == ""
    check_made_for(adapter(names[1:]), None, SDXL, "x", "y")
    assert f"leaves 1 of the {len(names)} modules" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "model", "noted"),
    [
        (Recipe(method="lcd", family="sdxl"), "v_prediction", True),
        (Recipe(method="lcd", family="sdxl", prediction_type="v_prediction"), "epsilon", True),
        (Recipe(method="lcd", family="sdxl"), "epsilon", False),
        (Recipe(method="lcd", family="sdxl"), None, False),
        (Recipe(method="denoising", family="sdxl"), "v_prediction", False),  # styles move from one to the other
    ],
)
def test_an_acceleration_of_another_prediction_type_is_noted(
    recipe: Recipe, model: str | None, noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    check_made_for(adapter([FEW]), recipe, SDXL, "x", "y", model)
    assert ("pictures in few steps will be poor" in capsys.readouterr().err) == noted


def test_what_is_whole_in_a_family() -> None:
    assert whole_of(FAMILIES["ssd-1b"].modules()) == ["ssd-1b"]
    assert whole_of(FAMILIES["sdxl"].modules()) == ["sdxl"]
    assert whole_of([FEW]) == []
    assert untouched(FAMILIES["sdxl"].modules(), SDXL) == []


def kohya(name: str) -> str:
    return f"lora_unet_{name.replace('.', '_')}"


def te(number: str) -> Callable[[str], str]:
    return lambda name: f"lora_te{number}_{name.replace('.', '_')}"


CLIP = "text_model.encoder.layers.3.self_attn.q_proj"
SSD, XL, SD = "ssd-1b", "sdxl", "sd15"


@pytest.mark.parametrize(
    ("spelled", "metadata", "fitting", "wanted", "reason"),
    [
        ([kohya(FEW)], {}, [SSD, XL], XL, "most common"),
        ([kohya(FEW)], {"ss_base_model_version": "sdxl_ssd-1b"}, [SSD, XL], SSD, "metadata"),
        ([kohya(FEW)], {"ss_base_model_version": "sdxl_base_v1-0"}, [SSD, XL], XL, "metadata"),
        ([kohya(FEW)], {"ss_base_model_version": "sdxl_1.0"}, [SSD, XL], XL, "metadata"),  # ai-toolkit's
        ([kohya(FEW)], {"modelspec.architecture": "segmind-stable-diffusion-1b/lora"}, [SSD, XL], SSD, "metadata"),
        ([kohya(FEW)], {"fewstep.recipe": LCD.model_dump_json()}, [SSD, XL], SSD, "recipe"),
        ([kohya(name) for name in FAMILIES[SSD].modules()], {}, [SSD, XL], SSD, "no other modules"),
        ([te("")(CLIP)], {}, [SD, SSD, XL], SD, "most common"),  # CLIP-L is SD 1's and SDXL's first
        ([te("1")(CLIP)], {}, [SD, SSD, XL], XL, "most common"),
    ],
)
def test_where_a_file_comes_from(
    spelled: list[str], metadata: dict[str, str], fitting: list[str], wanted: str, reason: str, tmp_path: Path
) -> None:
    tensors = {f"{name}.lora_{side}.weight": torch.zeros(1, 1) for name in spelled for side in ("down", "up")}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    file = open_lora(tmp_path / "x.safetensors")
    found, why = origin_of(fitting, [(file, list(file.adapter(SSD_1B).modules))])
    assert (found, reason in why) == (wanted, True)
