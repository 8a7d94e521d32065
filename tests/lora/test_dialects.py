"""Every layout of LoRA files in the wild, read to the same Delta W; and what is refused, with the right words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep import __version__
from fewstep.errors import FewstepError
from fewstep.families import ModuleShape
from fewstep.lora.files import load_adapter
from fewstep.lora.low_rank import check_fits
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
ONE = "down_blocks.1.attentions.0.proj_in"
TE = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
SHAPES = {
    Q: ModuleShape(6, 8, 0), OUT: ModuleShape(8, 6, 0), CONV: ModuleShape(6, 4, 3), ONE: ModuleShape(6, 4, 1),
    TE: ModuleShape(6, 6, 0),
    # what tells where blocks begin and end
    "down_blocks.0.resnets.1.conv1": ModuleShape(6, 6, 3), "down_blocks.0.downsamplers.0.conv": ModuleShape(6, 6, 3),
    "down_blocks.1.resnets.0.conv1": ModuleShape(6, 6, 3), "down_blocks.1.resnets.1.conv1": ModuleShape(6, 6, 3),
}  # fmt: skip
BODY = TE.removeprefix("text_encoder.")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pair(name: str, rank: int = 2) -> tuple[Tensor, Tensor]:
    """A and B of a module."""
    out, in_, kernel = SHAPES[name]
    tail, ones = ((kernel, kernel), (1, 1)) if kernel else ((), ())
    return draw(rank, in_, *tail), draw(out, rank, *ones, seed=1)


def flat(name: str) -> str:
    return name.replace(".", "_")


LDM = {
    Q: "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    OUT: "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
    CONV: "input_blocks.1.0.in_layers.2",
    ONE: "input_blocks.4.1.proj_in",
}
PROCESSOR = {
    Q: "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
    OUT: "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora",
    TE: "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora",
}
LAYOUTS: dict[str, Callable[[str], tuple[str, str] | None]] = {  # module -> keys of A and B
    "original": lambda n: ends(f"lora_te_{flat(BODY)}" if n == TE else f"lora_unet_{flat(n)}", "lora_down", "lora_up"),
    "kohya sdxl": lambda n: ends(
        f"lora_te1_{flat(BODY)}" if n == TE else f"lora_unet_{flat(LDM[n])}", "lora_down", "lora_up"
    ),
    "diffusers": lambda n: ends(n if n == TE else f"unet.{n}", "lora_A", "lora_B"),
    "old diffusers": lambda n: ends(n if n == TE else f"unet.{n}", "lora_linear_layer.down", "lora_linear_layer.up"),
    "lora.down": lambda n: ends(n if n == TE else f"unet.{n}", "lora.down", "lora.up"),
    "peft": lambda n: ends(f"base_model.model.{BODY if n == TE else n}", "lora_A", "lora_B"),
    "lycoris": lambda n: ends(f"lycoris_{flat(BODY if n == TE else n)}", "lora_down", "lora_up"),
    "published LCM script": lambda n: ends(
        f"text_encoder.base_model.model.{BODY}" if n == TE else f"unet.base_model.model.{n}", "lora_A", "lora_B"
    ),
    "component inside PEFT": lambda n: ends(
        f"base_model.model.{n}" if n == TE else f"base_model.model.unet.{n}", "lora_A", "lora_B"
    ),
    "ComfyUI": lambda n: ends(
        f"text_encoders.clip_l.transformer.{BODY}" if n == TE else f"diffusion_model.{LDM[n]}", "lora_down", "lora_up"
    ),
    "diffusion_model": lambda n: None if n == TE else ends(f"diffusion_model.{LDM[n]}", "lora_A", "lora_B"),
    "processors": lambda n: (f"{PROCESSOR[n]}.down.weight", f"{PROCESSOR[n]}.up.weight") if n in PROCESSOR else None,
    "processors without unet": lambda n: (
        tuple(f"{PROCESSOR[n].removeprefix('unet.')}.{x}.weight" for x in ("down", "up")) if n in (Q, OUT) else None
    ),
}  # fmt: skip


def ends(key: str, down: str, up: str) -> tuple[str, str]:
    return f"{key}.{down}.weight", f"{key}.{up}.weight"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_update(layout: str, tmp_path: Path) -> None:
    tensors, wanted = {}, {}
    for name in (Q, OUT, CONV, ONE, TE):
        keys = LAYOUTS[layout](name)
        if keys:
            A, B = pair(name)
            tensors |= dict(zip(keys, (A, B), strict=True))
            wanted[name] = (B.flatten(1) @ A.flatten(1)).view(len(B), *A.shape[1:])
    save_file(tensors, tmp_path / "x.safetensors")
    adapter, recipe = load_adapter(tmp_path / "x.safetensors", SHAPES)
    assert recipe is None
    assert adapter.modules.keys() == wanted.keys()
    check_fits(adapter, SHAPES, "x", "y")
    for name, delta in wanted.items():
        torch.testing.assert_close(adapter.modules[name].delta(), delta)


def loaded(tensors: dict[str, Tensor], tmp_path: Path, name: str, metadata: dict[str, str] | None = None) -> Tensor:
    """Delta W of the one module of a file with these tensors."""
    save_file({key: x.contiguous() for key, x in tensors.items()}, tmp_path / "x.safetensors", metadata)
    adapter, _ = load_adapter(tmp_path / "x.safetensors", SHAPES)
    check_fits(adapter, SHAPES, "x", "y")
    assert list(adapter.modules) == [name]
    return adapter.modules[name].delta()


def test_a_middle_is_folded_in(tmp_path: Path) -> None:
    down, mid, up = draw(2, 4, 1, 1), draw(2, 2, 3, 3), draw(6, 2, 1, 1)
    key = f"lora_unet_{flat(CONV)}"
    tensors = {f"{key}.lora_{n}.weight": x for n, x in (("down", down), ("mid", mid), ("up", up))}
    wanted = 0.5 * torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    torch.testing.assert_close(loaded(tensors | {f"{key}.alpha": torch.tensor(1.0)}, tmp_path, CONV), wanted)


@pytest.mark.parametrize("name", [Q, CONV])
def test_loha_is_the_elementwise_product(name: str, tmp_path: Path) -> None:
    out, in_, kernel = SHAPES[name]
    fan_in, key, R = in_ * max(kernel, 1) ** 2, f"lora_unet_{flat(name)}", 2
    parts = {
        "w1_a": draw(out, R),
        "w1_b": draw(R, fan_in),
        "w2_a": draw(out, R, seed=5),
        "w2_b": draw(R, fan_in, seed=6),
    }
    wanted = (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"]) * 4 / R
    tensors = {f"{key}.hada_{part}": x for part, x in parts.items()} | {f"{key}.alpha": torch.tensor(4.0)}
    delta = loaded(tensors, tmp_path, name)
    torch.testing.assert_close(delta, wanted.view(delta.shape), rtol=1e-5, atol=1e-5)


def test_no_update_has_a_higher_rank_than_its_matrix(tmp_path: Path) -> None:
    (out, in_, _), key = SHAPES[Q], f"lora_unet_{flat(Q)}"
    parts = {"w1_a": draw(out, 4), "w1_b": draw(4, in_), "w2_a": draw(out, 3), "w2_b": draw(3, in_)}
    save_file({f"{key}.hada_{part}": x for part, x in parts.items()}, tmp_path / "x.safetensors")
    assert load_adapter(tmp_path / "x.safetensors", SHAPES)[0].modules[Q].rank == out == 6


def test_loha_in_tucker_form(tmp_path: Path) -> None:
    R, key = 2, f"lora_unet_{flat(CONV)}"
    a = [draw(R, 6, seed=i) for i in (1, 2)]
    b = [draw(R, 4, seed=i) for i in (3, 4)]
    t = [draw(R, R, 3, 3, seed=i) for i in (5, 6)]
    halves = [torch.einsum("ijkl,jr,ip->prkl", t[i], b[i], a[i]) for i in (0, 1)]
    tensors = {f"{key}.hada_t{i + 1}": t[i] for i in (0, 1)}
    tensors |= {f"{key}.hada_w{i + 1}_a": a[i] for i in (0, 1)} | {f"{key}.hada_w{i + 1}_b": b[i] for i in (0, 1)}
    torch.testing.assert_close(loaded(tensors, tmp_path, CONV), halves[0] * halves[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("whole1", [True, False])
@pytest.mark.parametrize("whole2", [True, False])
@pytest.mark.parametrize("name", [Q, CONV])
def test_lokr_is_the_kronecker_product(name: str, whole1: bool, whole2: bool, tmp_path: Path) -> None:
    out, in_, kernel = SHAPES[name]
    tail, key, R = (kernel, kernel) if kernel else (), f"lora_unet_{flat(name)}", 1
    w1_a, w1_b, w2_a, w2_b = draw(2, R), draw(R, 2), draw(out // 2, R), draw(R, in_ // 2 * max(kernel, 1) ** 2)
    w1, w2 = w1_a @ w1_b, (w2_a @ w2_b).view(out // 2, in_ // 2, *tail)
    if whole1:
        w1 = draw(2, 2, seed=9)
    if whole2:
        w2 = draw(out // 2, in_ // 2, *tail, seed=8)
    tensors = {f"{key}.alpha": torch.tensor(3.0)}
    tensors |= {f"{key}.lokr_w1": w1} if whole1 else {f"{key}.lokr_w1_a": w1_a, f"{key}.lokr_w1_b": w1_b}
    tensors |= {f"{key}.lokr_w2": w2} if whole2 else {f"{key}.lokr_w2_a": w2_a, f"{key}.lokr_w2_b": w2_b}
    wanted = torch.kron(w1.view(2, 2, *(1,) * len(tail)), w2) * (1.0 if whole1 and whole2 else 3.0 / R)
    delta = loaded(tensors, tmp_path, name)
    torch.testing.assert_close(delta, wanted, rtol=1e-5, atol=1e-5)


def test_lokr_in_tucker_form(tmp_path: Path) -> None:
    w1, a, b, t = draw(2, 2), draw(2, 3), draw(2, 2, seed=3), draw(2, 2, 3, 3)
    key = f"lora_unet_{flat(CONV)}"
    tensors = {f"{key}.lokr_w1": w1, f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b, f"{key}.lokr_t2": t}
    wanted = torch.kron(w1[..., None, None], torch.einsum("ijkl,jr,ip->prkl", t, b, a).contiguous())
    torch.testing.assert_close(loaded(tensors, tmp_path, CONV), wanted, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    """A network with names of a UNet, for PEFT to adapt."""

    def __init__(self) -> None:
        super().__init__()
        root = self
        for name in (Q, CONV):
            *path, last = name.split(".")
            here: nn.Module = root
            for part in path:
                if not hasattr(here, part):
                    here.add_module(part, nn.Module())
                here = getattr(here, part)
            out, in_, kernel = SHAPES[name]
            here.add_module(last, nn.Conv2d(in_, out, kernel) if kernel else nn.Linear(in_, out))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_that_peft_saved_means_what_peft_computes(rslora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "conv1"], rank_pattern={"conv1": 3},
                        alpha_pattern={"conv1": 5}, use_rslora=rslora, init_lora_weights=False)  # fmt: skip
    model = get_peft_model(Net(), config)
    model.save_pretrained(tmp_path)
    adapter, _ = load_adapter(tmp_path, SHAPES)
    assert adapter.modules.keys() == {Q, CONV}
    layers = {name.removeprefix("base_model.model."): layer for name, layer in model.named_modules()}
    for name, update in adapter.modules.items():
        torch.testing.assert_close(update.delta(), layers[name].get_delta_weight("default"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "peft"])
def test_what_is_written_comes_back_exactly(dialect: str, tmp_path: Path) -> None:
    names = (Q, OUT, CONV, ONE) if dialect == "peft" else (Q, OUT, CONV, ONE, TE)
    tensors = {
        key: x for n in names for key, x in zip(LAYOUTS["diffusers"](n), pair(n, 3 if n == ONE else 2), strict=True)
    }
    save_file(tensors, tmp_path / "x.safetensors")
    adapter, _ = load_adapter(tmp_path / "x.safetensors", SHAPES)
    save_adapter(tmp_path / "back.safetensors", adapter, Recipe(method="denoising"), torch.float32, dialect)
    back, recipe = load_adapter(tmp_path / "back.safetensors", SHAPES)
    assert (back.modules.keys(), recipe is not None) == (adapter.modules.keys(), True)
    for name, update in adapter.modules.items():
        assert torch.equal(back.modules[name].A, update.A)
        assert torch.equal(back.modules[name].B, update.B)


def test_diffusers_own_metadata_gives_alpha(tmp_path: Path) -> None:
    A, B = pair(Q)
    told = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {}, "unet.use_rslora": False}
    tensors = dict(zip(LAYOUTS["diffusers"](Q), (A, B), strict=True))
    delta = loaded(tensors, tmp_path, Q, {"lora_adapter_metadata": json.dumps(told)})
    torch.testing.assert_close(delta, 3 * B @ A)


def test_a_torch_file_of_tensors_is_read_and_one_with_code_is_not(tmp_path: Path) -> None:
    A, B = pair(Q)
    torch.save(dict(zip(LAYOUTS["original"](Q), (A, B), strict=True)), tmp_path / "x.bin")
    adapter, _ = load_adapter(tmp_path / "x.bin", SHAPES)
    torch.testing.assert_close(adapter.modules[Q].delta(), B @ A)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(FewstepError, match=r"LoRA .*evil\.pt is not a file of plain tensors"):
        load_adapter(tmp_path / "evil.pt", SHAPES)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"lora_alpha": "x"}, r"has lora_alpha 'x', which is not a number"),
        ({"alpha_pattern": 3}, r"has alpha_pattern 3, which is not a JSON object"),
        ({"alpha_pattern": {"a": "x"}}, r"has alpha_pattern 'x' for a, not a number"),
        ({"peft_type": "LOHA"}, r"holds LOHA, not a LoRA"),
        ([], r"is not a JSON object"),
    ],
)
def test_a_wrong_config_is_said_to_be_what_it_is(config: object, said: str, tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FewstepError, match=said):
        load_adapter(tmp_path, SHAPES)


NEWER = {"fewstep.version": "99.1.dev0", "fewstep.recipe": json.dumps({"method": "lcd", "new": {"x": 1}})}


def test_a_file_of_a_newer_version_is_read_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    save_file(GOOD, path, NEWER)
    _, recipe = load_adapter(path, SHAPES)
    assert recipe is not None
    assert recipe.method == "lcd"
    assert capsys.readouterr().err == (
        f"note: {path} was written by fewstep 99.1.dev0, newer than this one; new fields are ignored\n"
    )
    for version in (__version__, "0.0.9", "", "odd"):
        save_file(GOOD, path, NEWER | {"fewstep.version": version})
        load_adapter(path, SHAPES)
        assert capsys.readouterr().err == ""
    save_file(GOOD, path, NEWER | {"fewstep.recipe": "[]"})
    with pytest.raises(FewstepError, match="is damaged") as caught:
        load_adapter(path, SHAPES)
    assert caught.value.hint == "install a newer fewstep"


KEY = f"lora_unet_{flat(Q)}"
GOOD = dict(zip(LAYOUTS["original"](Q), pair(Q), strict=True))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"has no LoRA weights"),
        (
            GOOD | {f"{KEY}.dora_scale": draw(6)},
            r"cannot be used alone: it is a DoRA, .* was made for \(lora_unet_.*\.dora_scale\)",
        ),
        (GOOD | {f"{KEY}.diff_b": draw(6)}, r"cannot be used: it changes biases"),
        (GOOD | {"something": draw(1)}, r"has a key of an unknown layout: something"),
        (GOOD | {f"unet.{Q}.lora_A.weight": draw(1)}, r"holds a module twice"),
        ({f"{KEY}.lora_down.weight": draw(2, 8)}, r"the factors of lora_unet_.* do not fit \(up is missing\)"),
        (GOOD | {f"{KEY}.lora_up.weight": draw(6, 3)}, r"do not fit \(lora_down \(2, 8\) and lora_up \(6, 3\)"),
        (
            dict(zip(GOOD, (torch.empty(0, 8), torch.empty(6, 0)), strict=True)),
            r"adds nothing: it has no factors, or only of rank 0 \(lora_unet",
        ),
        (GOOD | {f"{KEY}.alpha": draw(2)}, r"do not fit \(alpha has 2 values\)"),
        (GOOD | {f"{KEY}.hada_w1_a": draw(2)}, r"do not fit"),
        (GOOD | {f"{KEY}.lora_up.weight": draw(6, 2) * torch.inf}, r"holds values that are not finite"),
        (GOOD | {f"{KEY}.lora_up.weight": torch.ones(6, 2, dtype=torch.int32)}, r"holds int32 values for lora_unet"),
    ],
)
def test_what_is_no_lora_is_refused_in_one_line(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(FewstepError, match=message) as caught:
        list(load_adapter(tmp_path / "x.safetensors", SHAPES)[0].modules.values())
    assert "\n" not in caught.value.message
