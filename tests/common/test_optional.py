"""Whoever lacks a library that a call needs is told what to install."""

import sys

import pytest

from specgd_common.optional import needed


def test_what_is_there_is_returned() -> None:
    assert needed("json", "data") is sys.modules["json"]


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(ImportError, match=r'needs pyarrow: pip install "torch-specgd\[data\]"'):
        needed("pyarrow.parquet", "data")
