"""What differs between types of tasks (a file each), and a task's rows made ready."""

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
