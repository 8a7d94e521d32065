"""What is typed as a LoRA: a file, or a folder that holds one."""

from pathlib import Path

import pytest

from fewstep.errors import FewstepError, UsageError
from fewstep.models.references import parse_reference


def test_a_folder_is_the_only_lora_in_it(tmp_path: Path) -> None:
    for name in ("lora.safetensors", "metrics.jsonl"):
        (tmp_path / name).touch()
    assert parse_reference(f"{tmp_path}:0.8").file == tmp_path / "lora.safetensors"


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        ((), "is a folder with no LoRA in it", "name a .safetensors file"),
        (("b.safetensors", "a.safetensors"), "is a folder with several files", "name one of them: a.safetensors, b."),
    ],
)
def test_a_folder_of_none_or_several_is_refused(
    tmp_path: Path, names: tuple[str, ...], message: str, hint: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FewstepError, match=message) as caught:
        _ = parse_reference(str(tmp_path)).file
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("name", ["lcm", "file"])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, name: str) -> None:
    if name == "file":
        name = str(tmp_path / "x.safetensors")
        Path(name).touch()
    with pytest.raises(UsageError, match="'abc' is no weight") as caught:
        _ = parse_reference(f"{name}:abc").file
    assert caught.value.hint == f"give a number, as in {name}:0.8"


def test_what_is_neither_file_nor_folder_is_not_found() -> None:
    with pytest.raises(FewstepError, match="LoRA file not found: /dev/null"):
        _ = parse_reference("/dev/null").file
