"""The explainable twin of a model: the same behaviour, and the original untouched."""

import copy
import inspect
import io
import pickle
from collections import OrderedDict

import networks
import pytest
import torch
import torchvision
from networks import UNet, error, gradient_times_input, randomize, relevance
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import lrp
from lrp.rules import Epsilon

ZERO = Epsilon(0)


def residual() -> nn.Module:
    return randomize(nn.Sequential(networks.Residual(2, inplace=True), nn.Flatten(), nn.Linear(4 * 64, 3)))


def pixels() -> Tensor:
    return networks.images(size=8)


def test_the_twin_is_what_the_model_is() -> None:
    model = torchvision.models.resnet18().eval()
    net = lrp.convert(model)
    assert isinstance(net, torchvision.models.ResNet)
    assert repr(net) == repr(model)
    assert list(net.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(net.parameters(), model.parameters(), strict=True))
    assert [type(m) for m in net.modules()][1:] == [type(m) for m in model.modules()][1:]
    assert net.inplanes == model.inplanes
    assert lrp.convert(net).layer1[0].conv1.weight is model.layer1[0].conv1.weight
    net.load_state_dict(model.state_dict())


def test_the_original_is_untouched() -> None:
    model = residual()
    before = (copy.deepcopy(model.state_dict()), repr(model), [vars(m).copy() for m in model.modules()])
    net = lrp.convert(model)
    net.train()
    net[2] = nn.Identity()
    net[0].conv.register_forward_hook(lambda *_: None)
    net.eval()
    y = net(pixels(), explain=True)
    y.sum().backward()
    assert repr(model) == before[1]
    assert not any(m.training for m in model.modules())
    assert not model[0].conv._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    for m, attributes in zip(model.modules(), before[2], strict=True):
        assert vars(m).keys() == attributes.keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values(), strict=True))


def test_explaining_the_twin_equals_the_drop_in() -> None:
    drop_in, x = networks.convolutional(inplace=True), networks.images()
    plain = nn.Sequential(OrderedDict(drop_in.named_children()))
    for rule in ("epsilon", "zplus", "alpha2beta1"):
        assert torch.equal(relevance(lrp.convert(plain), x, rule), relevance(drop_in, x, rule))


@pytest.mark.parametrize("of", ["pickle", "deepcopy", "torch.save"])
def test_the_twin_can_be_copied_and_pickled(of: str) -> None:
    net, x = lrp.convert(residual()), pixels()
    if of == "torch.save":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(net) if of == "deepcopy" else pickle.loads(pickle.dumps(net))
    assert type(other) is type(net)
    assert next(other.parameters()) is not next(net.parameters())
    assert torch.equal(relevance(other, x), relevance(net, x))


def test_a_graph_module_is_converted() -> None:
    traced = torch.fx.symbolic_trace(residual())
    net = lrp.convert(traced)
    assert isinstance(net, torch.fx.GraphModule)
    assert error(relevance(net, pixels(), ZERO), gradient_times_input(residual(), pixels())) < 1e-10


def test_a_module_that_is_used_twice_has_one_twin() -> None:
    shared = nn.Linear(4, 4)
    net = lrp.convert(nn.Sequential(shared, nn.ReLU(), shared))
    assert net[0] is net[2]


Structure = tuple[Tensor, list[Tensor], dict[str, Tensor]]


class Outputs(nn.Module):
    """Several inputs, by position and by name; tuples, lists and dicts of outputs; shared functional code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(
        self, a: Tensor, *, more: dict[str, Tensor], times: int = 1
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        joined = F.relu(self.first(a) + times * self.second(more["b"]))
        return joined, [joined[:, :1]], {"both": torch.cat([joined, a], 1), "number": torch.tensor(1.0)}


def test_several_inputs_and_structured_outputs() -> None:
    model = randomize(Outputs())
    a, b = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    a.requires_grad_(), b.requires_grad_()

    def total(outputs: Structure) -> Tensor:
        return outputs[0].sum() + 2 * outputs[1][0].sum() + outputs[2]["both"].square().sum()

    arguments = {"more": {"b": b}, "times": 2}
    expected = torch.autograd.grad(total(model(a, **arguments)), (a, b))
    actual = torch.autograd.grad(total(lrp.convert(model)(a, **arguments, explain=True, rule="gradient")), (a, b))
    assert all(torch.allclose(*pair) for pair in zip(actual, expected, strict=True))
    joined, _, _ = lrp.convert(model)(a, **arguments, explain=True, rule=ZERO)
    by_rule = torch.autograd.grad(joined, (a, b), joined.detach())
    gradients = torch.autograd.grad(model(a, **arguments)[0].sum(), (a, b))
    for part, x, gradient in zip(by_rule, (a, b), gradients, strict=True):
        assert error(part, x.detach() * gradient) < 1e-10
    fixed = b.detach()
    joined, _, _ = lrp.convert(model)(a, more={"b": fixed}, times=2, explain=True, rule=ZERO)
    assert error(torch.autograd.grad(joined, a, joined.detach())[0], by_rule[0]) < 1e-10


WEIGHTS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm by hooks": torch.nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_computed(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))
    WEIGHTS[name](model[0])
    WEIGHTS[name](model[3])
    model, x = model.double().eval(), pixels()
    net = lrp.convert(model)
    assert error(relevance(net, x, ZERO), gradient_times_input(model, x)) < 1e-10
    assert list(lrp.Composite({"0": "zplus"}).resolve(net, x)) == ["0", "relu", "3"]
    assert all(p.grad is None for p in model.parameters())


class Functional(nn.Module):
    """A network without a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(3, 2, 3, 3))
        self.matrix = nn.Parameter(torch.empty(3, 2))
        self.shift = nn.Parameter(torch.empty(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, stride=2))
        return x.mean((2, 3)) @ self.matrix + self.shift


