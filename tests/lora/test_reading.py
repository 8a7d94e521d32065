"""What every other loader takes and what none should: alphas, ranks, odd shapes, files by other names, hostile ones."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.families import ModuleShape
from fewstep.lora.files import LoraFile, load_adapter, open_lora
from fewstep.lora.low_rank import Adapter, check_fits, combine, squared_norm
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter

Q, CONV = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1"
SHAPES = {Q: ModuleShape(6, 8, 0), CONV: ModuleShape(6, 4, 3)}
KEY, CONV_KEY = (f"lora_unet_{name.replace('.', '_')}" for name in (Q, CONV))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def plain(key: str = KEY, rank: int = 2, **more: Tensor) -> dict[str, Tensor]:
    """A LoRA of `Q`, or of the module with this key."""
    parts = {"lora_down.weight": draw(rank, 8), "lora_up.weight": draw(6, rank)} | more
    return {f"{key}.{part}": tensor for part, tensor in parts.items()}


def read(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Adapter:
    """The adapter of a file with these tensors, which fits."""
    save_file({key: x.contiguous() for key, x in tensors.items()}, path / "x.safetensors", metadata)
    adapter, _ = load_adapter(path / "x.safetensors", SHAPES)
    check_fits(adapter, SHAPES, "x", "y")
    return adapter


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_is_a_number_of_any_type_and_shape(dtype, shape, tmp_path, capsys) -> None:
    tensors = plain(alpha=torch.full(shape, 6, dtype=dtype))
    wanted = 3 * tensors[f"{KEY}.lora_up.weight"] @ tensors[f"{KEY}.lora_down.weight"]
    torch.testing.assert_close(read(tensors, tmp_path).modules[Q].delta(), wanted)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["file", "PEFT"])
def test_an_alpha_of_0_adds_nothing_and_is_said(kind: str, tmp_path: Path, capsys) -> None:
    told = {"lora_adapter_metadata": '{"unet.lora_alpha": 0}'} if kind == "PEFT" else None
    tensors = plain(f"unet.{Q}") if kind == "PEFT" else plain(alpha=torch.tensor(0.0))
    adapter = read(tensors, tmp_path, told)
    assert float(adapter.modules[Q].delta().abs().max()) == 0
    assert "alpha is 0, so the scale is 0 / rank, and nothing is added\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "empty",
    [
        {f"{CONV_KEY}.alpha": torch.tensor(4.0)},
        {f"{CONV_KEY}.lora_down.weight": draw(0, 4, 3, 3), f"{CONV_KEY}.lora_up.weight": draw(6, 0, 1, 1)},
        {f"{CONV_KEY}.hada_w{i}_{x}": draw(6, 0) if x == "a" else draw(0, 36) for i in (1, 2) for x in "ab"},
    ],
)
def test_modules_that_add_nothing_are_left_out_with_a_note(empty: dict[str, Tensor], tmp_path, capsys) -> None:
    adapter = read(plain() | empty, tmp_path)
    assert list(adapter.modules) == [Q]
    assert f"{CONV_KEY} of {tmp_path}" in capsys.readouterr().err
    save_file(empty, tmp_path / "x.safetensors")
    with pytest.raises(FewstepError, match=r"adds nothing: it has no factors, or only of rank 0"):
        open_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize("down", [(2, 4, 3, 3), (2, 36)])
@pytest.mark.parametrize("up", [(6, 2), (6, 2, 1, 1)])
def test_a_factor_may_be_kept_flat(down: tuple[int, ...], up: tuple[int, ...], tmp_path: Path) -> None:
    A, B = draw(*down), draw(*up)
    delta = read({f"{CONV_KEY}.lora_down.weight": A, f"{CONV_KEY}.lora_up.weight": B}, tmp_path).modules[CONV].delta()
    torch.testing.assert_close(delta, (B.flatten(1) @ A.flatten(1)).view(6, 4, 3, 3))


def test_a_kernel_that_is_not_square_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match=r"do not fit \(the kernel is 3 x 1\)"):
        read({f"{CONV_KEY}.lora_down.weight": draw(2, 4, 3, 1), f"{CONV_KEY}.lora_up.weight": draw(6, 2)}, tmp_path)


@pytest.mark.parametrize(
    ("rows", "columns"), [((2, 3), (4, 9)), ((3, 2), (6, 6)), ((6, 1), (1, 36)), ((1, 6), (2, 18))]
)
@pytest.mark.parametrize("whole", [True, False])
def test_the_first_lokr_splits_in_k_k_as_a_whole(rows, columns, whole: bool, tmp_path: Path) -> None:
    w = [(draw(o, 2, seed=i), draw(2, n, seed=9 + i)) for i, (o, n) in enumerate(zip(rows, columns, strict=True))]
    wanted = torch.kron(w[0][0] @ w[0][1], w[1][0] @ w[1][1]).view(6, 4, 3, 3)
    tensors = {f"{CONV_KEY}.lokr_w{i + 1}_{x}": t for i, pair in enumerate(w) for x, t in zip("ab", pair, strict=True)}
    if whole:
        tensors = {f"{CONV_KEY}.lokr_w{i + 1}": a @ b for i, (a, b) in enumerate(w)}
    torch.testing.assert_close(read(tensors, tmp_path).modules[CONV].delta(), wanted, rtol=1e-4, atol=1e-5)


def test_words_embeddings_beside_a_lora_are_left_out_with_a_note(tmp_path: Path, capsys) -> None:
    keys = ("bundle_emb.cat.string_to_param.*", "bundle_emb.dog.clip_l", "bundle_emb.dog.clip_g")
    assert list(read(plain() | {key: draw(2, 5) for key in keys}, tmp_path).modules) == [Q]
    assert "also holds embeddings of cat, dog; fewstep leaves them out\n" in capsys.readouterr().err


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".safetensors", ".lora", ""])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch, old"])
def test_what_a_file_is_its_bytes_tell_and_not_its_name(kind: str, suffix: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / f"x{suffix}", plain()
    if kind == "safetensors":
        path.write_bytes(save(tensors))
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch")
    assert list(load_adapter(path, SHAPES)[0].modules) == [Q]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer, not the file"),
        (b"<!DOCTYPE html>\n<html></html>", "is a web page"),
        (b"\n  <HTML><body>", "is a web page"),
        (b'<?xml version="1.0"?><Error>', "is a message of a server"),
        (b"Not\nFound\n", r"is text: 'Not'"),
        ("\ufeff<!doctype html>".encode(), "is a web page"),
        (b"Entry not found", r"is text: 'Entry not found'"),
        (b'{"error": "Invalid credentials"}', r"is text: "),
        (b"", "is empty"),
        (b"PK\x05\x06" + bytes(18), "is not a file of plain tensors"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_stands_where_a_file_should_be_is_named(content: bytes, said: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(FewstepError, match=said) as caught:
        open_lora(tmp_path / f"x{suffix}")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(100_000, 100_000),
        torch.zeros(3).expand(8, 3),
        torch.empty(2, 8, device="meta"),
        torch.ones(2, 8).to_sparse(),
    ],
)
def test_tensors_that_hold_less_than_they_say_are_refused(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({f"{KEY}.lora_down.weight": tensor, f"{KEY}.lora_up.weight": torch.ones(6, 2)}, tmp_path / "x.pt")
    with pytest.raises(FewstepError, match=r"(claims [\d,]+ bytes of values but holds|holds no plain values for lora)"):
        open_lora(tmp_path / "x.pt")


def test_an_archive_that_unpacks_to_more_is_refused_unread(tmp_path: Path) -> None:
    torch.save(plain(), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as whole, zipfile.ZipFile(tmp_path / "y.pt", "w", 8) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
        packed.writestr("archive/data/99", bytes(10**6))
    with pytest.raises(FewstepError, match=r"unpacks to 1,\d+,\d+ bytes"):
        open_lora(tmp_path / "y.pt")


# --- amounts --------------------------------------------------------------------------------------------------


KINDS = {
    "LoRA": plain() | {f"{KEY}.alpha": torch.tensor(3.0)},
    "high rank": plain(rank=20),
    "LoCon": {f"{CONV_KEY}.lora_{x}.weight": t for x, t in
              (("down", draw(2, 4, 1, 1)), ("mid", draw(2, 2, 3, 3)), ("up", draw(6, 2, 1, 1)))},
    "LoHa": {f"{CONV_KEY}.hada_w{i}_{x}": draw(6, i) if x == "a" else draw(i, 36) for i in (1, 2) for x in "ab"},
    "LoHa, high": {f"{CONV_KEY}.hada_w{i}_{x}": draw(6, 3) if x == "a" else draw(3, 36) for i in (1, 2) for x in "ab"},
    "LoKr": {f"{CONV_KEY}.lokr_w1_a": draw(2, 1), f"{CONV_KEY}.lokr_w1_b": draw(1, 2),
             f"{CONV_KEY}.lokr_w2_a": draw(3, 1), f"{CONV_KEY}.lokr_w2_b": draw(1, 18),
             f"{CONV_KEY}.alpha": torch.tensor(0.5)},
    "LoKr, whole": {f"{KEY}.lokr_w1": draw(2, 4), f"{KEY}.lokr_w2": draw(3, 2), f"{KEY}.alpha": torch.tensor(7.0)},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_norms_are_those_of_the_update(kind: str, tmp_path: Path) -> None:
    adapter = read(KINDS[kind], tmp_path)
    (name,) = adapter.modules
    update = adapter.modules[name]
    assert adapter.size(name) == update.size
    assert adapter.parameters() == update.A.numel() + update.B.numel()
    square = float(update.delta().double().square().sum())
    assert adapter.modules.square(name) == pytest.approx(square, rel=1e-5)
    assert squared_norm(update) == pytest.approx(square, rel=1e-5)


def test_sizes_take_no_reading_and_every_tensor_is_read_once(tmp_path: Path) -> None:
    path, seen = tmp_path / "x.safetensors", Counter()
    save_file(plain(alpha=torch.tensor(1.0)) | KINDS["LoKr"], path)
    file = open_lora(path)
    alphas = {f"{KEY}.alpha", f"{CONV_KEY}.alpha"}

    def reading(key: str) -> Tensor:
        seen[key] += 1
        return file.source.read(key)

    counted = LoraFile(**{**vars(file), "source": file.source._replace(read=reading)})
    adapter = counted.adapter(SHAPES)
    check_fits(adapter, SHAPES, "x", "y")
    both = Adapter(combine([(1.0, adapter)]))
    assert both.parameters() == adapter.parameters() > 0
    assert not seen
    for number, dialect in enumerate(("kohya", "diffusers"), 1):
        save_adapter(tmp_path / dialect, both, Recipe(method="denoising"), torch.float16, dialect)
        assert seen == dict.fromkeys(file.source.shapes.keys() - alphas, number)


@pytest.mark.parametrize("shapes", [{}, SHAPES])
def test_few_values_do_not_multiply_out_to_many_without_a_module_of_that_size(shapes, tmp_path: Path) -> None:
    parts = {"lokr_w1_a": draw(5000, 1), "lokr_w1_b": draw(1, 5000), "lokr_w2": draw(8, 8)}
    save_file({f"{CONV_KEY}.{part}": x for part, x in parts.items()}, tmp_path / "x.safetensors")
    adapter, _ = load_adapter(tmp_path / "x.safetensors", shapes)
    with pytest.raises(FewstepError, match=r"would multiply out to 640,000, but no known module has that size"):
        dict(adapter.modules)
    assert adapter.modules.square(next(iter(adapter.modules))) > 0
    with pytest.raises(FewstepError, match="does not fit y: 0 of 1 modules match"):
        check_fits(adapter, shapes, "x", "y")
