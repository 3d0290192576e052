"""Evaluation: what a model answers, what the answers are worth, and comparisons that can be trusted.

evaluate("model/", {"type": "synthetic_documents", "count": 1000, "split": "test"}).mean
compare("recipes/tiny/compare.yaml", seeds=[0, 1, 2], out="runs/compare")
"""

from vision_remember.evaluation.compare import compare
from vision_remember.evaluation.runner import Evaluation, evaluate

__all__ = ["Evaluation", "compare", "evaluate"]
