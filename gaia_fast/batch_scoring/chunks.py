"""Images scored chunk by chunk, each for itself: here, or in another process."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gaia_fast.batch_scoring.rows import Column, Row, rows
from gaia_fast.data import ImageSource
from gaia_fast.evaluation.image_sets import Detectors, scored_batches

# Of these a run that is killed loses no more than one for each worker; a file is written for each.
IMAGES_IN_A_CHUNK = 512


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
        rows: of those that could be read, in order.
        unreadable: (name, reason) of each that could not.
    """

    rows: list[Row]
    unreadable: list[tuple[str, str]] = field(default_factory=list)


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

    def batches(self, source: ImageSource) -> Iterator[list[Row]]:
        """The rows of the readable images of a source, batch by batch; GaiaError as `scored_batches`."""
        for batch in scored_batches(self.detectors, source, self.batch_size):
            yield rows(batch, self.columns)

    def score(self, source: ImageSource, advance: Callable[[int], None] = lambda images: None) -> Part:
        """All images of a source; `advance` is called with each number of images done."""
        found: list[Row] = []
        for batch in self.batches(source):
            found += batch
            advance(len(batch))
        return Part(found, source.unreadable)


def score_chunks(
    scorer: ChunkScorer, source: ImageSource, chunks: Iterable[Chunk], advance: Callable[[int], None]
) -> Iterator[tuple[Chunk, Part]]:
    """Scores chunks of a source in this process, one after the other."""
    for chunk in chunks:
        yield chunk, scorer.score(source.part(*chunk), advance)
