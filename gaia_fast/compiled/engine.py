"""The compiled engine: programs made of a model, kept while it is what it was, and run."""

import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gaia_fast import checks, hooks
from gaia_fast.compiled import modes
from gaia_fast.compiled.export import check_format, computes_in, export
from gaia_fast.compiled.loading import load
from gaia_fast.compiled.preparation import Prepared, Subject, prepare
from gaia_fast.compiled.verification import Verifier
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, GaiaError, ModelError, first_line
from gaia_fast.layers import Head, InspectedLayer
from gaia_fast.measurement import Measurement
from gaia_fast.method import Method
from gaia_fast.ops import soundness
from gaia_fast.recent import Recent
from gaia_fast.survey import Passes

Key = tuple[torch.Size, torch.dtype, torch.device]

# One program holds the model's weights once more: sizes of images without end would fill the memory.
MOST_PROGRAMS = 16


class _ChangedError(Exception):
    """The model is not what the program was made of."""


class Compiled:
    """Prepares programs of one model and method, keeps them, and runs them.

    Args:
        model, method, layers, asked_for: as in `gaia_fast.hooks.measure`; modules, all of the model's.
        mode: a name of `gaia_fast.compiled.modes.MODES`, or "auto".
        backend, passes: for the images that hooks have to score; see `gaia_fast.hooks.measure`.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: list[nn.Module],
        method: Method,
        layers: list[InspectedLayer],
        asked_for: bool,
        mode: str,
        backend: str,
        passes: Passes,
    ) -> None:
        self.model, self.modules, self.method, self.layers, self.asked_for = model, modules, method, layers, asked_for
        self.mode, self.backend, self.passes = mode, backend, passes
        self._prepared: Recent[Key, Prepared] = Recent(MOST_PROGRAMS)
        self._lock = threading.Lock()

    @property
    def kept(self) -> str:
        """How many programs there are, and at most."""
        return f"{len(self._prepared)} of at most {self._prepared.most}, one a size of images"

    def find(self, x: Tensor) -> Prepared | None:
        """The program for images like `x`, unless there is none or the model has changed since."""
        found = self._prepared.get(_key(x))
        return found if found is not None and found.state.holds() else None

    def prepare(self, x: Tensor, head: Head | None) -> Prepared:
        """Makes the program for images like `x`, and compares it with the reference on them.

        Raises:
            ModelError: the model cannot be compiled, or what came out does not agree with the reference.
            BackendError: the mode cannot run here.
        """
        with self._lock:
            found = self.find(x)
            if found is None:
                found = prepare(self._subject(head), x, self.mode)
                self._prepared.put(_key(x), found)
            elif isinstance(found.runner, modes.FixedSizes):
                found.runner.prepare(x.shape[0])
            return found

    def measure_at_once(self, x: Tensor) -> Measurement | None:
        """Scores one batch without a look at the model before: at what it is like the calling thread looks meanwhile.

        Returns:
            None where there is no program for images like `x`, or the model has changed since it was made.

        Raises:
            As `measure`.
        """
        prepared = self._prepared.get(_key(x))
        try:
            return None if prepared is None else self.measure(x, prepared, look=True)
        except _ChangedError:
            return None

    def measure(self, x: Tensor, prepared: Prepared, look: bool = False) -> Measurement:
        """Scores one batch with a program for such images.

        Images that violate a precondition of the sparsity analysis are scored again by hooks.

        Args:
            look: whether to see, while the program runs, if the model has changed since it was made; then raises
                _ChangedError.

        Raises:
            InputError, NonFiniteError: pixels, logits, a score or an output component that are not finite, or no number
                to divide by.
        """
        # Asked for first: with one image, entering what is in force already takes longer than many a kernel.
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # the program's dtypes are decided
                return self.measure(x, prepared, look)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.measure(x, prepared, look)
        plain = x.detach().as_subclass(Tensor)
        fine: list[bool | Tensor] = []

        def meanwhile() -> None:
            if look:
                same = prepared.state.holds(but_for=plain.device if prepared.checked else None)
                if same is False:
                    raise _ChangedError
                fine.append(same)
            if not prepared.checked:
                fine.append(soundness.all_finite(plain))

        try:
            outputs = prepared.runner(plain.to(prepared.dtype), meanwhile)
        except Exception as error:
            # A model that has changed explains whatever the program ran into.
            if look and not prepared.state.holds():
                raise _ChangedError from None
            if isinstance(error, (GaiaError, MemoryError, torch.OutOfMemoryError)):
                raise
            raise ModelError(
                f"the program of {type(self.model).__name__} in mode {prepared.mode.name!r} failed on images of shape "
                f"{tuple(x.shape)}: {first_line(error)}; engine='hooks' scores it as it is"
            ) from error
        if prepared.checked:
            fine.append(outputs[-1].all())
            outputs = outputs[:-1]
        found = dict(zip(prepared.program.outputs, outputs, strict=True))
        found["logits"] = found["logits"].to(plain.dtype)
        component = found.get("component")
        if not prepared.checked:
            fine.append(soundness.sound(found["logits"], found["score"], found.get("preconditions"), component))
        if not soundness.together(fine):
            if look and not prepared.state.holds():
                raise _ChangedError
            self._look_closer(found, plain, prepared.head)
        return Measurement(found["logits"], found["score"], prepared.program.maps, found["packed"], component)

    def _look_closer(self, found: dict[str, Tensor], x: Tensor, head: Head | None) -> None:
        """Raises what `measure` does; has hooks score the images that the program cannot."""
        checks.check_pixels(x)
        checks.check_logits(found["logits"])
        preconditions, component = found.get("preconditions"), found.get("component")
        if preconditions is not None and not (preconditions > 0).all():
            violating = (~(preconditions > 0)).any(1).nonzero().flatten()
            exact = hooks.measure(
                self.model, x[violating], self.method, self.layers, self.asked_for, head, self.backend, self.passes
            )
            found["score"] = found["score"].index_copy(0, violating, exact.score)
            found["packed"] = found["packed"].index_copy(0, violating, exact.packed.to(found["packed"]))
        if component is not None:
            checks.check_output_component(component, found["logits"])
        checks.check_score(found["score"])

    def export(self, path: Path, x: Tensor, head: Head | None, metadata: Mapping[str, str]) -> None:
        """Writes a program for images like `x` to a file; see `gaia_fast.compiled.export`.

        Before it takes its name the file is opened and compared with the reference, on other images than `x`.

        Raises:
            CompilationError: the model cannot be compiled, or the file does not run, or not right.
        """
        check_format(path)
        subject = self._subject(head)
        prepared = prepare(subject, x, "eager", thorough=True, dtype=computes_in(path, x.dtype))
        plain = x.detach().as_subclass(Tensor).contiguous()
        export(
            prepared.program,
            path,
            plain,
            prepared.dynamic,
            metadata,
            lambda written: _check_file(written, path, subject.verifier(), plain, prepared.dynamic),
        )

    def _subject(self, head: Head | None) -> Subject:
        return Subject(self.model, self.modules, self.layers, self.asked_for, head, self.method)


def _key(x: Tensor) -> Key:
    return x.shape[1:], x.dtype, x.device


@torch.inference_mode(False)
@torch.no_grad()
def _check_file(written: Path, path: Path, verifier: Verifier, x: Tensor, dynamic: bool) -> None:
    """Raises CompilationError unless a file runs, and agrees with the reference on other images than `x`."""
    try:
        run = load(written)
        outputs = [
            (images, own, run(images))
            for images, own in verifier.other_batches(x, verifier.reference(x))
            if dynamic or images.shape[0] == x.shape[0]
        ]
    except (ArgumentError, BackendError) as error:
        raise CompilationError(
            f"{path} is not written, since it would not run on {x.dtype} images: {first_line(error)}. Export the model "
            "in float32, model.float(), or to the other format"
        ) from error
    for images, own, (logits, score) in outputs:
        if (logits.dtype, score.dtype) != (x.dtype, torch.float32):
            raise CompilationError(
                f"{path} is not written, since its logits would be in {logits.dtype} and its score in {score.dtype}, "
                f"not in {x.dtype} and torch.float32; use the other format, or engine='hooks' in Python"
            )
        found = {"logits": logits, "score": score, "preconditions": (~score.isnan()).unsqueeze(1)}
        off, allowed = verifier.error(found, images, own)
        if not off <= allowed:
            raise CompilationError(
                f"{path} is not written, since it would be off by {off:.2g} from the reference, more than "
                f"{allowed:.2g}; use the other format, or engine='hooks' in Python"
            )
