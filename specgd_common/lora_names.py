"""Names by which adapters' factors are known."""

# PEFT: q.lora_A.default.weight, emb.lora_embedding_A.default; loralib: q.lora_A; torchtune:
# q.lora_a.weight; others: q.lora_down.weight.
_LORA = {
    "lora_a": "a", "lora_embedding_a": "a", "lora_down": "a",
    "lora_b": "b", "lora_embedding_b": "b", "lora_up": "b",
}  # fmt: skip


def lora_role(name: str) -> str:
    """Return "a", "b" or "magnitude" for adapter factors by their usual names, else "".

    Example:
        >>> lora_role("layers.0.q_proj.lora_B.default.weight")
        'b'
    """
    for part in name.lower().split("."):
        if part in _LORA or part.startswith("lora_magnitude"):
            return _LORA.get(part, "magnitude")
    return ""


def lora_partner(name: str) -> str:
    """Return the name of the A factor that belongs to a B factor."""
    parts = [
        {"lora_up": "lora_down"}.get(p, p.replace("_B", "_A").replace("_b", "_a"))
        if p.lower() in _LORA
        else p
        for p in name.split(".")
    ]
    return ".".join(parts)


def lora_place(name: str) -> tuple[str, str, str] | None:
    """Return the adapted module, the adapter ("" where it has no name) and the role of a factor.

    Biases beside factors, magnitudes and other parameters are none.

    Example:
        >>> lora_place("layers.0.q_proj.lora_B.default.weight")
        ('layers.0.q_proj', 'default', 'b')
    """
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.lower() in _LORA), None)
    if at is None:
        return None
    rest = parts[at + 1 :]
    if rest[-1:] == ["weight"]:
        rest.pop()
    if len(rest) > 1 or rest == ["bias"]:
        return None
    return ".".join(parts[:at]), "".join(rest), _LORA[parts[at].lower()]
