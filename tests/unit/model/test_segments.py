"""Groups of about one length."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch

from multitask.model.segments import group_by_length, lay_out


def cost_of(groups, lengths, call_cost):
    return sum(call_cost + len(numbers) * lengths[numbers].max() for numbers in groups)


def cheapest(lengths, call_cost):
    """By trying all ways to cut the ordered lengths."""
    ordered = np.sort(lengths)
    costs = []
    for count in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), count):
            parts = np.split(ordered, cuts)
            costs.append(sum(call_cost + len(part) * part.max() for part in parts))
    return min(costs)


@pytest.mark.parametrize("call_cost", [0, 1, 7, 30, 1000])
def test_no_other_way_to_cut_costs_less(call_cost):
    rng = random.Random(call_cost)
    for _ in range(20):
        lengths = np.array([rng.choice([3, 4, 5, 9, 10, 17, 40]) for _ in range(rng.randint(1, 10))])
        groups = group_by_length(lengths, call_cost)
        assert sorted(np.concatenate(groups)) == list(range(len(lengths)))  # each once
        assert [lengths[numbers].max() for numbers in groups] == sorted(lengths[numbers].max() for numbers in groups)
        assert cost_of(groups, lengths, call_cost) == cheapest(lengths, call_cost)


def test_padding_is_given_up_for_memory():
    lengths = np.array([10] * 10 + [20, 40])
    padded = {
        limit: cost_of(group_by_length(lengths, 1000, limit), lengths, 0) for limit in (480, 479, 239, 199, 160, 0)
    }
    assert padded[480] == 480 and all(padded[limit] <= limit for limit in (479, 239, 199, 160))
    assert padded[0] == lengths.sum() == 160  # there is nothing left to give up


@pytest.mark.parametrize("call_cost", [0, 3, 10**6])
def test_every_token_has_a_place(call_cost):
    rng = np.random.default_rng(call_cost)
    lengths = rng.integers(1, 20, 30)
    layout = lay_out(lengths, call_cost, torch.device("cpu"))
    tokens = torch.arange(int(lengths.sum()))
    assert torch.equal(layout.source[layout.places], tokens)
    sequences = torch.from_numpy(np.repeat(np.arange(30), lengths))
    assert sum(layout.sizes) == len(layout.source) and sum(group.num_sequences for group in layout.groups) == 30
    for group, source in zip(layout.groups, layout.source.split(layout.sizes), strict=True):
        of_row = sequences[source].view(group.num_sequences, group.length)
        assert (of_row == of_row[:, :1]).all()  # a row holds one sequence, also where it is padding
        is_token = torch.ones_like(of_row, dtype=torch.bool) if group.mask is None else group.mask
        assert is_token.sum(1).tolist() == [lengths[number] for number in of_row[:, 0]]
        assert (group.mask is None) == (len({lengths[number] for number in of_row[:, 0]}) == 1)
    assert len(layout.groups) == {0: len(set(lengths)), 10**6: 1}.get(call_cost, len(layout.groups))
