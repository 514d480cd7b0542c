"""Fused weights that are known by their names and shapes alone, as files know them."""

import pytest

from specgd_common.fused_in_files import split_by_name


@pytest.mark.parametrize("module", ["qkv", "c_attn", "qkv_proj", "to_qkv", "Wqkv", "in_proj"])
def test_query_key_value_by_name(module: str) -> None:
    """Every usual name of stacked q, k and v is one of the list, in either storage order."""
    assert split_by_name(f"h.0.attn.{module}.weight", (24, 8)) == (0, (8, 8, 8))
    assert split_by_name(f"{module}.weight", (8, 24), stored_in_out=True) == (1, (8, 8, 8))
    assert split_by_name(f"attn.{module}.weight", (16, 8)) is None  # grouped heads: not thirds
    assert split_by_name(f"attn.{module}.bias", (24,)) is None


@pytest.mark.parametrize(
    ("name", "shape", "cut"),
    [
        ("attn.in_proj_weight", (24, 8), (0, (8, 8, 8))),
        ("mlp.gate_up_proj.weight", (16, 8), (0, (8, 8))),
        ("mlp.experts.gate_up_proj", (4, 16, 8), (1, (8, 8))),
        ("lstm.weight_hh_l0", (32, 8), (0, (8,) * 4)),
        ("gru.weight_hh_l0_reverse", (24, 8), (0, (8,) * 3)),
        ("rnn.weight_hh_l0", (8, 8), None),
        ("mlp.gate_up_proj.weight", (15, 8), None),
        ("mlp.experts.gate_up_proj_bias", (4, 16), None),
        ("attn.q_proj.weight", (24, 8), None),
        ("weight", (24, 8), None),
    ],
)
def test_cut_by_name(
    name: str, shape: tuple[int, ...], cut: tuple[int, tuple[int, ...]] | None
) -> None:
    """A cut is told only where name and shape leave one reading."""
    assert split_by_name(name, shape) == cut


def test_stored_in_out_stacks() -> None:
    """Experts stored (in, out) are cut along their last dimension."""
    assert split_by_name("gate_up_proj", (4, 8, 16), stored_in_out=True) == (2, (8, 8))
