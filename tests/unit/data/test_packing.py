from itertools import product

import numpy as np
import pytest
import torch
from helpers.lanes import every_third
from helpers.splits import SPLITS, make_mixture

from multitask.data.loader import StepDataset, StepLoader
from multitask.data.packing import collate, padded_tokens, share_out, split_into_passes


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
                own = torch.cat([part[task]["labels"] for part in item.passes]).tolist()
                expected = share_out(mixture(step), SPLITS, num_devices, step)[device][task]
                assert sorted(own) == sorted(expected.tolist())
        real = 0
        for task, split in SPLITS.items():
            batches = [part[task] for item in items for part in item.passes]
            labels = torch.cat([batch["labels"] for batch in batches]).tolist()
            assert sorted(labels) == sorted(mixture(step)[task].tolist())
            assert len(labels) == items[0].examples[task]
            for batch in batches:
                inputs = batch["inputs"]
                real += int(inputs["attention_mask"].sum())
                ids = inputs["input_ids"].view(-1, inputs["input_ids"].shape[-1])
                expected = batch["labels"].repeat_interleave(split.sequences)[:, None] + 1
                assert (ids == expected * inputs["attention_mask"].view_as(ids)).all()
        assert real == items[0].tokens


@pytest.mark.parametrize("num_devices", [2, 3, 8])
def test_devices_compute_on_about_as_many_tokens(num_devices):
    mixture, tokens = make_mixture(24), np.zeros((64, num_devices))
    for step in range(64):
        shares = share_out(mixture(step), SPLITS, num_devices, step)
        for device, share in enumerate(shares):
            tokens[step, device] = sum(padded_tokens(SPLITS[task], r) for task, r in share.items())
        for task, r in mixture(step).items():  # none is more than a row ahead
            assert sorted(np.concatenate([share[task] for share in shares])) == sorted(r)
            counts = [len(share[task]) for share in shares]
            assert sum(counts) == len(r) and max(counts) - min(counts) <= 1
    of_device = tokens.sum(axis=0)
    assert of_device.max() / of_device.min() < 1.03, of_device


def test_a_pass_holds_at_most_its_tokens_unless_it_is_one_example():
    rows = make_mixture(60)(0)
    passes = split_into_passes(rows, SPLITS, 300)
    sizes = [sum(padded_tokens(SPLITS[task], r) for task, r in part.items()) for part in passes]
    assert len(passes) > 3 and max(sizes) <= 300
    for part in split_into_passes(rows, SPLITS, 10):
        assert [len(r) for r in part.values()] == [1] or sum(
            padded_tokens(SPLITS[t], r) for t, r in part.items()
        ) <= 10


def test_rows_without_a_pass_still_make_one():
    assert split_into_passes({"single": np.empty(0, np.int64)}, SPLITS, 100) == [{}]


def test_collate_has_the_shapes_that_the_models_take():
    batch = collate(SPLITS["choice"], [3, 1], pad_token_id=9)
    inputs = batch["inputs"]
    longest = int(SPLITS["choice"].length[[3, 1]].max())
    assert {name: tuple(t.shape) for name, t in inputs.items()} == dict.fromkeys(inputs, (2, 3, longest))
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == 9).all()
    assert (inputs["token_type_ids"] == inputs["attention_mask"]).all()
    assert batch["labels"].tolist() == [3, 1]
    assert collate(SPLITS["single"], [0], 0)["inputs"]["input_ids"].ndim == 2
    empty = collate(SPLITS["choice"], [], 0)
    assert len(empty["labels"]) == len(empty["inputs"]["input_ids"]) == 0


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
