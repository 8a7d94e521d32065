"""Agreement on features made by hand: perfect, chance, the prompted style shut out, and its ceiling."""

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics.agreement import Pictures, View, agreement, ceiling, centred, whitened

STYLES = ("flat", "blob", "line")
CONCEPTS = tuple(f"concept {i}" for i in range(20))
DIM = 24


def normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def drawn(noise: float, style_strength: float = 0.0, seed: int = 0) -> Pictures:
    """Every concept in every style: a direction of the concept, one of the style, and noise."""
    concept, style = normal(len(CONCEPTS), 100), normal(len(STYLES), 101)
    pairs = [(s, c) for s in range(len(STYLES)) for c in range(len(CONCEPTS))]
    features = torch.stack([concept[c] + style_strength * style[s] for s, c in pairs])
    return Pictures(
        features + noise * normal(len(pairs), seed), [STYLES[s] for s, _ in pairs], [CONCEPTS[c] for _, c in pairs]
    )


@pytest.mark.parametrize("view", [None, View(torch.zeros(DIM), None)])
def test_images_of_their_concept_score_1(view):
    result = agreement(drawn(0.05, seed=1), drawn(0.05, seed=2), view)
    assert result.score == 1
    assert (result.count, result.left_out) == (60, 0)
    assert result.chance == pytest.approx(2 / 40)
    assert result.hits == (True,) * 60


def test_images_of_another_concept_score_0():
    images = drawn(0.05)
    wrong = images._replace(concepts=[CONCEPTS[(CONCEPTS.index(c) + 1) % 20] for c in images.concepts])
    assert agreement(wrong, drawn(0.05)).score == 0


def test_random_images_score_chance():
    count = 4000
    pick = torch.Generator().manual_seed(5)
    styles, concepts = (
        [names[i] for i in torch.randint(len(names), (count,), generator=pick)] for names in (STYLES, CONCEPTS)
    )
    result = agreement(Pictures(normal(count, 3), styles, concepts), drawn(0.5))
    assert result.score == pytest.approx(result.chance, abs=4 * (0.05 * 0.95 / count) ** 0.5)


def test_drawings_of_the_prompted_style_are_no_candidates():
    axis = torch.eye(4)
    drawings = Pictures(
        torch.stack([axis[0], axis[1] + 0.9 * axis[0], axis[2]]), ["flat", "blob", "blob"], ["cat", "dog", "cat"]
    )
    as_they_are = View(torch.zeros(4), None)
    copied = Pictures(axis[:1], ["flat"], ["cat"])
    assert agreement(copied, drawings, as_they_are).hits == (False,)  # its own drawing would have been a hit
    assert agreement(copied._replace(styles=["line"]), drawings, as_they_are).hits == (True,)


def test_styles_of_one_family_do_not_vouch_for_each_other():
    drawings = drawn(0.05, seed=2)
    copies = drawings._replace(styles=[f"{style} copy" for style in drawings.styles])
    both = Pictures(
        torch.cat([drawings.features, copies.features]), [*drawings.styles, *copies.styles], [*drawings.concepts] * 2
    )
    families = {f"{style} copy": style for style in STYLES}
    noisy = drawn(1.0, seed=2)
    assert agreement(drawings, both, families=families).chance == pytest.approx(4 / 80)
    assert agreement(drawings, both).chance == pytest.approx(5 / 100)
    assert ceiling(noisy, noisy, families=dict.fromkeys(STYLES[:2], "both")).count == 60
    with pytest.raises(FewstepError, match="none of the 60 images' concepts is drawn in another style"):
        agreement(drawings, drawings, families=dict.fromkeys(STYLES, "all"))


def test_a_concept_no_other_style_draws_is_left_out():
    drawings = drawn(0.05)
    alone = Pictures(normal(1, 9), ["flat"], ["unicorn"])
    everything = Pictures(
        torch.cat([drawings.features, alone.features]),
        [*drawings.styles, *alone.styles],
        [*drawings.concepts, *alone.concepts],
    )
    result = agreement(everything, everything)
    assert (result.count, result.left_out, len(result.hits)) == (60, 1, 60)
    with pytest.raises(FewstepError, match="none of the 1 images' concepts is drawn in another style"):
        agreement(alone, everything)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_chunks_do_not_matter(chunk):
    images, drawings = drawn(1.0, seed=1), drawn(1.0, seed=2)
    assert agreement(images, drawings, chunk=chunk) == agreement(images, drawings)


def test_ceiling_is_the_agreement_of_the_drawings_themselves():
    drawings = drawn(1.0, seed=2)
    assert ceiling(drawn(1.0, seed=1), drawings) == agreement(drawings, drawings)
    assert 0.3 < ceiling(drawings, drawings).score < 1


def test_ceiling_counts_prompts_and_leaves_out_what_is_not_drawn():
    drawings = drawn(0.05)
    prompted = Pictures(normal(3, 0), ["flat", "flat", "flat"], [CONCEPTS[0], CONCEPTS[0], "unicorn"])
    assert ceiling(prompted, drawings).count == 2
    with pytest.raises(FewstepError, match="there is no drawing of any prompted pair"):
        ceiling(Pictures(normal(1, 0), ["3d"], [CONCEPTS[0]]), drawings)


def test_whitening_makes_the_covariance_round():
    stretched = normal(2000, 0).double() * torch.logspace(0, 2, DIM).double() + 5
    view = whitened(stretched, shrinkage=0.0)
    assert view.axes is not None
    covariance = ((stretched.float() - view.centre) @ view.axes).T.cov()
    torch.testing.assert_close(covariance, torch.eye(DIM), rtol=0, atol=1e-3)


def test_centring_removes_what_all_images_share():
    shared = 100 * torch.ones(DIM)
    images, drawings = drawn(0.3, seed=1), drawn(0.3, seed=2)
    moved = [p._replace(features=p.features + shared) for p in (images, drawings)]
    plain = agreement(images, drawings, centred(drawings.features))
    assert agreement(*moved, centred(moved[1].features)).score == pytest.approx(plain.score, abs=0.02)


def test_bf16_features_are_compared_in_float32():
    images = drawn(0.05, seed=1)
    assert centred(images.features.bfloat16()).centre.dtype == torch.float32
    assert agreement(images._replace(features=images.features.bfloat16()), drawn(0.05, seed=2)).score == 1


def test_labels_must_fit_and_features_be_finite():
    images = drawn(0.05)
    with pytest.raises(FewstepError, match="60 images, 60 styles and 59 concepts"):
        agreement(images._replace(concepts=images.concepts[1:]), images)
    with pytest.raises(FewstepError, match="0 images, 0 styles and 0 concepts"):
        agreement(Pictures(torch.zeros(0, DIM), [], []), images)
    broken = images._replace(features=images.features * torch.nan)
    with pytest.raises(FewstepError, match="not finite"):
        agreement(broken, images)
    for equal in (torch.ones(1, DIM), torch.ones(5, DIM)):
        with pytest.raises(FewstepError, match="all equal"):
            whitened(equal)
