"""A table and a selection -> a page that explains both, and whether random does as well."""

from .page import build_report, describe_selection
from .wrong import WrongLabels, wrong_labels

__all__ = ["WrongLabels", "build_report", "describe_selection", "wrong_labels"]
