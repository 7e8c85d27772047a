"""What the plan of a run says of its classes."""

import dataclasses

from multitask.cli.console import classes_line, oddities


def test_classes_are_counted_and_those_that_nothing_measures_are_named(tokenised):
    task = tokenised("bert", "animal")
    numbers = task.train.row_labels
    counts = {name: int((numbers == number).sum()) for number, name in enumerate(task.labels)}
    first, second = sorted(counts, key=lambda name: -counts[name])
    assert classes_line(task) == f"classes of animal in train: {first} {counts[first]}, {second} {counts[second]}"
    assert classes_line(tokenised("bert", "similar")) == ""
    only = dataclasses.replace(task.validation, labels=task.validation.row_labels * 0)
    notes = oddities([dataclasses.replace(task, validation=only)], {"animal": 1}, 10**6)
    assert f"animal: validation has none of {task.labels[1]}, so nothing measures how well it is learned" in notes
    assert not [note for note in oddities([task], {"animal": 1}, 10**6) if "validation has none" in note]
