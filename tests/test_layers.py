"""Drop-in layers are torch's layers: constructor, parameters, state_dict, repr, pickle, copies, replicas."""

import copy
import inspect
import io
import pickle

import networks
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lrp

ARGUMENTS = {
    "Linear": (3, 2), "Conv1d": (2, 4, 3), "Conv2d": (2, 4, 3), "Conv3d": (2, 4, 3), "ConvTranspose1d": (2, 4, 3),
    "ConvTranspose2d": (2, 4, 3), "ConvTranspose3d": (2, 4, 3), "MaxPool1d": (2,), "MaxPool2d": (2,), "MaxPool3d": (2,),
    "AvgPool1d": (2,), "AvgPool2d": (2,), "AvgPool3d": (2,), "AdaptiveAvgPool1d": (2,), "AdaptiveAvgPool2d": (2,),
    "AdaptiveAvgPool3d": (2,), "BatchNorm1d": (2,), "BatchNorm2d": (2,), "BatchNorm3d": (2,),
}  # fmt: skip


def batch_for(name: str) -> torch.Tensor:
    """An input for the layer of that name."""
    if name == "Linear":
        return torch.randn(5, 3)
    return torch.randn(5, 2, *[6] * int(name[-2]))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_drop_in_is_its_torch_class(name: str) -> None:
    ours, theirs = getattr(lrp, name), getattr(nn, name)
    layer, torch_layer = ours(*ARGUMENTS[name]), theirs(*ARGUMENTS[name])
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert isinstance(layer, theirs)
    assert repr(layer) == repr(torch_layer)
    layer.load_state_dict(torch_layer.state_dict())
    torch_layer.load_state_dict(layer.state_dict())
    x = batch_for(name)
    assert torch.equal(layer.eval()(x), torch_layer.eval()(x))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("rule", ["epsilon", "flat", "gradient"])
def test_every_drop_in_explains(name: str, rule: str) -> None:
    layer = getattr(lrp, name)(*ARGUMENTS[name]).eval()
    x = batch_for(name).requires_grad_()
    y = layer(x, explain=True, rule=rule, strict=True)
    assert torch.equal(y, layer(x))
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("name", ARGUMENTS)
def test_from_torch_shares_and_keeps_everything(name: str) -> None:
    module = getattr(nn, name)(*ARGUMENTS[name]).double().eval()
    module.register_forward_hook(lambda module, args, output: output * 2)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    before = {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}
    twin = getattr(lrp, name).from_torch(module)
    assert type(twin) is getattr(lrp, name)
    assert all(a is b for a, b in zip(twin.parameters(), module.parameters(), strict=True))
    assert all(a is b for a, b in zip(twin.buffers(), module.buffers(), strict=True))
    x = batch_for(name).double()
    assert torch.equal(twin(x), module(x))
    twin.train().register_forward_hook(lambda *_: None)
    twin.extra = nn.Parameter(torch.zeros(1))
    assert vars(module) == before


def test_from_torch_takes_its_torch_class_alone() -> None:
    with pytest.raises(TypeError, match=r"lrp\.Conv2d\.from_torch\(\) takes a torch\.nn\.Conv2d, not a Linear"):
        lrp.Conv2d.from_torch(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="parametrized"):
        lrp.Linear.from_torch(parametrizations.weight_norm(nn.Linear(3, 2)))


def test_a_subclass_of_a_torch_class_has_a_twin() -> None:
    class Own(nn.Linear):
        pass

    assert type(lrp.Linear.from_torch(Own(3, 2))) is lrp.Linear


def test_a_sequence_has_twins_in_it_and_leaves_the_original_alone() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    original = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), inner, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    twin = lrp.Sequential.from_torch(original)
    assert [type(m) for m in twin] == [lrp.Conv2d, nn.ReLU, lrp.Sequential, lrp.AdaptiveAvgPool2d, nn.Flatten]
    assert [type(m) for m in original] == [nn.Conv2d, nn.ReLU, nn.Sequential, nn.AdaptiveAvgPool2d, nn.Flatten]
    assert all(a is b for a, b in zip(twin.parameters(), original.parameters(), strict=True))
    twin.eval()
    assert all(m.training for m in original.modules())
    assert repr(twin) == repr(original)
    x = networks.images().float()
    assert torch.equal(twin(x), original.eval()(x))


def test_a_layer_that_a_sequence_uses_twice_stays_one_layer() -> None:
    layer = nn.Linear(3, 3)
    twin = lrp.Sequential.from_torch(nn.Sequential(layer, nn.ReLU(), layer))
    assert twin[0] is twin[2]
    assert len(twin.state_dict()) == len(nn.Sequential(layer, nn.ReLU(), layer).state_dict())


def test_state_dicts_load_both_ways() -> None:
    torch_model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    model = lrp.Sequential(lrp.Conv2d(1, 3, 3), lrp.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), lrp.Linear(48, 2))
    assert list(model.state_dict()) == list(torch_model.state_dict())
    model.load_state_dict(torch_model.state_dict())
    torch_model.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(model.eval()(x), torch_model.eval()(x))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_explain_alike(copy_of) -> None:  # type: ignore[no-untyped-def]
    model, x = networks.convolutional(), networks.images()
    expected = networks.relevance(model, x, "alpha2beta1")
    assert torch.equal(networks.relevance(copy_of(model), x, "alpha2beta1"), expected)


def test_a_saved_model_loads() -> None:
    model, x = networks.convolutional(), networks.images()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(networks.relevance(loaded, x), networks.relevance(model, x))


def test_conversions_of_dtype_keep_working() -> None:
    model, x = networks.plain(), networks.images(channels=1, size=6)
    networks.relevance(model, x, "zplus")
    expected = networks.relevance(copy.deepcopy(model).float(), x.detach().float().requires_grad_(), "zplus")
    actual = networks.relevance(model.float(), x.detach().float().requires_grad_(), "zplus")
    assert torch.equal(actual, expected)


def test_a_replica_explains_like_its_original() -> None:
    """As torch.nn.parallel.replicate makes them: parameters are tensors that are no leaves, in another attribute."""
    model = networks.convolutional()
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            replica._former_parameters[name] = None if parameter is None else parameter * 1
            setattr(replica, name, replica._former_parameters[name])
    x = networks.images()
    for rule in ("epsilon", "gamma"):
        y = replicas[model](x, explain=True, rule=rule)
        with lrp.trace.record() as relevances:
            explained = torch.autograd.grad(y, x, networks.first_output(y))[0]
        assert torch.equal(explained, networks.relevance(model, x, rule))
        assert next(iter(relevances)) == "last"
        assert all(p.grad is None for p in model.parameters())


def test_transposed_convolutions_take_an_output_size() -> None:
    layer = lrp.ConvTranspose2d(2, 3, 3, stride=2).double()
    x = networks.images(size=4)
    y = layer(x, output_size=[10, 10], explain=True)
    assert torch.equal(y, layer(x, output_size=[10, 10]))
    y.sum().backward()
    assert x.grad.shape == x.shape
