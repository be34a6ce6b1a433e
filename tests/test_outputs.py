import copy
import pickle

import torch

from gaia_fast import GaiaOutput, GaiaScores


def outputs() -> tuple[GaiaOutput, GaiaScores]:
    logits, score = torch.rand(3, 5), torch.tensor([1.0, 2.0, 3.0])
    one = GaiaOutput(logits, score, torch.rand(3, 2, 4), 2.0)
    several = GaiaScores(logits, {"gaia-z": score, "msp": -score}, {"gaia-z": torch.rand(3, 2, 4)}, {"gaia-z": 1.0})
    return one, several


def test_an_output_is_a_pair_with_more_beside_it() -> None:
    one, several = outputs()
    logits, score = one
    assert logits is one.logits
    assert score is one[1] is one.score
    assert len(one) == len(several) == 2
    assert several == (several.logits, several.scores)


def test_decisions_where_thresholds_are_known() -> None:
    one, several = outputs()
    assert one.is_ood is not None
    assert one.is_ood.tolist() == [False, False, True]
    assert GaiaOutput(one.logits, one.score).is_ood is None
    assert {name: found.tolist() for name, found in several.is_ood.items()} == {"gaia-z": [False, True, True]}


def test_copies_keep_what_is_beside_the_pair() -> None:
    for each in outputs():
        for made in (copy.copy(each), copy.deepcopy(each), pickle.loads(pickle.dumps(each)), each._replace()):
            assert type(made) is type(each)
            assert vars(made).keys() == vars(each).keys()
    one, several = outputs()
    assert one._replace(score=one.score * 2).threshold == 2.0
    assert one._replace(threshold=None).is_ood is None
    assert several._replace(thresholds={}).is_ood == {}
    assert one._replace(score=one.score * 2).matrix is one.matrix
