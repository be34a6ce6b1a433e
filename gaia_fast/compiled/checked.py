"""Checks of images, results and the model's memory that end a program, where a device runs it in one launch."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gaia_fast.fingerprint import Fingerprint
from gaia_fast.ops import soundness


@dataclass(frozen=True)
class Checks:
    """What is asked of every batch, on the device: nothing here waits for it.

    Attributes:
        outputs: the names of what the program gives.
        state: of the model, when it was captured.
    """

    outputs: tuple[str, ...]
    state: Fingerprint

    def before(self, x: Tensor) -> Tensor:
        """Returns (N,) bools: which images are finite; none where the model's memory holds something else."""
        same = self.state.same_bytes_on(x.device)
        finite = soundness.finite_images(x)
        return finite if same is True else finite & same

    def after(self, outputs: Sequence[Tensor]) -> Tensor:
        """Returns (N,) bools: which images' results mean something."""
        found = dict(zip(self.outputs, outputs, strict=True))
        return soundness.sound_images(found["logits"], found["score"], found.get("live"), found.get("component"))
