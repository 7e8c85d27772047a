"""Make the data of the quick start: three small tasks, built from the everyday facts in facts.yaml.

similarity   Two sentences and a grade of 0 to 5 (mirrors STS-B). The grade follows what the sentences say, not how
             many words they share:
               5  the same event in other words                  4  the same event, but at another time
               3  the same event with another thing of its kind  2  the same thing, else nothing in common
               1  the same words about a thing of another kind   0  nothing in common
             "The soup was hot" is worth 5 with the same finding in other words, and 1 with "The soup was cold".
entailment   A premise names a thing, the hypothesis describes it (mirrors RTE): "Ann bought a hammer" entails "Ann
             bought a tool", but not "Ann bought a drink".
commonsense  A question and five choices (mirrors CommonsenseQA): "What would you use to boil water?"

A model must learn about words it has not met, hence every thing and every pair of opposites belongs to either
training or validation, whatever its role. It must not be able to guess either, hence wrong answers are `deal`t: each
right answer of one row is a wrong answer of others, always equally often.
"""

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
VALIDATION_SHARE = 0.25

NAMES = [
    "Adam", "Alice", "Amir", "Anna", "Ben", "Carla", "Carlos", "Clara", "Daniel", "Diana", "Emma", "Erik",
    "Fatima", "Felix", "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jack", "Jana", "Julia", "Karim", "Laura", "Leo",
    "Lina", "Lucy", "Maria", "Marta", "Max", "Mei", "Mia", "Nina", "Noah", "Olga", "Omar", "Oscar", "Paul",
    "Petra", "Priya", "Rosa", "Sam", "Sara", "Simon", "Sofia", "Tara", "Theo", "Tom", "Yusuf", "Zoe",
]  # fmt: skip
TIMES = ["yesterday", "last week", "on Sunday", "this morning", "two days ago", "in May", "on Friday evening"]

RELATIONS = ("kind", "use", "material", "place", "does")
# How a hypothesis describes a thing by one of its facts. A second key is for what is not just "something".
DESCRIPTIONS = {
    "kind": "{value}",
    "use": "something used to {value}",
    "does": "{noun} that {value}",
    ("does", "someone"): "someone who {value}",
}
# Questions that name the thing and ask for a fact, and questions that tell a fact and ask for the thing.
ASK_FACT = {
    "kind": ["What is {x}?", "How would you classify {x}?"],
    "use": ["What can you do with {x}?", "What does {who} want to do with {x}?"],
    "material": ["What is {x} usually made of?", "Which material is {x} often made of?"],
    "place": ["Where would you look for {x}?", "{who} wants to see {x}. Where should {who} look?"],
    "does": ["What is known about {x}? It..."],
    "opposite": ["What is the opposite of {name}?", "If something is not {name}, what is it?"],
    ("place", "someone"): ["Where does {x} work?", "{who} is {x}. Where does {who} work?"],
    ("does", "someone"): ["{who} is {x}. What is {who} known for? {who}..."],
}
ASK_THING = {
    "kind": ["Which of these is {value}?", "{who} is looking for {value}. Which of these is one?"],
    "use": ["What would you use to {value}?", "{who} wants to {value}. What does {who} need?"],
    "material": ["Which of these is often made of {value}?"],
    "place": ["Which of these would you find {value}?", "What might {who} see {value}?"],
    "does": ["Which creature {value}?"],
    ("place", "someone"): ["Who works {value}?"],
    ("does", "someone"): ["Who {value}?"],
}
FINDINGS = [
    "{who} noticed that the {of} was {value}",
    "the {of} was {value}, as {who} found out",
    "it did not escape {who} that the {of} was {value}",
]

# Pairs of similarity, and at most so many things per relation of the other tasks
TRAIN_ROWS = {"similarity": 900, "entailment": 180, "commonsense": 28}
VALIDATION_ROWS = {"similarity": 240, "entailment": 40, "commonsense": 24}


@dataclass(frozen=True, eq=False)
class Thing:
    """An entity, or an adjective that has an opposite."""

    name: str
    kind: str
    noun: str  # what it is called when it is only described
    phrase: str  # its name with an article
    events: tuple[str, ...]
    facts: dict[str, list[str]]  # relation -> values that are true
    maybe: frozenset[str]  # values that are or might be true, of any relation


