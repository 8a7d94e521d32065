"""cloneofsimo's numbered modules: against a walk through live networks, and refused when they do not fit exactly."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from fewstep.errors import FewstepError
from fewstep.families import FAMILIES, ModuleShape
from fewstep.lora.dialects import text_module
from fewstep.lora.files import load_adapter, open_lora
from fewstep.lora.layers import module_shapes
from fewstep.lora.low_rank import check_fits
from fewstep.lora.numbered import EARLIER_ORDER, component_of, in_order, visited
from tests.tiny import tiny_unet

DEFAULT = ["CrossAttention", "Attention", "GEGLU"]
EXTENDED = ["ResnetBlock2D", *DEFAULT]
Pairs = list[tuple[str, Tensor, Tensor]]  # module, up, down


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    config = CLIPTextConfig(vocab_size=9, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                            num_attention_heads=2, eos_token_id=1, bos_token_id=0)  # fmt: skip
    return {"unet": tiny_unet(), "text_encoder": CLIPTextModel(config)}


@pytest.fixture(scope="module")
def shapes(networks: dict[str, nn.Module]) -> dict[str, ModuleShape]:
    text = module_shapes(networks["text_encoder"])
    return module_shapes(networks["unet"]) | {f"text_encoder.{text_module(n)}": s for n, s in text.items()}


def walk(network: nn.Module, classes: list[str], kinds: tuple[type, ...]) -> Iterator[str]:
    """The names of the layers as the trainer meets them: inside each module of the classes, in the network's order."""
    for above, ancestor in network.named_modules():
        if type(ancestor).__name__ in classes:
            yield from (f"{above}.{name}" for name, module in ancestor.named_modules() if isinstance(module, kinds))


def pairs(networks: dict[str, nn.Module], component: str, classes: list[str], *kinds: type) -> Pairs:
    """What the trainer makes of one component, at rank 2."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for name in walk(networks[component], classes, kinds):
        weight = networks[component].get_submodule(name).weight
        ones = (1,) * (weight.ndim - 2)
        up, down = torch.randn(len(weight), 2, *ones, generator=draw), torch.randn(2, *weight.shape[1:], generator=draw)
        made.append((name if component == "unet" else f"{component}.{text_module(name)}", up, down))
    return made


def file_of(path: Path, told: dict[str, list[str]], components: dict[str, Pairs], **words: Tensor) -> Path:
    """A safetensors file as the trainer writes it."""
    tensors, metadata = dict(words), dict.fromkeys(words, "<embed>")
    for component, made in components.items():
        metadata |= {component: json.dumps(told[component])} if component in told else {}
        for i, (_, up, down) in enumerate(made):
            tensors |= {f"{component}:{i}:up": up, f"{component}:{i}:down": down}
            metadata[f"{component}:{i}:rank"] = "2"
    save_file(tensors, path, metadata)
    return path


def check(path: Path, shapes: dict[str, ModuleShape], *components: Pairs) -> None:
    """The file's updates are these, on these modules."""
    adapter, recipe = load_adapter(path, shapes)
    check_fits(adapter, shapes, "x", "y")
    wanted = {name: up.flatten(1) @ down.flatten(1) for made in components for name, up, down in made}
    assert recipe is None
    assert adapter.modules.keys() == wanted.keys()
    for name, update in adapter.modules.items():
        torch.testing.assert_close(update.delta().flatten(1), wanted[name])


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (DEFAULT, True),
        (DEFAULT, False),
        (EXTENDED, True),
        (EXTENDED, False),
        (["FeedForward", "ResnetBlock2D"], True),
        (["BasicTransformerBlock"], True),
    ],
)
def test_every_module_gets_its_own_update(networks, shapes, classes, told, tmp_path):
    unet = pairs(networks, "unet", classes, nn.Linear, nn.Conv2d)
    text = pairs(networks, "text_encoder", ["CLIPAttention"], nn.Linear)
    assert len(unet) > 8
    targets = {"unet": classes, "text_encoder": ["CLIPAttention"]} if told else {"unet": ["Unheard"]}
    path = file_of(tmp_path / "x.safetensors", targets, {"unet": unet, "text_encoder": text})
    assert open_lora(path).layout == "cloneofsimo"
    check(path, shapes, unet, text)


