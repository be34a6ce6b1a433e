import pytest

from gaia_fast.baselines import BASELINES
from gaia_fast.reproduction import paper
from gaia_fast.reproduction.networks import NETWORKS
from gaia_fast.reproduction.paper import Figures

# The averages that the paper prints: FPR95 and AUROC.
AVERAGES = [
    (paper.TABLE_1["resnet34_cifar10"], "gaia-z", 3.26, 99.28),
    (paper.TABLE_1["resnet34_cifar10"], "rankfeat", 62.46, 83.62),
    (paper.TABLE_1["wrn_40_2_cifar10"], "msp", 46.26, 89.04),
    (paper.TABLE_1["wrn_40_2_cifar10"], "gaia-a", 18.78, 96.55),
    (paper.TABLE_1["resnet34_cifar100"], "react", 74.51, 81.76),
    (paper.TABLE_1["wrn_40_2_cifar100"], "knn", 66.13, 80.39),
    (paper.TABLE_2, "ash", 32.18, 93.43),
    (paper.TABLE_2, "gaia-z", 52.92, 86.89),
    (paper.TABLE_3, "output", 67.02, 84.46),
]


@pytest.mark.parametrize(("figures", "row", "fpr95", "auroc"), AVERAGES)
def test_averages_are_the_papers(figures: Figures, row: str, fpr95: float, auroc: float) -> None:
    found = figures[row].values()
    assert sum(each.fpr95 or 0 for each in found) / len(found) == pytest.approx(fpr95, abs=0.011)
    assert sum(each.auroc for each in found) / len(found) == pytest.approx(auroc, abs=0.011)


def test_every_method_and_network_is_known() -> None:
    methods = {*BASELINES, "gaia-z", "gaia-a"}
    for figures in (*paper.TABLE_1.values(), paper.TABLE_2, paper.TABLE_5):
        assert set(figures) <= methods
    assert set(paper.TABLE_1) | set(paper.TABLE_4) <= set(NETWORKS)
    assert all(len(figures) == 11 for figures in (*paper.TABLE_1.values(), paper.TABLE_2))
    assert all(len(figures) == 12 for figures in paper.TABLE_4.values())
