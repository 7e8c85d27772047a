"""Task types (one file each), labels, metrics and the loading of a task's data."""

from .base import register
from .classification import Classification
from .multi_label import MultiLabelClassification
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .regression import Regression
from .token_classification import TokenClassification

for _type in (
    Regression(),
    Classification(),
    MultipleChoice(),
    MultiLabelClassification(),
    TokenClassification(),
    QuestionAnswering(),
):
    register(_type)
