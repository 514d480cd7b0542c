"""SpectrumTracker inside the training loops of others; their packages are imported on use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tracker import SpectrumTracker


def hf_callback(tracker: "SpectrumTracker") -> Any:
    """Build the callback for ``transformers.Trainer(callbacks=[...])``.

    Args:
        tracker: Updated after every optimizer step, with the trainer's step number.

    Returns:
        A ``transformers.TrainerCallback``.
    """
    from transformers import TrainerCallback

    class SpectrumCallback(TrainerCallback):
        """Forwards the trainer's steps."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = kwargs.get("optimizer")
            # Accelerate wraps it, and a wrapper's groups are the optimizer's own.
            tracker.optimizer = optimizer if tracker.optimizer is None else tracker.optimizer
            tracker.update(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker.update(state.global_step)

    return SpectrumCallback()


def lightning_callback(tracker: "SpectrumTracker") -> Any:
    """Build the callback for ``lightning.Trainer(callbacks=[...])``.

    Args:
        tracker: Updated after every optimizer step; its records travel in Lightning's checkpoints.

    Returns:
        A ``lightning.pytorch.Callback``.
    """
    from lightning.pytorch import Callback

    class SpectrumCallback(Callback):
        """Forwards the trainer's steps, and its checkpoints."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if tracker.optimizer is None and trainer.optimizers:
                tracker.optimizer = trainer.optimizers[0]
            tracker.update(trainer.global_step)

        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            # With gradient accumulation several batches share a step; record() takes it once.
            tracker.update(trainer.global_step)

        def state_dict(self) -> dict[str, Any]:
            return tracker.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            tracker.load_state_dict(state_dict)

    return SpectrumCallback()
