"""Quarters: what they are of, and that their features are kept apart from those of whole pictures."""

import torch

from fewstep.metrics.features import Quarters, features_of
from fewstep.metrics.networks import Inception
from tests.evaluate.stand_ins import Features


class Held:
    """Two batches."""

    def __init__(self, folder):
        self.files = [folder / "a.safetensors", folder / "b.safetensors"]
        self.pixels = torch.rand(5, 3, 6, 8, generator=torch.Generator().manual_seed(0))

    def batches(self):
        yield from (self.pixels[:3], self.pixels[3:])


def test_quarters_are_the_four_corners_of_each_picture(tmp_path):
    held = Held(tmp_path)
    quarters = torch.cat(list(Quarters(held).batches()))
    assert quarters.shape == (20, 3, 3, 4)
    top = torch.cat([quarters[0], quarters[1]], dim=2)
    assert torch.equal(torch.cat([top, torch.cat([quarters[2], quarters[3]], dim=2)], dim=1), held.pixels[0])
    assert torch.equal(quarters[16], held.pixels[4, :, :3, :4])


def test_their_features_are_kept_apart(tmp_path):
    held, network = Held(tmp_path), Features(Inception.label)
    whole, parts = features_of(network, held), features_of(network, Quarters(held))
    assert (len(whole), len(parts), len(list(tmp_path.iterdir()))) == (5, 20, 4)
    assert torch.equal(features_of(network, Quarters(held)), parts)
    assert torch.allclose(parts.view(5, 4, -1).mean(1), whole.view(5, 3, 4).mean(-1).repeat_interleave(4, 1), atol=0.3)
