"""What the quick-start tasks yield without understanding: a constant answer, and a linear model on bags of words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from scipy.stats import pearsonr, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

Rows = list[dict[str, Any]]
DATA = Path(__file__).parent / "data"


def read(task: str, part: str, data: Path = DATA) -> Rows:
    """The rows of one part, `train` or `validation`, of a task."""
    return [json.loads(line) for line in (data / task / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


class PairFeatures:
    """Two texts as one vector: the words of each, the words they share, and how many of all words those are."""

    def __init__(self, texts: list[str]) -> None:
        self.vectorizer = TfidfVectorizer(token_pattern=r"\b\w+\b").fit(texts)

    def __call__(self, pairs: list[tuple[str, str]]) -> csr_matrix:
        first, second = (self.vectorizer.transform(texts) for texts in zip(*pairs, strict=True))
        tokenize = self.vectorizer.build_analyzer()
        words = [(set(tokenize(a)), set(tokenize(b))) for a, b in pairs]
        overlap = np.array([[len(a & b) / len(a | b), len(b - a), abs(len(a) - len(b))] for a, b in words])
        return hstack([first, second, first.multiply(second), overlap]).tocsr()


def fit_features(*parts: list[tuple[str, str]]) -> list[csr_matrix]:
    """The features of each part; the first, for training, decides on the vocabulary."""
    features = PairFeatures([text for pair in parts[0] for text in pair])
    return [features(pairs) for pairs in parts]


def similarity(train: Rows, validation: Rows) -> dict[str, float]:
    """Correlation of a ridge regression. A constant correlates with nothing."""
    x, x_validation = fit_features(
        *[[(row["sentence1"], row["sentence2"]) for row in rows] for rows in (train, validation)]
    )
    predicted = Ridge().fit(x, [row["score"] for row in train]).predict(x_validation)
    truth = [row["score"] for row in validation]
    return {
        "constant pearson": 0.0,
        "constant spearmanr": 0.0,
        "bag-of-words pearson": float(pearsonr(predicted, truth)[0]),
        "bag-of-words spearmanr": float(spearmanr(predicted, truth)[0]),
    }


def entailment(train: Rows, validation: Rows) -> dict[str, float]:
    """Accuracy of the most frequent label of training, and of a logistic regression."""
    x, x_validation = fit_features(
        *[[(row["premise"], row["hypothesis"]) for row in rows] for rows in (train, validation)]
    )
    labels, truth = ([row["label"] for row in rows] for rows in (train, validation))
    predicted = LogisticRegression(max_iter=1000).fit(x, labels).predict(x_validation)
    return majority(labels, truth) | {"bag-of-words accuracy": float(np.mean(predicted == np.array(truth)))}


def commonsense(train: Rows, validation: Rows) -> dict[str, float]:
    """Accuracy of the most frequent position, and of the choice that a logistic regression finds most often right."""
    pairs = [
        [(row["question"], text) for row in rows for text in row["choices"]["text"]] for rows in (train, validation)
    ]
    x, x_validation = fit_features(*pairs)
    right = [label == row["answer"] for row in train for label in row["choices"]["label"]]
    scores = LogisticRegression(max_iter=1000).fit(x, right).decision_function(x_validation).reshape(-1, 5)
    predicted = np.array(list("ABCDE"))[scores.argmax(axis=1)]
    labels, truth = ([row["answer"] for row in rows] for rows in (train, validation))
    return majority(labels, truth) | {"bag-of-words accuracy": float(np.mean(predicted == np.array(truth)))}


def majority(labels: list[str], truth: list[str]) -> dict[str, float]:
    """Accuracy of the label most frequent in training, the first in order if several are."""
    constant = max(sorted(set(labels)), key=labels.count)
    return {"constant accuracy": truth.count(constant) / len(truth)}


def baselines(data: Path = DATA) -> dict[str, dict[str, float]]:
    """The metrics of both baselines on the validation rows of every task."""
    tasks = {"similarity": similarity, "entailment": entailment, "commonsense": commonsense}
    return {name: task(read(name, "train", data), read(name, "validation", data)) for name, task in tasks.items()}


def main() -> None:
    for task, metrics in baselines().items():
        for metric, value in metrics.items():
            print(f"{task:12} {metric:24} {value:.3f}")


if __name__ == "__main__":
    main()
