"""An audit adds up, and each of its columns is what an independent computation says."""

import gc
from collections.abc import Callable
from math import isfinite

import pytest
import torch
import torchvision
from networks import UNet, convolutional, images, plain, randomize
from torch import Tensor, nn

import lrp
from lrp.explanation import Audit, Row
from lrp.explanation import audit as auditing
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Rule, WSquare, ZBox, ZPlus

SHARING = {
    "epsilon": Epsilon(0.1),
    "relative": Epsilon(0.25, relative=True),
    "exponent": Epsilon(1e-3, exponent=2),
    "ignore": Epsilon(1e-3, bias="ignore"),
    "distribute": Epsilon(1e-3, bias="distribute"),
    "zplus": ZPlus(),
    "gamma": Gamma(0.25),
    "generalized": Gamma(0.25, generalized=True),
    "alpha2beta1": AlphaBeta(2, 1),
    "absorb": AlphaBeta(2, 1, bias="absorb"),
    "conserve": AlphaBeta(2, 1, conserve=True, bias="absorb"),
    "epsilon_plus_flat": "epsilon_plus_flat",
    "wsquare first": lrp.Composite({"first": WSquare()}, default="zplus"),
    "zbox first": lrp.Composite({"first": ZBox(-3.0, 3.0)}, default="epsilon"),
}
OTHERS = {"gradient": Gradient(), "guided": "guided_backprop", "deconvnet": "deconvnet"}


def resnet() -> nn.Module:
    return randomize(torchvision.models.resnet18(num_classes=3))


def densenet() -> nn.Module:
    return randomize(torchvision.models.densenet121(num_classes=3))


