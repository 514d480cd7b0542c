"""A table and a selection -> a page that explains both, and whether random does as well."""

from .page import build_report, describe_selection

__all__ = ["build_report", "describe_selection"]