Item = tuple[Thing, str]  # a thing and one of its true values
Table = dict[str | tuple[str, str], Any]  # relation, or relation and noun -> frames


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def with_article(name: str) -> str:
    """A name with "a" or "an", by sound: the vowel letters, but not the "yu" of "ukulele"."""
    return f"{'an' if name[0] in 'aeiou' and not name.startswith(('uku', 'uni')) else 'a'} {name}"


def read_facts(path: Path) -> tuple[list[Thing], dict[str, list[str]]]:
    """All things with what is true and what might be true of them, and the wordings of all events."""
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    alike = defaultdict(set)
    for group in facts["alike"]:
        for value in group:
            alike[value].update(group)

    def maybe(*values: str) -> frozenset[str]:
        return frozenset(values).union(*(alike[value] for value in values))

    things = []
    for kind in facts["kinds"].values():
        # Things of a kind serve similar ends: what one of them is used for may well be done with another.
        uses = [use for own in kind["things"].values() for use in as_list(own.get("use", []))]
        for name, own in kind["things"].items():
            form = own.get("form")
            phrase = {"mass": name, "pair": f"a pair of {name}"}.get(form, with_article(name))
            true = {relation: as_list(value) for relation, value in own.items() if relation != "form"}
            true["kind"] = [kind["is"]]
            might = maybe(*sum(true.values(), [])) | set(kind.get("also", [])) | set(uses)
            noun = kind.get("as", "something")
            things.append(Thing(name, kind["is"], noun, phrase, tuple(kind["events"]), true, might))
    for opposite in facts["opposites"]:
        for name, other in (opposite["pair"], opposite["pair"][::-1]):
            true = {"opposite": [other], "of": opposite["of"]}
            things.append(Thing(name, "opposite", "", name, (), true, maybe(name, other)))
    return things, facts["events"]


def split(things: list[Thing], rng: random.Random) -> tuple[list[Thing], list[Thing]]:
    """Training and validation things: a share of every kind each, and never one half of a pair of opposites."""
    units = defaultdict(list)
    for thing in things:
        if thing.kind != "opposite":
            units[thing.kind].append([thing])
    adjectives = [thing for thing in things if thing.kind == "opposite"]
    units["opposite"] = [list(pair) for pair in zip(adjectives[::2], adjectives[1::2], strict=True)]
    train, validation = [], []
    for group in units.values():
        rng.shuffle(group)
        cut = max(2, round(len(group) * VALIDATION_SHARE))
        validation += sum(group[:cut], [])
        train += sum(group[cut:], [])
    return train, validation


def contradicts(relation: str, item: Item, other: Item) -> bool:
    """Whether the value of the other item is surely false of this item's thing, and fits into the same sentence."""
    (thing, _), (owner, value) = item, other
    return value not in thing.maybe and (relation not in ("place", "does") or thing.noun == owner.noun)


def contradicted(relation: str, item: Item, other: Item) -> bool:
    """Whether the value of this item is surely false of the other item's thing."""
    return contradicts(relation, other, item)


def confusable(relation: str, item: Item, other: Item) -> bool:
    """Whether the other's value is false of this item's thing, though the same can happen to both."""
    return contradicts(relation, item, other) and not set(item[0].events).isdisjoint(other[0].events)


def deal(
    items: list[Item], hands: int, fits: Callable[[Item, Item], bool], rng: random.Random
) -> list[tuple[Item, list[Item]]]:
    """Each item with `hands` others to take wrong answers from; every item is handed out equally often.

    Items that cannot be served are left out, until the rest can.
    """
    dealt: list[tuple[Item, list[Item]]] = [(item, []) for item in items]
    for _ in range(hands):
        hand, stuck = deal_hand(dealt, fits, rng)
        if stuck is not None:
            return deal([item for item in items if item is not stuck], hands, fits, rng)
        for (_, had), other in zip(dealt, hand, strict=True):
            had.append(other)
    return dealt


