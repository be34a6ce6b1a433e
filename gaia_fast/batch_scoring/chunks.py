"""Images scored chunk by chunk, each for itself: here, or in another process."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from gaia_fast.batch_scoring.rows import Column, Row, rows
from gaia_fast.data import Batch, ImageSource
from gaia_fast.errors import DataError, NonFiniteError, first_line
from gaia_fast.evaluation.image_sets import Detectors, scored_batch
from gaia_fast.options import Tune

# Of these a run that is killed loses no more than one for each worker; a file is written for each.
IMAGES_IN_A_CHUNK = 512

# Errors that say nothing of the file that they came with.
_OF_THE_MACHINE = {
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}


class Chunk(NamedTuple):
    """The images of a source from `start` to before `stop`."""

    start: int
    stop: int


def split(images: int, chunk: int) -> list[Chunk]:
    """The chunks, of `chunk` images but for the last one, that so many images are cut into."""
    return [Chunk(start, min(start + chunk, images)) for start in range(0, images, chunk)]


def chunk_size(batch_size: int) -> int:
    """How many images a chunk has: whole batches, so that what goes through the network together stays the same."""
    return max(IMAGES_IN_A_CHUNK // batch_size, 1) * batch_size


@dataclass(frozen=True)
class Part:
    """What was found of some images of a source.

    Attributes:
        rows: of those that could be read and scored, in order.
        unreadable: (name, reason) of each that could not.
    """

    rows: list[Row]
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many images it is of."""
        return len(self.rows) + len(self.unreadable)


class Prepared(NamedTuple):
    """What detectors were prepared for, and how: whoever prepares them so has the same programs."""

    example: Tensor
    tune: Tune


@dataclass(frozen=True)
class ChunkScorer:
    """Scores images into rows. It can be pickled; programs are prepared again where it arrives.

    Attributes:
        detectors: by method, or one of several scores.
        columns: of the rows.
        batch_size: images that go through the network together.
    """

    detectors: Detectors
    columns: tuple[Column, ...]
    batch_size: int

    def parts(self, source: ImageSource) -> Iterator[Part]:
        """What is found of the readable images of a source, batch by batch: where one of them cannot be scored, because
        a logit or score is not finite, it is noted, and the others are scored.

        Raises:
            GaiaError: as `scored_batch`.
        """
        for batch in source.batches(self.batch_size):
            yield self._part(batch)

    def score(self, source: ImageSource, advance: Callable[[int], None] = lambda images: None) -> Part:
        """All images of a source; `advance` is called with each number of images done.

        Raises:
            GaiaError: as `parts`. DataError: images are out of reach, rather than unreadable.
        """
        found = Part([])
        for part in self.parts(source):
            found.rows.extend(part.rows)
            found.unreadable.extend(part.unreadable)
            advance(part.images)
        _check_reached(source)
        advance(len(source.unreadable))
        return Part(found.rows, source.unreadable + found.unreadable)

    def _part(self, batch: Batch) -> Part:
        try:
            return Part(rows(scored_batch(self.detectors, batch), self.columns))
        except NonFiniteError as error:
            if len(batch.names) == 1:
                return Part([], [(batch.names[0], f"it cannot be scored: {first_line(error.__cause__ or error)}")])
        each = [self._part(Batch([name], batch.images[at : at + 1], None)) for at, name in enumerate(batch.names)]
        return Part([row for one in each for row in one.rows], [bad for one in each for bad in one.unreadable])


def _check_reached(source: ImageSource) -> None:
    """Raises DataError where it is the machine's fault that images cannot be read: to note them would be for good.

    That is where several suffer from it, as one alone may lie on a bad block, or link to nowhere; of what may be said
    of a file for a reason of its own, where all do.
    """
    errors = source.errors
    of_machine = [index for index, number in errors.items() if number in _OF_THE_MACHINE]
    gone = list(errors) if len(errors) == len(source) else []
    if max(len(of_machine), len(gone)) > 1:
        first = min(of_machine or gone)
        raise DataError(
            f"{max(len(of_machine), len(gone))} of the images from {source.names[0]} to {source.names[-1]} are out of "
            f"reach, such as {source.names[first]} ({os.strerror(errors[first])}): mend that, and score them again"
        )


def score_chunks(
    scorer: ChunkScorer, source: ImageSource, chunks: Iterable[Chunk], advance: Callable[[int], None]
) -> Iterator[tuple[Chunk, Part]]:
    """Scores chunks of a source in this process, one after the other."""
    for chunk in chunks:
        yield chunk, scorer.score(source.part(*chunk), advance)