def mobilenet() -> nn.Module:
    return randomize(torchvision.models.mobilenet_v3_small(num_classes=3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (plain, (2, 1, 6, 6)),
    "convolutional": (lambda: convolutional(True), (2, 2, 10, 10)),
    "unet": (UNet, (1, 3, 16, 16)),
    "resnet": (resnet, (1, 3, 32, 32)),
    "densenet": (densenet, (1, 3, 32, 32)),
    "mobilenet": (mobilenet, (1, 3, 32, 32)),
}


def audited(name: str, rule: Rule | str) -> tuple[Audit, lrp.Explanation]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().float().eval()
    e = lrp.explain(model, torch.randn(shape), lambda y: y.flatten(1)[:, 0], rule=rule, form="relevance")
    return e.audit(), e


def absorbed(row: Row) -> float:
    return row.absorbed_by_bias + row.absorbed_by_stabiliser + row.lost - row.created


@pytest.mark.parametrize("rule", [*SHARING, *OTHERS])
@pytest.mark.parametrize("network", NETWORKS)
def test_it_adds_up(network: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the output to the inputs, and no rule that shares out creates or loses anything, in units of sum |R|."""
    sizes: list[tuple[Row, float]] = []
    counts = auditing._counts
    monkeypatch.setattr(auditing, "_counts", lambda row, size: (sizes.append((row, size)), counts(row, size))[1])
    audit, e = audited(network, {**SHARING, **OTHERS}[rule])
    if not isfinite(audit.absolute):  # the classical gamma, whose denominators cross zero
        assert (rule, audit.nonfinite is None) == ("gamma", False)
        return
    size = max(1.0, *(max(abs(row.relevance_out), abs(row.relevance_in)) for row in audit.rows))
    for row in audit.rows:
        assert abs(row.relevance_out - row.relevance_in - absorbed(row)) <= 1e-6 * size, row
    for row, of_row in sizes if rule in SHARING else ():
        assert abs(row.created) + abs(row.lost) <= 1e-5 * of_row, row
    assert abs(audit.started - audit.absolute - sum(map(absorbed, audit.rows))) <= 1e-5 * size
    assert audit.started == pytest.approx(float(e.initial_relevance.sum()), rel=1e-6)
    assert audit.absolute == pytest.approx(float(e.relevance.double().sum()), rel=1e-4, abs=1e-6 * size)
    assert audit.share == audit.absolute / audit.started
    assert audit.nonfinite is None


@pytest.mark.parametrize("network", ["plain", "resnet"])
def test_the_relevance_that_comes_to_a_layer_is_that_which_others_hand_on(network: str) -> None:
    audit, e = audited(network, "zplus")
    names = [row.name for row in audit.rows if row.function == "conv2d"]
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    again = lrp.explain(
        make().float().eval(), torch.randn(shape), lambda y: y.flatten(1)[:, 0], rule="zplus", layers=names
    )
    for row in audit.rows:
        if row.name in names:
            assert row.relevance_out == pytest.approx(float(again.layers[row.name].double().sum()), rel=1e-4, abs=1e-6)
    assert e.form == "relevance"


def layer(rule: Rule, bias: bool = True) -> tuple[Row, Tensor, Tensor, Tensor, Tensor]:
    """The row of a linear layer, its input, weight, bias and the relevance of its outputs."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4, bias=bias).double(), torch.randn(3, 5).double()
    R = torch.randn(3, 4).double()
    e = lrp.explain(model, x, rule=rule, initial_relevance=R)
    (row,) = e.audit().rows
    assert row.relevance_in == pytest.approx(float(e.relevance.sum()))
    assert row.relevance_out == pytest.approx(float(R.sum()))
    b = model.bias.detach() if bias else torch.zeros(4).double()
    return row, x, model.weight.detach(), b, R


def stable(z: Tensor, epsilon: float) -> Tensor:
    return z + epsilon * torch.where(z < 0, -1.0, 1.0)


def test_epsilon_by_hand() -> None:
    row, x, w, b, R = layer(Epsilon(0.3))
    z = x @ w.T + b
    assert row.absorbed_by_bias == pytest.approx(float((R * b / stable(z, 0.3)).sum()))
    assert row.absorbed_by_stabiliser == pytest.approx(float((R * (1 - z / stable(z, 0.3))).sum()))
    assert abs(row.created) < 1e-12


def test_zplus_by_hand() -> None:
    row, x, w, b, R = layer(ZPlus(epsilon=0.3))
    total = x.clamp(min=0) @ w.clamp(min=0).T + x.clamp(max=0) @ w.clamp(max=0).T + b.clamp(min=0)
    assert row.absorbed_by_bias == pytest.approx(float((R * b.clamp(min=0) / (total + 0.3)).sum()))
    assert row.absorbed_by_stabiliser == pytest.approx(float((R * 0.3 / (total + 0.3)).sum()))
    assert abs(row.created) < 1e-12


@pytest.mark.parametrize("conserve", [False, True])
def test_alpha_beta_by_hand(conserve: bool) -> None:
    row, x, w, b, R = layer(AlphaBeta(3, 2, conserve=conserve, bias="absorb", epsilon=0.2))
    up = x.clamp(min=0) @ w.clamp(min=0).T + x.clamp(max=0) @ w.clamp(max=0).T + b.clamp(min=0)
    down = x.clamp(min=0) @ w.clamp(max=0).T + x.clamp(max=0) @ w.clamp(min=0).T + b.clamp(max=0)
    bias = 3 * R * b.clamp(min=0) / (up + 0.2) - 2 * R * b.clamp(max=0) / (down - 0.2)
    stabiliser = 3 * R * 0.2 / (up + 0.2) + 2 * R * 0.2 / (down - 0.2)
    assert row.absorbed_by_bias == pytest.approx(float(bias.sum()))
    assert row.absorbed_by_stabiliser == pytest.approx(float(stabiliser.sum()))
    assert abs(row.created) < 1e-12


def test_gamma_by_hand() -> None:
    row, x, w, b, R = layer(Gamma(0.5, epsilon=0.2, generalized=True))
    z = x @ w.T + b
    up, down = w + 0.5 * w.clamp(min=0), w + 0.5 * w.clamp(max=0)
    plus, minus = x.clamp(min=0), x.clamp(max=0)
    of_up = plus @ up.T + minus @ down.T, b + 0.5 * b.clamp(min=0)
    of_down = plus @ down.T + minus @ up.T, b + 0.5 * b.clamp(max=0)
    bias = torch.where(z < 0, of_down[1].expand_as(z), of_up[1].expand_as(z))
    total = torch.where(z < 0, of_down[0], of_up[0]) + bias
    assert row.absorbed_by_bias == pytest.approx(float((R * bias / stable(total, 0.2)).sum()))
    assert row.absorbed_by_stabiliser == pytest.approx(float((R * (1 - total / stable(total, 0.2))).sum()))
    assert abs(row.created) < 1e-12


@pytest.mark.parametrize(
    "rule", [Epsilon(0.1, bias="ignore"), Epsilon(0.1, bias="distribute"), Flat(), ZBox(-4.0, 4.0)]
)
def test_what_absorbs_no_bias(rule: Rule) -> None:
    row, *_ = layer(rule)
    assert row.absorbed_by_bias == 0
    assert abs(row.created) < 1e-9


def test_gradients_create() -> None:
    row, _, w, _, R = layer(Gradient())
    assert (row.absorbed_by_bias, row.absorbed_by_stabiliser, row.lost) == (0, 0, 0)
    assert row.created == pytest.approx(float((R @ w).sum() - R.sum()))


def test_sums() -> None:
    constant = torch.randn(4).double()

    def model(x: Tensor) -> Tensor:
        return x[:, :4] + constant + x[:, 4:]

    torch.manual_seed(0)
    x, R = torch.randn(3, 8).double(), torch.randn(3, 4).double()
    rows = lrp.explain(model, x, rule=Epsilon(0.1), initial_relevance=R).audit().rows
    z = x[:, :4] + constant + x[:, 4:]
    assert [row.function for row in rows] == ["add", "add"]
    s = R / stable(z, 1e-6)
    assert rows[1].absorbed_by_stabiliser == pytest.approx(float((R - s * z).sum()))
    inner = s * (x[:, :4] + constant)
    assert rows[0].relevance_out == pytest.approx(float(inner.sum()))
    assert rows[0].absorbed_by_bias == 0  # before any layer, it is a change of unit


def test_a_constant_term_is_a_bias() -> None:
    constant = torch.randn(3, 4).double()
    torch.manual_seed(0)
    first = nn.Linear(4, 4).double()
    x, R = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    rows = lrp.explain(lambda t: first(t).square() + constant, x, rule=Epsilon(0.1), initial_relevance=R).audit().rows
    h = first(x).square().detach()
    s = R / stable(h + constant, 1e-6)
    assert rows[-1].absorbed_by_bias == pytest.approx(float((s * constant).sum()))
    assert rows[-1].relevance_in == pytest.approx(float((s * h).sum()))


def test_batch_norms_absorb_in_their_layer() -> None:
    model, x = convolutional().eval(), images().detach()
    audit = lrp.explain(model, x, 1, rule=Epsilon(0.0)).audit()
    first = audit.rows[0]
    norm = model.norm
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    shift = (
        norm.bias.detach()
        - norm.running_mean * scale
        + scale * (0 if model.first.bias is None else model.first.bias.detach())
    )
    e = lrp.explain(model, x, 1, rule=Epsilon(0.0), layers=["norm"])
    z = norm(model.first(x)).detach()
    expected = (e.layers["norm"] / z * shift.view(1, -1, 1, 1)).sum()
    assert first.absorbed_by_bias == pytest.approx(float(expected))
    assert (first.name, first.function) == ("first", "conv2d")


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x**3

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return 3 * x**2 * g


@pytest.mark.filterwarnings("ignore::lrp.RelevanceWarning")
@pytest.mark.parametrize("function", [Cube.apply, lambda t: torch.fft.rfft(t).abs()])
def test_what_has_no_rule_loses(function: Callable[[Tensor], Tensor]) -> None:
    head = nn.Linear(5, 2).double()
    body = nn.Linear(4, 8 if "rfft" in str(function.__code__.co_names if hasattr(function, "__code__") else "") else 5)
    model = nn.Sequential(body.double(), lrp.convert(function), head)
    audit = lrp.explain(model, torch.randn(3, 4).double(), 0, rule="epsilon").audit()
    assert sum(abs(row.lost) for row in audit.rows) > 0
    assert audit.started - audit.absolute == pytest.approx(sum(map(absorbed, audit.rows)))
    assert all(row.lost == 0 for row in audit.rows if row.rule is not None)


def test_where_it_is_not_finite() -> None:
    model, x = plain().float(), torch.randn(1, 1, 6, 6)
    with torch.no_grad():
        model[2].weight.fill_(float("inf"))
    audit = lrp.explain(model, x, rule=Gradient(), initial_relevance="one").audit()
    assert audit.nonfinite == "2"
    assert "not finite from 2 on" in repr(audit)


@pytest.mark.parametrize("target", [lrp.Top(2), "all", [[0, 1], [2, 0], [1, 1]]])
def test_of_several_targets_it_is_the_sum(target: object) -> None:
    model, x = convolutional(), images(3).detach()
    e = lrp.explain(model, x, target, rule=Epsilon(0.1))
    audit = e.audit()
    assert audit.started == pytest.approx(float(e.initial_relevance.sum()))
    ones = [lrp.explain(model, x, e.target[:, k], rule=Epsilon(0.1)).audit() for k in range(e.target.shape[1])]
    for row, *rows in zip(audit.rows, *(one.rows for one in ones), strict=True):
        assert row.relevance_out == pytest.approx(sum(r.relevance_out for r in rows))
        assert row.absorbed_by_stabiliser == pytest.approx(sum(r.absorbed_by_stabiliser for r in rows), abs=1e-12)


def test_of_batches_it_is_the_sum() -> None:
    model, x = convolutional(), images(5).detach()
    whole = lrp.explain(model, x, 1, rule=Epsilon(0.1)).audit()
    parts = lrp.explain(model, x, 1, rule=Epsilon(0.1), batch_size=2).audit()
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert (a.name, a.rule) == (b.name, b.rule)
        assert a.relevance_in == pytest.approx(b.relevance_in)


def test_it_says_what_it_found() -> None:
    e = lrp.explain(convolutional(), images().detach(), 1, rule="zplus")
    assert e.form == "gradient"
    audit = e.audit()
    table = audit.to_dict()
    assert set(table) == {"rows", "share", "absolute"}
    assert list(table["rows"][0]) == [
        "name", "function", "rule", "relevance_out", "relevance_in", "absorbed_by_bias", "absorbed_by_stabiliser",
        "created", "lost",
    ]  # fmt: skip
    assert table["rows"][0]["rule"] == "ZPlus()"
    assert "first" in repr(audit)
    assert f"{audit.share:.1%}" in repr(audit)
    figure = audit.plot()
    assert next(iter(figure.axes[0].get_yticklabels())).get_text() == audit.rows[-1].name


def test_it_needs_the_model_as_it_was() -> None:
    model, x = convolutional(), images().detach()
    e = lrp.explain(model, x, 1, rule="zplus")
    with pytest.raises(RuntimeError, match="the model is not known here"):
        e[0].audit()
    with torch.no_grad():
        model.first.weight *= 2
    with pytest.raises(RuntimeError, match="no longer gives the output"):
        e.audit()


def test_books_leave_nothing_behind() -> None:
    model, x = convolutional(), images().detach()
    e = lrp.explain(model, x, 1, rule="zplus")
    e.audit()
    gc.collect()
    before = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
    for _ in range(3):
        e.audit()
    gc.collect()
    assert sum(issubclass(type(o), Tensor) for o in gc.get_objects()) <= before