def deal_hand(
    dealt: list[tuple[Item, list[Item]]], fits: Callable[[Item, Item], bool], rng: random.Random
) -> tuple[list[Item], Item | None]:
    """One more other item for each: a shuffle, repaired by swapping. Second, an item stuck without, if any."""

    def suits(i: int, other: Item) -> bool:
        item, had = dealt[i]
        return fits(item, other) and all(other[0] is not thing and other[1] != value for thing, value in had)

    hand = [item for item, _ in dealt]
    rng.shuffle(hand)
    stuck: list[int] = []
    for _ in range(100):
        stuck = [i for i, other in enumerate(hand) if not suits(i, other)]
        if not stuck:
            return hand, None
        for i in stuck:
            swaps = [j for j, other in enumerate(hand) if suits(i, other) and suits(j, hand[i])]
            j = rng.choice(swaps or range(len(hand)))
            hand[i], hand[j] = hand[j], hand[i]
    return hand, dealt[stuck[0]][0]


def for_noun(table: Table, relation: str, thing: Thing) -> Any:
    """The entry of a relation, by what a thing is called if that makes a difference."""
    return table.get((relation, thing.noun), table.get(relation))


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


class Writer:
    """Writes the rows of one split: `things` are the only ones it knows of."""

    def __init__(self, things: list[Thing], events: dict[str, list[str]], rows: dict[str, int], rng: random.Random):
        self.things = [thing for thing in things if thing.kind != "opposite"]
        self.adjectives = [thing for thing in things if thing.kind == "opposite"]
        self.events, self.rows, self.rng = events, rows, rng

    def similarity(self) -> Iterator[dict[str, Any]]:
        """As many pairs of each grade; where opposites can make the grade, a quarter of them do."""
        for i in range(self.rows["similarity"]):
            score = i % 6
            about_opposites = score in (1, 5) and i // 6 % 4 == 0
            first, second = self.finding_pair(score) if about_opposites else self.event_pair(score)
            if self.rng.random() < 0.5:
                first, second = second, first
            yield {"sentence1": sentence(first), "sentence2": sentence(second), "score": float(score)}

    def event_pair(self, score: int) -> tuple[str, str]:
        """Two sentences about events which deserve the score; see the docstring of this file."""
        rng = self.rng
        thing = rng.choice(self.things)
        event = rng.choice(thing.events)
        wording, other_wording = rng.sample(self.events[event], 2)
        who, stranger = rng.sample(NAMES, 2)
        when, other_when = rng.sample(TIMES, 2)
        siblings = [other for other in self.things if other.kind == thing.kind and other is not thing]
        unlike = self.unlike(thing)

        other, other_who = thing, who
        if score == 3:
            other, other_wording = rng.choice(siblings), rng.choice([wording, other_wording])
        elif score == 2:
            other_who, other_wording = stranger, self.wording_of_other_event(thing, event)
        elif score == 1:
            candidates = [other for other in unlike if event in other.events]
            if not candidates:  # only trees are climbed
                return self.event_pair(score)
            other, other_wording = rng.choice(candidates), wording
        elif score == 0:
            other, other_who = rng.choice(unlike), stranger
            other_wording = self.wording_of_other_event(other, event)

        first = wording.format(who=who, x=thing.phrase)
        second = other_wording.format(who=other_who, x=other.phrase)
        if score == 4:
            return f"{first} {when}", f"{second} {other_when}"
        return (f"{first} {when}", f"{second} {when}") if rng.random() < 0.5 else (first, second)

    def unlike(self, thing: Thing) -> list[Thing]:
        """Things of clearly another kind: even a bird and a mammal have too much in common."""
        others = [other for other in self.things if other.kind not in thing.maybe]
        return [other for other in others if other.noun == "something" or other.noun != thing.noun]

    def wording_of_other_event(self, thing: Thing, event: str) -> str:
        return self.rng.choice(self.events[self.rng.choice([other for other in thing.events if other != event])])

    def finding_pair(self, score: int) -> tuple[str, str]:
        """Two sentences about what something is like: the same in other words (5), or the opposite (1)."""
        adjective = self.rng.choice(self.adjectives)
        who, of = self.rng.choice(NAMES), self.rng.choice(adjective.facts["of"])
        frame, other_frame = self.rng.sample(FINDINGS, 2)
        first = frame.format(who=who, of=of, value=adjective.name)
        if score == 5:
            return first, other_frame.format(who=who, of=of, value=adjective.name)
        return first, frame.format(who=who, of=of, value=adjective.facts["opposite"][0])

    def entailment(self) -> Iterator[dict[str, str]]:
        """Every premise once with a true and once with a false description, and once so every description."""
        for relation in ("kind", "use", "does"):
            items = self.pick(relation, "entailment")
            for (thing, right), [(owner, wrong)] in deal(items, 1, partial(confusable, relation), self.rng):
                event = self.rng.choice([event for event in thing.events if event in owner.events])
                yield self.entailment_row(relation, thing, event, right, "entailment")
                yield self.entailment_row(relation, thing, event, wrong, "not_entailment")
        for adjective in self.adjectives[: self.rows["entailment"] // 6 * 2]:  # both of a pair
            yield from self.finding_rows(adjective)

    def entailment_row(self, relation: str, thing: Thing, event: str, value: str, label: str) -> dict[str, str]:
        rng = self.rng
        who = rng.choice(NAMES)
        frame = for_noun(DESCRIPTIONS, relation, thing)
        wording = rng.choice(self.events[event])
        premise = wording.format(who=who, x=thing.phrase)
        if rng.random() < 0.5:
            premise += f" {rng.choice(TIMES)}"
        x = frame.format(value=value, noun=thing.noun)
        hypothesis = rng.choice([wording, *self.events[event]]).format(who=who, x=x)
        return {"premise": sentence(premise), "hypothesis": sentence(hypothesis), "label": label}

    def finding_rows(self, adjective: Thing) -> Iterator[dict[str, str]]:
        """What an adjective is said of has that quality, and not the opposite one."""
        of = self.rng.choice(adjective.facts["of"])
        for value, label in [(adjective.name, "entailment"), (adjective.facts["opposite"][0], "not_entailment")]:
            premise = self.rng.choice(FINDINGS).format(who=self.rng.choice(NAMES), of=of, value=adjective.name)
            yield {"premise": sentence(premise), "hypothesis": f"The {of} was {value}.", "label": label}

    def commonsense(self) -> Iterator[dict[str, Any]]:
        """Questions about facts and about things, the right choice at each of the five positions in turn."""
        rng = self.rng
        asked = []
        for relation in (*RELATIONS, "opposite"):
            wrong_fact = partial(contradicts, relation)
            for (thing, value), others in deal(self.pick(relation, "commonsense"), 4, wrong_fact, rng):
                question = self.question(ASK_FACT, relation, thing, value)
                asked.append((question, value, [wrong for _, wrong in others]))
        for relation in RELATIONS:
            wrong_thing = partial(contradicted, relation)
            for (thing, value), others in deal(self.pick(relation, "commonsense"), 4, wrong_thing, rng):
                question = self.question(ASK_THING, relation, thing, value)
                asked.append((question, thing.name, [other.name for other, _ in others]))

        rng.shuffle(asked)
        for i, (question, answer, wrong) in enumerate(asked):
            choices = rng.sample(wrong, 4)
            choices.insert(i % 5, answer)
            yield {
                "question": question,
                "choices": {"label": list("ABCDE"), "text": choices},
                "answer": "ABCDE"[i % 5],
            }

    def question(self, table: Table, relation: str, thing: Thing, value: str) -> str:
        frame = self.rng.choice(for_noun(table, relation, thing))
        text = frame.format(who=self.rng.choice(NAMES), x=thing.phrase, name=thing.name, value=value)
        return text[0].upper() + text[1:]

    def pick(self, relation: str, task: str) -> list[Item]:
        """Things with a value each, no value in more than a tenth of them, as it must be a wrong answer elsewhere."""
        having = [thing for thing in self.things + self.adjectives if relation in thing.facts]
        most = min(self.rows[task], len(having))
        items: list[Item] = []
        count: Counter[str] = Counter()
        for thing in self.rng.sample(having, len(having)):
            value = self.rng.choice(thing.facts[relation])
            if len(items) < most and count[value] < max(1, most // 10):
                items.append((thing, value))
                count[value] += 1
        return items


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "data", help="folder to write to")
    parser.add_argument("--seed", type=int, default=1, help="seed of all choices")
    args = parser.parse_args(argv)

    rng = random.Random(args.seed)
    things, events = read_facts(HERE / "facts.yaml")
    train, validation = split(things, rng)
    for name, part, rows in [("train", train, TRAIN_ROWS), ("validation", validation, VALIDATION_ROWS)]:
        writer = Writer(part, events, rows, rng)
        for task in (writer.similarity, writer.entailment, writer.commonsense):
            data = list(task())
            rng.shuffle(data)
            path = args.output / task.__name__ / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data), encoding="utf-8")


if __name__ == "__main__":
    main()
