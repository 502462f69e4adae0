"""One call on models that give more than a tensor: segmentation and detection."""

import pytest
import torch
from networks import error, randomize

import lrp
from lrp.rules import Epsilon

models = pytest.importorskip("torchvision").models
EXACT = lrp.Composite({family: Epsilon(0.0) for family in ("pool", "sum", "norm")}, default=Epsilon(0.0))


def test_a_region_of_a_segmentation() -> None:
    model = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=4)
    model = randomize(model).eval().requires_grad_(False)
    x, mask = torch.randn(1, 3, 48, 48, dtype=torch.float64), torch.rand(48, 48) > 0.7
    e = lrp.explain(model, x, lrp.Region(2, mask), rule=EXACT)
    y = model(x.requires_grad_())["out"]
    weights = torch.zeros_like(y)
    weights[:, 2] = mask.double()
    assert torch.equal(e.output, y)
    assert error(e.relevance, x.detach() * torch.autograd.grad(y, x, weights)[0]) < 1e-6
    assert e.initial_relevance.item() == pytest.approx(float((y * weights).sum().detach()))


@pytest.mark.filterwarnings("ignore::lrp.RelevanceWarning")  # scores are a softmax
def test_a_box_of_a_detector() -> None:
    torch.manual_seed(0)
    model = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    model, x = model.eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
    for of_box in (lambda found: found["scores"][0], lambda found: found["boxes"][0, 2]):
        e = lrp.explain(model, x, [of_box], rule="epsilon_plus")
        assert torch.equal(e.output[0]["boxes"], plain[0]["boxes"])
        assert e.initial_relevance.item() == float(of_box(plain[0]))
        assert e.relevance.shape == x.shape
        assert e.relevance.isfinite().all()
