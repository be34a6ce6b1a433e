"""Which of the paper's two measurements is computed, with its options; what every engine is asked for."""

from dataclasses import dataclass

from gaia_fast.errors import ArgumentError
from gaia_fast.options import Fusion, Measure, Statistic


@dataclass(frozen=True)
class Method:
    """One measurement of the paper and its options.

    Attributes:
        name: "gaia-z" (zero-deflation, Eq. 10) or "gaia-a" (channel-wise average, Eq. 8, 9 and 11).
        fusion: for GAIA-A, the rows of Table 3: "division" (inner / output), "inner" (d Phi / dA alone), "output"
            (1 / the output component alone: the component itself falls on OOD images, the score must rise), "top1"
            (gradient of the top-1 logit, no log-softmax, nothing divided).
        statistic: for GAIA-A, "abs_mean" (|mean of h|, Eq. 11) or "mean_abs" (mean of |h|).
        p: order of the norm that aggregates Lambda (Eq. 12 and Fig. 4); 2 is the paper's choice.

    Raises:
        ArgumentError: an option that does not exist.
    """

    name: str
    fusion: str = Fusion.DIVISION
    statistic: str = Statistic.ABS_MEAN
    p: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", Measure.parse(self.name, "method"))
        object.__setattr__(self, "fusion", Fusion.parse(self.fusion, "fusion"))
        object.__setattr__(self, "statistic", Statistic.parse(self.statistic, "statistic"))
        if not isinstance(self.p, (int, float)) or not self.p >= 1:
            raise ArgumentError(f"p={self.p!r} gives no norm; it must be a number of at least 1")

    @property
    def needs_output_component(self) -> bool:
        return self.name == Measure.GAIA_A and self.fusion in (Fusion.DIVISION, Fusion.OUTPUT)

    @property
    def needs_inner_component(self) -> bool:
        """Whether d Phi / dA is taken, so that the head must be known."""
        return self.name == Measure.GAIA_A and self.fusion in (Fusion.DIVISION, Fusion.INNER)

    @property
    def needs_head(self) -> bool:
        return self.needs_inner_component or self.needs_output_component

    @property
    def needs_maps(self) -> bool:
        """Whether the gradient at the inspected maps is taken at all."""
        return not (self.name == Measure.GAIA_A and self.fusion == Fusion.OUTPUT)
