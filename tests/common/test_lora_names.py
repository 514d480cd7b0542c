"""Names of adapters' factors, as PEFT, loralib, torchtune and others give them."""

import pytest

from specgd_common.lora_names import lora_partner, lora_place, lora_role


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.q_proj.lora_A.default.weight", ("a.q_proj", "default", "a")),
        ("a.q_proj.lora_B.other", ("a.q_proj", "other", "b")),
        ("emb.lora_embedding_B.default", ("emb", "default", "b")),
        ("q.lora_A", ("q", "", "a")),
        ("q.lora_b.weight", ("q", "", "b")),
        ("q.lora_down.weight", ("q", "", "a")),
        ("lora_up.weight", ("", "", "b")),
        ("q.lora_B.default.bias", None),
        ("q.lora_A.default.inner.weight", None),
        ("q.lora_magnitude_vector.default.weight", None),
        ("q.weight", None),
    ],
)
def test_factors_are_told_apart(name: str, place: tuple[str, str, str] | None) -> None:
    """Module, adapter and role: what pairs two factors."""
    assert lora_place(name) == place
    if place is not None:
        assert lora_role(name) == place[2]
        if place[2] == "b":
            assert lora_place(lora_partner(name)) == (*place[:2], "a")
