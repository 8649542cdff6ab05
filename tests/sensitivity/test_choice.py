"""The choice against every possible one on small cases, and its promises on large ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2export.sensitivity.choice import Front, Option, front

Groups = list[list[Option]]

OPTIONS = st.builds(Option, st.integers(1, 60), st.integers(0, 1000).map(lambda loss: loss / 8))
GROUPS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def cost(groups: Groups, chosen: tuple[int, ...]) -> tuple[int, float]:
    taken = [group[option] for group, option in zip(groups, chosen, strict=True)]
    return sum(option.bytes for option in taken), sum(option.loss for option in taken)


def best_of_all(groups: Groups, limit: int) -> float | None:
    """The least loss within `limit` by trying every choice; None if none fits."""
    costs = [cost(groups, chosen) for chosen in product(*(range(len(group)) for group in groups))]
    return min((loss for size, loss in costs if size <= limit), default=None)


@given(GROUPS, st.integers(0, 320))
@settings(max_examples=300, deadline=None)
def test_the_best_of_all_choices_that_fit(groups: Groups, limit: int) -> None:
    found, best = front(groups), best_of_all(groups, limit)
    if best is None:
        assert limit < found.least
        with pytest.raises(ValueError, match=f"{limit} bytes, expected at least {found.least}"):
            found.best(limit)
        return
    size, loss = cost(groups, found.best(limit))
    assert size <= limit and loss == best


@given(GROUPS)
@settings(max_examples=100, deadline=None)
def test_more_bytes_never_lose_more(groups: Groups) -> None:
    found = front(groups)
    assert found.least == min(cost(groups, c)[0] for c in product(*(range(len(group)) for group in groups)))
    losses = [cost(groups, found.best(limit))[1] for limit in range(found.least, found.greatest + 20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == best_of_all(groups, 1000)


def many(groups: int, step: int, seed: int = 0) -> Groups:
    """Nine options a group; bytes are multiples of `step`, and losses fall with them."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(groups):
        sizes = np.sort(random.integers(100, 2000, 9)) * step
        losses = np.sort(random.exponential(size=9))[::-1] * random.exponential()
        found.append([Option(int(size), float(loss)) for size, loss in zip(sizes, losses, strict=True)])
    return found


def lower_bound(groups: Groups, limit: int) -> float:
    """No choice within `limit` loses less: the greatest value of the Lagrangian over a scale of prices per byte."""
    prices = np.geomspace(1e-9, 1e-1, 400)
    return max(
        sum(min(option.loss + price * option.bytes for option in group) for group in groups) - price * limit
        for price in prices
    )


@pytest.mark.parametrize("most", [1 << 17, 2000])
def test_a_model_of_full_size(most: int) -> None:
    """121 groups; exact, or thinned to 2,000 points: it fits, and loses at most 1 % above what is possible."""
    groups = many(121, 4096 if most > 2000 else 1)
    found = front(groups, most)
    assert len(found.bytes) <= most + 1
    previous = np.inf
    for share in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0):
        limit = int(found.least + share * (found.greatest - found.least))
        size, loss = cost(groups, found.best(limit))
        assert size <= limit and loss < previous
        assert loss <= 1.01 * lower_bound(groups, limit) + 1e-12 or share == 0.0
        previous = loss


def test_options_that_cost_more_and_lose_more_are_never_taken() -> None:
    found = front([[Option(10, 1.0), Option(20, 2.0), Option(30, 0.5)]] * 3)
    assert (found.least, found.greatest) == (30, 90)
    assert {option for limit in range(30, 95) for option in found.best(limit)} == {0, 2}
    assert isinstance(found, Front) and list(found.bytes) == [30, 50, 70, 90]
