"""Names by which adapters' factors are known."""

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
