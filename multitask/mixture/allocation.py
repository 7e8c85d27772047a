"""Exact number of examples allocated to each task before any step, without iterating over the earlier steps."""

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

Shares = Mapping[str, Fraction]


# (first step, shares): each entry holds until the first step of the next, the last one indefinitely.
Stretches = Sequence[tuple[int, Shares]]


# A binary tree: the name of a task, or two subtrees.
Tree = str | tuple["Tree", "Tree"]


class Plan:
    """Cumulative number of examples of each task, from the first step of `stretches` on.

    Every step holds exactly B = `batch_size` examples, and no task's count ever decreases. If every task gets at least
    one example per step, task t has been given `floor(C_t) - floor(C_(t-1))` examples, where C_t is the exact
    (fractional) target of the first t tasks together: never more than one away from the target of task t.

    If a task gets less than one example per step, that difference could decrease from one step to the next. In this
    case the tasks are the leaves of the Huffman tree of their shares, and each node splits its number of examples
    between its children, rounding the left child's target to the nearest integer. The rounding error of at most 1/2
    propagates down in proportion to the shares: with constant shares, up to three tasks stay within one example, and
    more tasks within 1/2 · (1 + 1 + 1/2 + 1/3 + 1/5 + …) < 2, because the weights along a path up a Huffman tree grow
    at least as fast as the Fibonacci numbers.

    Args:
        stretches: (first step, shares) pairs; the shares are exact fractions that add up to 1.
        batch_size: B.
        before: examples given to each task before the plan begins; None for 0.
    """

    def __init__(self, stretches: Stretches, batch_size: int, before: Mapping[str, int] | None = None):
        self.first_step, first_shares = stretches[0]
        assert all(sum(shares.values()) == 1 and shares.keys() == first_shares.keys() for _, shares in stretches)
        self.batch_size = batch_size
        self.before = dict(before or dict.fromkeys(first_shares, 0))
        self.starts = [step for step, _ in stretches]
        self.stretch_shares = [shares for _, shares in stretches]
        self._planned = [dict.fromkeys(first_shares, Fraction(0))]  # targets at the start of each stretch
        for index, start in enumerate(self.starts[1:]):
            self._planned.append(
                {
                    task: n + self.stretch_shares[index][task] * self._examples(index, start)
                    for task, n in self._planned[-1].items()
                }
            )
        self.tasks = [task for task, share in self.mean_shares().items() if share]
        rarest = min(shares[task] for task in self.tasks for shares in self.stretch_shares)
        self._lines: list[dict] = []
        self.paths: dict[str, list[tuple[Tree, bool]]] | None = None
        if rarest * batch_size >= 1:
            self._lay_floors()
        else:
            self._lay_tree()

    def most_share(self, task: str) -> Fraction:
        """The largest share of a task in any stretch."""
        return max(shares[task] for shares in self.stretch_shares)

    def mean_shares(self) -> dict[str, Fraction]:
        """Each task's mean share over the stretches."""
        number = Fraction(len(self.stretch_shares))
        return {task: sum(s[task] for s in self.stretch_shares) / number for task in self.before}

    def planned(self, task: str, step: int) -> Fraction:
        """Exact (fractional) target of `task` before a step."""
        index = bisect_right(self.starts, step) - 1
        since = self._planned[index][task] + self.stretch_shares[index][task] * self._examples(index, step)
        return self.before[task] + since

    def given(self, task: str, step: int) -> int:
        """Number of examples given to `task` before a step, which must not precede the plan."""
        index = bisect_right(self.starts, step) - 1
        lines = self._lines[index]
        if self.paths is None:
            examples = self._examples(index, step)
            return self.before[task] + _floor(lines[task][1], examples) - _floor(lines[task][0], examples)
        return self.before[task] + self._down_the_tree(task, lines, self._examples(0, step))

    def _down_the_tree(self, task: str, lines: Mapping, count: int) -> int:
        if self.paths is None or task not in self.paths:
            return 0
        for node, is_left in self.paths[task]:
            left = _floor(lines[node], count)
            count = left if is_left else count - left
        return count

    def _examples(self, index: int, step: int) -> int:
        """Number of examples of all tasks from the start of a stretch up to a step."""
        return self.batch_size * (step - self.starts[index])

    def _lay_floors(self) -> None:
        """For each stretch and task, C_(t-1) and C_t as linear functions of the examples since the stretch began."""
        for shares, planned in zip(self.stretch_shares, self._planned, strict=True):
            at_start, slope = Fraction(0), Fraction(0)
            lines = {}
            for task in shares:
                below = _line(at_start, slope)
                at_start, slope = at_start + planned[task], slope + shares[task]
                lines[task] = below, _line(at_start, slope)
            self._lines.append(lines)

    def _lay_tree(self) -> None:
        """Per stretch and node, the left child's count as a linear function of the node's since the plan began."""
        mean = self.mean_shares()
        tree = _huffman({task: mean[task] for task in self.tasks})
        self.paths = dict(_paths(tree))
        nodes = list(dict.fromkeys(node for path in self.paths.values() for node, _ in path))
        left, at = dict.fromkeys(nodes, Fraction(0)), dict.fromkeys(nodes, 0)  # at the start of the latest stretch
        slope = dict.fromkeys(nodes, Fraction(0))
        for start, shares in zip(self.starts, self.stretch_shares, strict=True):
            examples, lines_before = self._examples(0, start), self._lines[-1] if self._lines else {}
            counts = {
                task: self._down_the_tree(task, lines_before, examples) if examples else 0 for task in self.tasks
            }
            lines = {}
            for node in nodes:
                count = sum(counts[task] for task in _leaves(node))
                left[node] += slope[node] * (count - at[node])
                at[node] = count
                whole = sum(shares[task] for task in _leaves(node))
                slope[node] = sum(shares[task] for task in _leaves(node[0])) / Fraction(whole or 1)
                lines[node] = _line(left[node] - slope[node] * count + Fraction(1, 2), slope[node])
            self._lines.append(lines)


def _line(at_zero: Fraction, slope: Fraction) -> tuple[int, int, int]:
    denominator = math.lcm(at_zero.denominator, slope.denominator)
    return int(at_zero * denominator), int(slope * denominator), denominator


def _floor(line: tuple[int, int, int], x: int) -> int:
    at_zero, slope, denominator = line
    return (at_zero + slope * x) // denominator


def _huffman(weights: Mapping[str, Fraction]) -> Tree:
    """Merges the two lightest trees until one is left; of equal weights, the earlier ones."""
    heap: list[tuple[Fraction, int, Tree]] = [
        (weight, place, task) for place, (task, weight) in enumerate(weights.items())
    ]
    heapq.heapify(heap)
    for place in range(len(heap), 2 * len(heap) - 1):
        (lighter, _, left), (heavier, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (lighter + heavier, place, (left, right)))
    return heap[0][2]


def _leaves(tree: Tree) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        for half in tree:
            yield from _leaves(half)


def _paths(tree: Tree, above: tuple[tuple[Tree, bool], ...] = ()) -> Iterator[tuple[str, list[tuple[Tree, bool]]]]:
    """Each task with the nodes on the path down to it, and whether the path goes left at each."""
    if isinstance(tree, str):
        yield tree, list(above)
    else:
        yield from _paths(tree[0], (*above, (tree, True)))
        yield from _paths(tree[1], (*above, (tree, False)))