def test_a_functional_model_and_a_plain_function() -> None:
    model, x = randomize(Functional()), pixels()
    expected = gradient_times_input(model, x)
    assert error(relevance(lrp.convert(model), x, ZERO, strict=True), expected) < 1e-10

    def function(x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, model.kernel, stride=2)).mean((2, 3)) @ model.matrix + model.shift

    net = lrp.convert(function)
    assert error(relevance(net, x, ZERO, strict=True), expected) < 1e-10
    assert list(lrp.Composite({"first": "flat"}).resolve(net, x)) == ["conv2d", "relu", "mean", "matmul", "add"]


class Depth(nn.Module):
    """A residual block with layer scale, dropped at random."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(2, 1, 1))
        self.drop = torchvision.ops.StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.drop(self.scale * F.dropout(self.conv(x).relu_(), 0.3, self.training))).flatten(1)


def test_stochastic_depth_and_layer_scale() -> None:
    model, x = randomize(Depth()), pixels()
    net = lrp.convert(model)
    assert error(relevance(net, x, ZERO, strict=True), gradient_times_input(model, x)) < 1e-10
    state = torch.random.get_rng_state()
    with pytest.warns(lrp.RelevanceWarning, match=r"^in training mode is this Depth, .* call \.eval\(\)"):
        relevance(net.train(), x, ZERO, strict=True)
    assert torch.equal(torch.random.get_rng_state(), state)


VGGS = ["vgg11", "vgg13", "vgg16", "vgg19"]


@pytest.mark.parametrize("name", [*VGGS, *(f"{name}_bn" for name in VGGS)])
def test_convert_vgg(name: str) -> None:
    with torch.device("meta"):  # shapes and names alone
        model = getattr(torchvision.models, name)().eval()
    net = lrp.convert_vgg(model)
    assert type(net) is lrp.Sequential
    assert len(net) == len(model.features) + 2 + len(model.classifier)
    assert all(type(layer).__module__ == "lrp.layers" for layer in net if list(layer.parameters()))
    assert all(a is b for a, b in zip(net.parameters(), model.parameters(), strict=True))
    assert not any(m.training for m in net.modules())


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_convert_vgg_explains(name: str) -> None:
    model = getattr(torchvision.models, name)(num_classes=3).eval()
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    net = lrp.convert_vgg(model)
    assert torch.equal(net(x), model(x))
    assert torch.equal(net(x, explain=True), model(x))
    assert torch.equal(relevance(net, x, "epsilon_plus"), relevance(lrp.convert(model), x, "epsilon_plus"))
    model.train()
    assert all(m.training for m in lrp.convert_vgg(model).modules())
    assert lrp.convert_vgg(lrp.convert(model))[0].weight is model.features[0].weight


@pytest.mark.parametrize("model", [nn.Linear(2, 2), torchvision.models.AlexNet(), "vgg16", None])
def test_convert_vgg_takes_nothing_else(model: object) -> None:
    with pytest.raises(TypeError, match=r"takes a torchvision.models.VGG, not a .*; lrp.convert\(\) takes any model"):
        lrp.convert_vgg(model)


def part_compiled(model: nn.Module) -> nn.Module:
    model[0].compile(backend="eager")
    return model


def all_compiled(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def twice_compiled(model: nn.Module) -> nn.Module:
    return part_compiled(all_compiled(model))


@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
@pytest.mark.parametrize("compiled", [part_compiled, all_compiled, twice_compiled])
def test_a_module_that_was_compiled_in_place_is_converted_and_stays_compiled(compiled, rule) -> None:  # type: ignore[no-untyped-def]
    expected = relevance(lrp.convert(residual()), pixels(), rule)
    model = compiled(residual())
    before = [m._compiled_call_impl for m in model.modules()]
    twins = [lrp.convert(model), lrp.Sequential.from_torch(model)]
    for net in (*twins, lrp.convert(twins[0])):
        assert torch.equal(relevance(net, pixels(), rule, strict=True), expected)
        assert all(m._compiled_call_impl is None for m in net.modules())
    assert [m._compiled_call_impl for m in model.modules()] == before
    assert any(before)


class Taken(nn.Module):
    def forward(self, x: Tensor, rule: str = "mine") -> Tensor:
        return x


def patched() -> nn.Module:
    model = nn.Linear(2, 2)
    model.forward = lambda x: x
    return model


@pytest.mark.parametrize(
    ("model", "exception", "message"),
    [
        (None, TypeError, "takes a torch.nn.Module or a function of tensors, not None"),
        (nn.Linear, TypeError, "takes a torch.nn.Module or a function of tensors"),
        (nn.Sequential(nn.DataParallel(nn.Linear(2, 2))), TypeError, r"write DataParallel\(convert\(model\)\)"),
        (torch.compile(nn.Linear(2, 2)), TypeError, "OptimizedModule is compiled.*convert the model before it is"),
        (nn.Sequential(torch.compile(nn.Linear(2, 2))), TypeError, "OptimizedModule is compiled, .* before it is"),
        (Taken(), TypeError, r"the forward of Taken has arguments of lrp's names itself: \['rule'\]"),
        (patched(), TypeError, "forward was replaced on this Linear itself"),
    ],
)
def test_what_cannot_be_converted(model, exception, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(exception, match=message):
        lrp.convert(model)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_and_lazy_modules_cannot_be_converted() -> None:
    with pytest.raises(TypeError, match="RecursiveScriptModule is compiled"):
        lrp.convert(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="'weight' is not initialised; call the model once"):
        lrp.convert(nn.LazyLinear(3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_exported_and_quantized_modules_cannot_be_converted() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    exported = torch.export.export(model.eval(), (torch.rand(2, 4),)).module()
    for part in (exported, nn.Sequential(nn.ReLU(), exported)):
        with pytest.raises(TypeError, match=r"GraphModule was exported.*convert the model before it is exported"):
            lrp.convert(part)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    for part in (quantized, quantized[0], nn.Sequential(torch.ao.nn.quantized.Linear(4, 3))):
        with pytest.raises(TypeError, match=r"Linear is quantized.*convert the model before it is quantized"):
            lrp.convert(part)


GRAPHS = {
    "sequence": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=3),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_converted_graph_recompiles_copies_and_pickles(name: str) -> None:
    model = randomize(GRAPHS[name]())
    graph = torch.fx.symbolic_trace(model)
    size = 6 if name == "sequence" else 32
    x = torch.randn(2, 2 if name == "sequence" else 3, size, size, dtype=torch.float64, requires_grad=True)
    expected = relevance(lrp.convert(model), x, "epsilon_plus")
    net = lrp.convert(graph)
    twins = [net, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), lrp.convert(net)]
    for twin in twins * 2:
        assert isinstance(twin, torch.fx.GraphModule)
        assert torch.equal(twin(x), graph(x))
        assert torch.equal(relevance(twin, x, "epsilon_plus"), expected)
        twin.recompile()
    assert "explain" not in inspect.signature(type(graph).forward).parameters


def test_the_graph_of_a_twin_is_its_own() -> None:
    model = randomize(GRAPHS["sequence"]())
    graph, x = torch.fx.symbolic_trace(model), torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    net = lrp.convert(graph)
    again = lrp.convert(net)
    relu = next(node for node in net.graph.nodes if node.target == "2")
    relu.replace_all_uses_with(relu.args[0])
    net.graph.erase_node(relu)
    net.recompile()
    changed = nn.Sequential(*(layer for layer in model if not isinstance(layer, nn.ReLU)))
    assert torch.equal(net(x), changed(x))
    assert torch.equal(relevance(net, x, "zplus"), relevance(lrp.convert(changed), x, "zplus"))
    for other in (graph, again):
        other.recompile()
        assert torch.equal(other(x), model(x))
    net.graph = torch.fx.symbolic_trace(model).graph
    assert torch.equal(relevance(net, x, "zplus"), relevance(lrp.convert(model), x, "zplus"))


def test_misspelt_arguments_are_errors() -> None:
    with pytest.raises(TypeError, match="rules"):
        lrp.convert(UNet().double())(pixels(), explain=True, rules="epsilon")


def test_a_converted_model_trains() -> None:
    net = lrp.convert(residual())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [p.clone() for p in net.parameters()]
    net(pixels()).square().mean().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_many_unknown_functions_are_one_message() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.digamma(torch.lgamma(self.layer(x))) + torch.linalg.det(x @ x.T)

    net, x = lrp.convert(Odd()), torch.randn(2, 4, requires_grad=True)
    with pytest.warns(lrp.RelevanceWarning) as caught:
        net(x, explain=True)
    assert len(caught) == 1
    with pytest.raises(NotImplementedError, match=r"digamma \(after layer 'layer'\), matmul \(after .*\), linalg"):
        net(x, explain=True, strict=True)


def test_an_exported_program_is_refused_by_name() -> None:
    exported = torch.export.export(nn.Linear(2, 1), (torch.rand(1, 2),))
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module or a function of tensors, not a ExportedProgram"):
        lrp.convert(exported)
