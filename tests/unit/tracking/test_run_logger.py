import io
import re

from helpers.paths import ROOT

from multitask.cli.console import WholeLines
from multitask.evaluation.evaluate import Evaluation
from multitask.tracking.origin import duration, git_commit
from multitask.tracking.run_directory import append_metrics
from multitask.tracking.run_logger import best_scores, evaluation_lines
from multitask.tracking.window import evaluation_values


def evaluation(accuracy, mse):
    return Evaluation({"a": {"accuracy": accuracy}, "long": {"mse": mse}}, {"a": 0.5, "long": 2.0}, 1.25)


def test_an_evaluation_is_printed_and_what_is_better_is_marked(tmp_path):
    best = {}
    assert evaluation_lines(1000, evaluation(0.5, 2.0), best).splitlines() == [
        "step 1,000: evaluated in 1.2 s",
        "  a        accuracy 0.5000, loss 0.5000",
        "  long     mse 2.0000, loss 2.0000",
        "  average  1.2500",
    ]
    lines = evaluation_lines(2000, evaluation(0.4, 1.0), best).splitlines()
    assert [line.endswith("  (best so far)") for line in lines] == [False, False, True, True]
    append_metrics(tmp_path, 1, evaluation_values(evaluation(0.5, 2.0)))
    append_metrics(tmp_path, 2, evaluation_values(evaluation(0.4, 1.0)))
    assert best_scores(tmp_path) == best == {"a": 0.5, "long": -1.0, "average": -0.3}


def test_bars_become_lines_that_are_not_too_many():
    texts = ("\rtraining: 0%", "\rtraining: 1%", "a line\n", "\rtraining: 99%", "\rtraining: 100%", "\n")

    def shown(seconds):
        stream = io.StringIO()
        lines = WholeLines(stream, seconds)
        for text in texts:
            lines.write(text)
        assert not lines.isatty()
        return stream.getvalue().splitlines()

    assert shown(seconds=1000) == ["a line"]  # it is over before its first line is due
    assert shown(seconds=0) == ["training: 1%", "a line", "training: 99%", "training: 100%"]


def test_where_a_run_comes_from(tmp_path):
    assert re.fullmatch("[0-9a-f]{12}( with changes)?", git_commit(ROOT)) or "unknown" in git_commit(ROOT)
    assert git_commit(tmp_path) == "unknown: not in a git checkout"
    assert [duration(s) for s in (12.4, 200, 3900)] == ["12 s", "3 min 20 s", "1 h 5 min"]
