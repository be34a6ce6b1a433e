import torch
from torch.nn import functional as F

from gaia_fast.baselines.exgrad import exgrad


def test_is_the_expected_norm_of_the_gradient() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 4).double()
    features = torch.randn(5, 6, dtype=torch.float64)
    expected = []
    for each in features:
        logits = head(each)
        total = 0.0
        for label, p in enumerate(logits.softmax(0).tolist()):
            (gradient,) = torch.autograd.grad(
                F.cross_entropy(logits[None], torch.tensor([label])), head.weight, retain_graph=True
            )
            total += p * float(gradient.abs().sum())
        expected.append(total)
    with torch.no_grad():
        found = exgrad(head(features), features)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
