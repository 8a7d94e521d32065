"""Linear combinations against dense sums, in the precision that files are merged in."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.families import ModuleShape
from fewstep.lora.low_rank import Adapter, LowRank, combine, linear_combination
from tests.lora.updates import random_update as draw
from tests.lora.updates import ranks, shapes

laws = settings(deadline=None, max_examples=30)
weights = st.integers(-2000, 2000).map(lambda thousandths: thousandths / 1000)


def assert_is_the_sum(found: LowRank, terms: list[tuple[float, LowRank]]) -> None:
    """To 1e-6 of the sum of the terms' norms, against float64."""
    dense = [weight * LowRank(*(factor.double() for factor in update)).delta() for weight, update in terms]
    scale = sum(float(term.norm()) for term in dense)
    assert found.A.dtype == found.B.dtype == torch.float32
    assert found.rank == sum(update.rank for _, update in terms)
    assert float((found.delta() - sum(dense)).norm()) <= 1e-6 * scale


@laws
@given(shapes, st.lists(st.tuples(weights, ranks), min_size=1, max_size=4))
def test_a_combination_of_mixed_ranks_is_the_dense_sum(shape: ModuleShape, drawn: list) -> None:
    terms = [(weight, draw(shape, rank, seed, torch.float32)) for seed, (weight, rank) in enumerate(drawn)]
    assert_is_the_sum(linear_combination(terms), terms)


@laws
@given(
    st.dictionaries(st.sampled_from("abcd"), shapes, min_size=4),
    st.lists(st.tuples(weights, ranks), min_size=2, max_size=3),
    st.data(),
)
def test_combined_adapters_are_the_dense_sum_on_the_union(targets: dict, drawn: list, data: st.DataObject) -> None:
    terms = []
    for seed, (weight, rank) in enumerate(drawn):
        names = data.draw(st.sets(st.sampled_from("abcd"), min_size=1), label="modules")
        terms.append((weight, Adapter({name: draw(targets[name], rank, seed, torch.float32) for name in names})))
    found = combine(terms)
    assert found.keys() == {name for _, adapter in terms for name in adapter.modules}
    for name, update in found.items():
        assert_is_the_sum(update, [(w, adapter.modules[name]) for w, adapter in terms if name in adapter.modules])
