"""WarmStart inside the training loops of others; their packages are imported on use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

# Where the state lies in the Trainer's and in Lightning's checkpoints.
KEY = "WarmStart"


def hf_callback(warm: Any) -> Any:
    """Return the callback for ``transformers.Trainer``; its state lies in ``trainer_state.json``.

    Args:
        warm: A ``WarmStart``, asked when training begins and at each epoch.
    """
    from transformers import TrainerCallback

    class WarmStartCallback(TrainerCallback):
        """Loads the state, shrinks if the data set has grown, notes the state."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Not an ExportableState: those are restored only where an argument asks for it, and a
            # run that resumes from a checkpoint without them fails when it saves.
            if KEY in state.stateful_callbacks:
                warm.load_state_dict(state.stateful_callbacks[KEY])
            warm.folder = warm.folder or Path(args.output_dir)
            self.on_epoch_begin(args, state, control, **kwargs)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            warm.shrink_if_grown(kwargs["model"], kwargs["train_dataloader"], kwargs["optimizer"])
            state.stateful_callbacks[KEY] = warm.state_dict()

    return WarmStartCallback()


def lightning_callback(warm: Any) -> Any:
    """Return the callback for ``lightning.Trainer``; its state lies in Lightning's checkpoints.

    Args:
        warm: A ``WarmStart``, asked when training begins and at each epoch.
    """
    from lightning.pytorch import Callback

    class WarmStartCallback(Callback):
        """Shrinks if the data set has grown."""

        state_key = KEY

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            folder = getattr(trainer.checkpoint_callback, "dirpath", None)
            warm.folder = warm.folder or Path(folder or trainer.default_root_dir)
            self.on_train_epoch_start(trainer, pl_module)

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            own = warm.forward
            warm.forward = own or _training_step(trainer, pl_module)
            try:
                warm.shrink_if_grown(
                    pl_module, trainer.train_dataloader, _together(trainer.optimizers)
                )
            finally:
                warm.forward = own

        def state_dict(self) -> dict[str, Any]:
            return warm.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            warm.load_state_dict(state_dict)

    return WarmStartCallback()


def _training_step(trainer: Any, pl_module: Any) -> Any:
    """Return the module's own loss, as a function that leaves no trace in logs and metrics."""

    def forward(module: nn.Module, batch: Any) -> Tensor:
        if not pl_module.automatic_optimization:
            raise ValueError(
                "training_step takes steps itself under manual optimization: give "
                "WarmStart(forward=lambda module, batch: loss)"
            )
        with _silent(pl_module), trainer.precision_plugin.forward_context():
            out = pl_module.training_step(batch, 0)
        return out["loss"] if isinstance(out, dict) else out

    return forward


@contextmanager
def _silent(pl_module: Any) -> Iterator[None]:
    """Swallow what a step logs, and forget what its metrics have counted."""
    pl_module.log = pl_module.log_dict = lambda *_, **__: None
    try:
        yield
    finally:
        del pl_module.log, pl_module.log_dict
        for child in pl_module.modules():
            if callable(getattr(child, "compute", None)) and callable(
                getattr(child, "reset", None)
            ):
                child.reset()


class _Together:
    """Several optimizers, as one that holds all parameters."""

    def __init__(self, optimizers: list[Any]) -> None:
        self.param_groups = [group for o in optimizers for group in o.param_groups]
        self.state = self
        self._states = [o.state for o in optimizers]

    def get(self, parameter: Tensor, default: Any = None) -> Any:
        return next((s[parameter] for s in self._states if parameter in s), default)

    def pop(self, parameter: Tensor, default: Any = None) -> Any:
        return [s.pop(parameter, default) for s in self._states]


def _together(optimizers: list[Any]) -> Any:
    if len(optimizers) < 2:
        return optimizers[0] if optimizers else None
    return _Together(optimizers)
