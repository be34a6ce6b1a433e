"""The paper's tables as descriptions: which rows, which sets, and the paper's own figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gaia_fast.baselines import BASELINES
from gaia_fast.evaluation.combinations import COMBINATIONS
from gaia_fast.evaluation.combinations import title as title_of
from gaia_fast.inspection.stages import stages
from gaia_fast.measurement import FeatureMap
from gaia_fast.options import FusionOption
from gaia_fast.reproduction import paper
from gaia_fast.reproduction.networks import Network
from gaia_fast.reproduction.paper import Figure
from gaia_fast.reproduction.scoring import GaiaScore

_GAIA = {"gaia-z": "GAIA-Z", "gaia-a": "GAIA-A"}
_PAPERS = ("msp", "odin", "energy", "mahalanobis", "react", "gradnorm", "knn", "rankfeat", "ash")
_GRADIENT = ("lee-alregib", "gradnorm", "exgrad")
_FUSIONS: dict[FusionOption, str] = {
    "top1": "top-1 label alone",
    "output": "output component alone",
    "inner": "inner component alone",
    "division": "both, divided",
}


@dataclass(frozen=True)
class Combined:
    """Several scores made into one, which the paper does not do.

    Attributes:
        combination: a name in `COMBINATIONS`.
        of: the scores by method.
    """

    combination: str
    of: Mapping[str, GaiaScore]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        key: as in results.
        title: in the table.
        score: a baseline's name, one of GAIA's scores, or a combination of these.
        paper: the paper's figures by OOD set (or for the average alone).
    """

    key: str
    title: str
    score: str | GaiaScore | Combined
    paper: Mapping[str, Figure]


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: as in the command.
        title: what it shows.
        networks: names of those that it can be made for, the paper's own first.
        default: names of those that it is made for unless others are asked for.
        rows: of a network and its inspected maps.
        averages: whether only averages over the sets are printed.
        fitted: whether methods are among the rows that are fitted on images.
        speed: whether images a second are measured, one by one and in batches.
    """

    name: str
    title: str
    networks: Sequence[str]
    default: Sequence[str]
    rows: Callable[[Network, Sequence[FeatureMap]], list[Row]]
    averages: bool = False
    fitted: bool = False
    speed: bool = False


def _main_rows(figures: Callable[[Network], paper.Figures]) -> Callable[[Network, Sequence[FeatureMap]], list[Row]]:
    def rows(network: Network, maps: Sequence[FeatureMap]) -> list[Row]:
        of = figures(network)
        found = [Row(name, BASELINES[name].title, name, of.get(name, {})) for name in _PAPERS]
        for method, title in _GAIA.items():
            chosen = network.gaia_layers[method]
            layers = "all layers" if chosen is None else _words(chosen)
            found.append(Row(method, f"{title}, {layers}", GaiaScore(method, layers=chosen), of.get(method, {})))
        later = [name for name in BASELINES if name not in _PAPERS]
        found += [Row(name, BASELINES[name].title, name, of.get(name, {})) for name in later]
        # What another choice of layers does, beside the paper's.
        for method, title in _GAIA.items():
            other = None if network.gaia_layers[method] is not None else ("last_stage",)
            key = f"{method}, {'all layers' if other is None else _words(other)}"
            found.append(Row(key, f"{title}, {_words(other)}", GaiaScore(method, layers=other), {}))
        both = {method: GaiaScore(method, layers=network.gaia_layers[method]) for method in _GAIA}
        for name in COMBINATIONS:
            words = f"{title_of(name, list(_GAIA.values()))}, not in the paper"
            found.append(Row(name.replace("_", "-"), words[0].upper() + words[1:], Combined(name, both), {}))
        return found

    return rows


def _fusion_rows(network: Network, maps: Sequence[FeatureMap]) -> list[Row]:
    layers = network.gaia_layers["gaia-a"]
    return [
        Row(
            f"gaia-a, {fusion}",
            f"GAIA-A, {title}",
            GaiaScore("gaia-a", fusion, layers),
            paper.TABLE_3[fusion] if _of_bit(network) else {},
        )
        for fusion, title in _FUSIONS.items()
    ]


def blocks_of(network: Network, maps: Sequence[FeatureMap]) -> dict[str, Sequence[str]]:
    """The blocks of a network by name, as layers of a `GaiaScore`: the paper's, or else its stages (maps of one size),
    and from each stage on."""
    if network.blocks:
        return dict(network.blocks)
    sizes = [size for size, _ in stages(maps)]
    found: dict[str, Sequence[str]] = {size: (size,) for size in sizes}
    for start in range(len(sizes) - 2, 0, -1):
        found[f"{sizes[start]} and smaller"] = tuple(sizes[start:])
    return found


def _block_rows(network: Network, maps: Sequence[FeatureMap]) -> list[Row]:
    figures = paper.TABLE_4.get(network.name, {})
    found = []
    for method, title in reversed(_GAIA.items()):
        blocks: dict[str, Sequence[str] | None] = {**blocks_of(network, maps), "all blocks": None}
        for block, layers in blocks.items():
            key = f"{method} {block}"
            found.append(Row(key, f"{title}, {block}", GaiaScore(method, layers=layers), figures.get(key, {})))
    return found


def _gradient_rows(network: Network, maps: Sequence[FeatureMap]) -> list[Row]:
    figures = paper.TABLE_5 if _of_bit(network) else {}
    found = [Row(name, BASELINES[name].title, name, figures.get(name, {})) for name in _GRADIENT]
    for method, title in reversed(_GAIA.items()):
        layers = network.gaia_layers[method]
        found.append(Row(method, title, GaiaScore(method, layers=layers), figures.get(method, {})))
    return found


def _of_bit(network: Network) -> bool:
    """Whether the paper's figures of BiT-S on ImageNet belong beside a network's."""
    return "bit_s_r101x1" in (network.name, network.same_as)


def _words(layers: Sequence[str] | None) -> str:
    if layers is None:
        return "all layers"
    return " and ".join(name.replace("_", " ").replace("body.", "") for name in layers)


_CIFAR = ("resnet34_cifar10", "wrn_40_2_cifar10", "resnet34_cifar100", "wrn_40_2_cifar100")
_IMAGENET = ("bit_s_r101x1", "efficientnet_lite0", "efficientnet_lite2")
_ALL = (*_IMAGENET, *_CIFAR)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "table1",
            "Main results on CIFAR",
            _CIFAR,
            _CIFAR,
            _main_rows(lambda network: paper.TABLE_1[network.name]),
            fitted=True,
        ),
        Table(
            "table2",
            "Main results on ImageNet-1K",
            _IMAGENET,
            _IMAGENET,
            _main_rows(lambda _: paper.TABLE_2),
            fitted=True,
        ),
        Table("table3", "What GAIA-A's fusion does", _ALL, _IMAGENET, _fusion_rows),
        Table("table4", "What different blocks do", _ALL, _ALL, _block_rows, averages=True),
        Table("table5", "Methods that use gradients", _ALL, _IMAGENET, _gradient_rows, speed=True),
    )
}
