"""What a SpectrumTracker's records hold, and whether those of a checkpoint do."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import integer

# None stands for what does not apply: no adapter, no target, no optimizer.
_NUMBERS = ("stable_rank", "effective_rank", "sigma_ratio", "scale")
_OPTIONAL = ("balance", "rate")
_LISTS = ("singular_values", "modes")
KEYS = ("step", "name", "kind", *_NUMBERS, *_OPTIONAL, *_LISTS)


def checked_records(state: Any) -> list[dict[str, Any]]:
    """Return the records of a tracker's state dict, new ones that share nothing with it.

    Args:
        state: What ``SpectrumTracker.state_dict()`` returned.

    Raises:
        ValueError: If a key is missing or unknown, or a value cannot be one.
    """
    if not isinstance(state, Mapping) or set(state) != {"records", "next_step"}:
        found = sorted(map(str, state)) if isinstance(state, Mapping) else repr(state)[:80]
        raise ValueError(f"the state must have the keys 'records' and 'next_step', got {found}")
    integer(0)("next_step", state["next_step"])
    if not isinstance(state["records"], (list, tuple)):
        raise ValueError(f"records must be a list, got {state['records']!r:.80}")
    return [_checked(record, f"records[{i}]") for i, record in enumerate(state["records"])]


def scalars(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the numbers of some records by name, as loggers take them.

    Args:
        records: Of a tracker, all of one step.

    Example:
        >>> record = {"name": "w[1]", "singular_values": [2.0, 1.0], "stable_rank": 1.25,
        ...           "effective_rank": 1.9, "sigma_ratio": 0.5, "balance": None, "rate": 0.1}
        >>> list(scalars([record]))[:2]
        ['spectrum/w.1/sigma_max', 'spectrum/w.1/sigma_min']
    """
    numbers: dict[str, float] = {}
    for record in records:
        # MLflow takes no brackets.
        place = "spectrum/" + record["name"].replace("[", ".").replace("]", "")
        numbers[f"{place}/sigma_max"] = record["singular_values"][0]
        numbers[f"{place}/sigma_min"] = record["singular_values"][-1]
        for key in ("stable_rank", "effective_rank", "sigma_ratio", "balance", "rate"):
            if record[key] is not None:
                numbers[f"{place}/{key}"] = record[key]
    return numbers


def _checked(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, Mapping) or set(record) != set(KEYS):
        found = sorted(map(str, record)) if isinstance(record, Mapping) else repr(record)[:80]
        raise ValueError(f"{where} must have the keys {sorted(KEYS)}, got {found}")
    integer(0)(f"{where}['step']", record["step"])
    if not isinstance(record["name"], str) or record["kind"] not in ("lora", "weight"):
        raise ValueError(
            f"{where} must be of a named 'lora' or 'weight', got {record['name']!r:.80} of "
            f"{record['kind']!r:.80}"
        )
    for key in (*_NUMBERS, *_OPTIONAL):
        value = record[key]
        if not _is_number(value) and not (value is None and key in _OPTIONAL):
            raise ValueError(f"{where}[{key!r}] must be a number, got {value!r:.80}")
    for key in _LISTS:
        values = record[key]
        if values is None and key == "modes":
            continue
        if not isinstance(values, (list, tuple)) or not all(map(_is_number, values)):
            raise ValueError(f"{where}[{key!r}] must be a list of numbers, got {values!r:.80}")
    if any(x < 0 for x in record["singular_values"]) or not record["singular_values"]:
        raise ValueError(f"{where}['singular_values'] must be at least one number of at least 0")
    return {
        key: list(record[key]) if key in _LISTS and record[key] else record[key] for key in KEYS
    }


def _is_number(value: Any) -> bool:
    # Of a model that diverged no number is finite, and its record says so.
    return isinstance(value, (int, float)) and not isinstance(value, bool)
