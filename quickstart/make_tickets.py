"""Writes the tickets of configs/tickets.yaml out of tickets.yaml: `python quickstart/make_tickets.py`.

Each has a topic, an urgency and tags. As in real tables, some labels are missing.
"""

import json
import random
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
COUNTS = {"train": 1200, "validation": 240}
URGENCY_MISSING, TOPIC_MISSING = 0.2, 0.1  # of the rows of training


def ticket(parts: dict[str, Any], split: str, rng: random.Random) -> dict[str, Any]:
    """One ticket with its labels."""
    topic, urgency = rng.choice(list(parts["topics"])), rng.choice(list(parts["urgency"]))
    tags = sorted(rng.sample(list(parts["remarks"]), rng.choice([0, 1, 1, 2])))
    text = rng.choice(parts["frames"][split]).format(
        problem=rng.choice(parts["topics"][topic][split]),
        urgency=rng.choice(parts["urgency"][urgency][split]),
        remarks=" ".join(rng.choice(parts["remarks"][tag][split]) for tag in rng.sample(tags, len(tags))),
        number=rng.randint(1000, 9999),
    )
    is_train = split == "train"
    return {
        "text": " ".join(text.split()),
        "topic": None if is_train and rng.random() < TOPIC_MISSING else topic,
        "urgency": None if is_train and rng.random() < URGENCY_MISSING else urgency,
        "tags": tags,
    }


def tickets(split: str) -> list[dict[str, Any]]:
    """All tickets of a split, each text once."""
    parts, rng = yaml.safe_load((HERE / "tickets.yaml").read_text(encoding="utf-8")), random.Random(f"tickets {split}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < COUNTS[split]:
        row = ticket(parts, split, rng)
        rows.setdefault(row["text"], row)
    return list(rows.values())


def main() -> None:
    folder = HERE / "data" / "tickets"
    folder.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in tickets(split)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
