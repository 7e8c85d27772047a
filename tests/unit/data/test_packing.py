from itertools import product

import numpy as np
import pytest
import torch
from helpers.lanes import every_third
from helpers.splits import SPLITS, make_mixture

from multitask.data.loader import StepDataset, StepLoader
from multitask.data.packing import pack, share_out, split_into_passes
from multitask.data.static_shapes import collate


def tokens_of(task, rows):
    return int(SPLITS[task].tokens[rows].sum())


@pytest.mark.parametrize(("num_devices", "max_tokens"), every_third(product([1, 2, 3, 8], [1, 130, 400, 2000, 10**6])))
def test_devices_and_passes_share_a_step_without_loss_or_double(max_tokens, num_devices):
    mixture = make_mixture(24)
    for step in range(12):
        items = [
            StepDataset(mixture, SPLITS, 0, max_tokens, num_devices, device)[step] for device in range(num_devices)
        ]
        assert len({len(item.passes) for item in items}) == 1
        assert len({item.tokens for item in items}) == 1
        for task in SPLITS:
            for device, item in enumerate(items):
                own = torch.cat([part.labels[task] for part in item.passes]).tolist()
                expected = share_out(mixture(step), SPLITS, num_devices, step)[device][task]
                assert sorted(own) == sorted(expected.tolist())
        real = 0
        for task, split in SPLITS.items():
            passes = [part for item in items for part in item.passes]
            labels = torch.cat([part.labels[task] for part in passes]).tolist()
            assert sorted(labels) == sorted(mixture(step)[task].tolist())
            assert len(labels) == items[0].examples[task] == sum(part.num_rows[task] for part in passes)
            for part in passes:
                own = part.inputs.only(task)
                real += own.input_ids.numel()
                expected = (part.labels[task] + 1).repeat_interleave(split.sequences)
                assert own.input_ids[0].tolist() == expected.repeat_interleave(torch.from_numpy(own.lengths)).tolist()
        assert real == items[0].tokens


@pytest.mark.parametrize(("num_devices", "most_above_mean"), [(2, 1.02), (3, 1.035), (8, 1.11)])
def test_devices_compute_on_about_as_many_tokens(num_devices, most_above_mean):
    mixture, tokens = make_mixture(24), np.zeros((256, num_devices))
    for step in range(256):
        shares = share_out(mixture(step), SPLITS, num_devices, step)
        for device, share in enumerate(shares):
            tokens[step, device] = sum(tokens_of(task, r) for task, r in share.items())
        for task, r in mixture(step).items():  # none is more than a row ahead
            assert sorted(np.concatenate([share[task] for share in shares])) == sorted(r)
            counts = [len(share[task]) for share in shares]
            assert sum(counts) == len(r) and max(counts) - min(counts) <= 1
    of_device = tokens.sum(axis=0)
    assert of_device.max() / of_device.min() < 1.03, of_device
    slowest = tokens.max(axis=1) / tokens.mean(axis=1)  # all wait for it; dealt blindly in turns 1.03, 1.06, 1.17
    assert slowest.mean() < most_above_mean


def test_a_pass_holds_at_most_its_tokens_unless_it_is_one_example():
    rows = make_mixture(60)(0)
    passes = split_into_passes(rows, SPLITS, 300)
    sizes = [sum(tokens_of(task, r) for task, r in part.items()) for part in passes]
    assert len(passes) > 3 and max(sizes) <= 300
    for part in split_into_passes(rows, SPLITS, 10):
        assert [len(r) for r in part.values()] == [1] or sum(tokens_of(task, r) for task, r in part.items()) <= 10


def test_rows_without_a_pass_still_make_one():
    assert split_into_passes({"single": np.empty(0, np.int64)}, SPLITS, 100) == [{}]


def test_a_packed_pass_says_where_everything_is():
    rows = {"single": np.array([7, 2]), "rare": np.empty(0, np.int64), "choice": np.array([3, 1])}
    made = pack(rows, SPLITS)
    packed = made.inputs
    assert made.num_rows == {"single": 2, "rare": 0, "choice": 2}
    assert {task: labels.tolist() for task, labels in made.labels.items()} == {
        "single": [7, 2],
        "rare": [],
        "choice": [3, 1],
    }
    assert packed.spans == {"single": (0, 2, 1), "rare": (2, 0, 1), "choice": (2, 2, 3)}
    lengths = [
        int(SPLITS[task].input_ids.sizes[row * SPLITS[task].sequences + which])
        for task, of_task in rows.items()
        for row in of_task
        for which in range(SPLITS[task].sequences)
    ]
    assert packed.lengths.tolist() == lengths and packed.cu_seqlens.tolist() == [0, *np.cumsum(lengths)]
    assert packed.position_ids[0].tolist() == [place for length in lengths for place in range(length)]
    assert packed.input_ids.shape == packed.token_type_ids.shape == (1, sum(lengths))
    assert packed.only("choice").input_ids[0].tolist() == packed.input_ids[0, sum(lengths[:2]) :].tolist()
    assert packed.only("choice").cu_seqlens.tolist() == [0, *np.cumsum(lengths[2:])]
    assert packed.only("rare").input_ids.numel() == 0


def test_collate_has_the_shapes_that_the_models_take():
    inputs, labels = collate(SPLITS["choice"], [3, 1], pad_token_id=9)
    longest = int(SPLITS["choice"].length[[3, 1]].max())
    assert {name: tuple(t.shape) for name, t in inputs.items()} == dict.fromkeys(inputs, (2, 3, longest))
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == 9).all()
    assert (inputs["token_type_ids"] == inputs["attention_mask"]).all()
    assert labels.tolist() == [3, 1]
    assert collate(SPLITS["single"], [0], 0)[0]["input_ids"].ndim == 2
    inputs, labels = collate(SPLITS["choice"], [], 0)
    assert len(labels) == len(inputs["input_ids"]) == 0


class Numbers(torch.utils.data.Dataset):
    """Stands for a `StepDataset`: a step is its number and the mixture's name."""

    mixture = "first"

    def __getitem__(self, step):
        return step, self.mixture


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_what_was_prepared_with_another_mixture_is_thrown_away(num_workers):
    loader = StepLoader(Numbers(), 3, 12, num_workers=num_workers)
    seen = []
    for number, (step, mixture) in loader:
        assert step == number - 1
        seen.append((number, mixture))
        if number == 6:
            loader.use("second", 12)
        if number == 9:
            loader.use("third", 10)  # and an earlier end
    assert seen == [
        *((number, "first") for number in (4, 5, 6)),
        *((number, "second") for number in (7, 8, 9)),
        (10, "third"),
    ]
    loader = StepLoader(Numbers(), 3, 12, num_workers=num_workers)
    for number, _ in loader:
        if number == 6:
            loader.use("none", 6)
    assert number == 6
    assert list(StepLoader(Numbers(), 12, 12)) == []