def test_linear_layers_alone_of_blocks_with_convolutions(networks, shapes, tmp_path):
    unet = pairs(networks, "unet", EXTENDED, nn.Linear)
    check(file_of(tmp_path / "x.safetensors", {"unet": EXTENDED}, {"unet": unet}), shapes, unet)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_bare_list_finds_its_component(networks, shapes, component, tmp_path):
    classes = DEFAULT if component == "unet" else ["CLIPAttention"]
    made = pairs(networks, component, classes, nn.Linear)
    torch.save([nn.Parameter(x) for _, up, down in made for x in (up, down)], tmp_path / "x.pt")
    check(tmp_path / "x.pt", shapes, made)


def test_an_earlier_order_of_the_blocks_is_found_by_the_sizes(networks, shapes, tmp_path):
    made = {name: (name, up, down) for name, up, down in pairs(networks, "unet", DEFAULT, nn.Linear)}
    earlier = [made[name] for name in visited(in_order(made, EARLIER_ORDER), DEFAULT)]
    assert [name for name, *_ in earlier] != list(made)
    torch.save([x for _, up, down in earlier for x in (up, down)], tmp_path / "x.pt")
    check(tmp_path / "x.pt", shapes, earlier)


def test_embeddings_are_left_out_and_named(networks, shapes, tmp_path, capsys):
    unet = pairs(networks, "unet", DEFAULT, nn.Linear)
    path = file_of(tmp_path / "x.safetensors", {"unet": DEFAULT}, {"unet": unet}, **{"<s1>": torch.ones(768)})
    check(path, shapes, unet)
    assert capsys.readouterr().err == f"note: {path} also holds embeddings of <s1>; fewstep leaves them out\n"


@pytest.mark.parametrize("wrong", ["one less", "one more", "a gap", "another size", "another class"])
def test_what_does_not_fit_exactly_is_refused(networks, shapes, wrong, tmp_path):
    unet, told = pairs(networks, "unet", DEFAULT, nn.Linear), DEFAULT
    if wrong == "one less":
        unet = unet[:-1]
    elif wrong == "one more":
        unet = [*unet, ("", *(x.clone() for x in unet[-1][1:]))]
    elif wrong == "another size":
        unet[3] = (unet[3][0], torch.ones(5, 2), unet[3][2])
    elif wrong == "another class":
        told = ["ResnetBlock2D"]
    path = file_of(tmp_path / "x.safetensors", {"unet": told}, {"unet": unet})
    if wrong == "a gap":
        tensors = {f"unet:{i + (i > 4)}:{x}": t for i, (_, *both) in enumerate(unet)
                   for x, t in zip(("up", "down"), both, strict=True)}  # fmt: skip
        save_file(tensors, path)
    adapter, _ = load_adapter(path, shapes)
    message = rf"0 of {len(unet)} modules match; unet:0 is one of {len(unet)} numbered modules; no order fits"
    with pytest.raises(FewstepError, match=message):
        check_fits(adapter, shapes, "x", "y")


def test_a_list_of_odd_length_is_refused(tmp_path):
    torch.save([torch.ones(2, 2)] * 3, tmp_path / "x.pt")
    with pytest.raises(FewstepError, match="holds neither a dictionary nor pairs of tensors"):
        open_lora(tmp_path / "x.pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_is_the_networks_own(family):
    names = list(FAMILIES[family].all_modules())
    for component in {component_of(name) for name in names}:
        own = [name for name in names if component_of(name) == component]
        assert in_order(random.Random(0).sample(own, len(own))) == own


def test_stable_diffusion_1_has_its_usual_numbers():
    modules = FAMILIES["sd15"].all_modules()
    unet, text = ([n for n in modules if component_of(n) == c] for c in ("unet", "text_encoder"))
    assert len(visited(in_order(unet), DEFAULT)) == 144
    assert len(visited(in_order(text), ["CLIPAttention"])) == 48


def test_the_first_trainers_list_of_attention_alone_is_found(networks, shapes, tmp_path):
    made = pairs(networks, "unet", ["CrossAttention", "Attention"], nn.Linear)
    torch.save([x for _, up, down in made for x in (up, down)], tmp_path / "x.pt")
    check(tmp_path / "x.pt", shapes, made)
    names = [n for n in FAMILIES["sd15"].all_modules() if component_of(n) == "unet"]
    assert len(visited(in_order(names), ["CrossAttention", "Attention"])) == 128
