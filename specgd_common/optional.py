"""Libraries that only some calls need: the error names what to install."""

from importlib import import_module
from types import ModuleType
from typing import Any


def needed(module: str, extra: str | None) -> Any:
    """Import an optional library.

    Args:
        module: Its dotted name.
        extra: The extra of this distribution that brings it; None where no extra does.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed, naming the extra or the package.

    Example:
        >>> needed("math", "data").sqrt(4.0)
        2.0
    """
    try:
        found: ModuleType = import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        # What is installed and broken says by itself what is wrong with it.
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        what = package if extra is None else f'"torch-specgd[{extra}]"'
        raise ImportError(f"this call needs {package}: pip install {what}", name=package) from error
    return found
