"""The relevance of hidden layers."""

import threading

import networks
import pytest
import torch
from torch import nn

import lrp
from lrp.engine.backward import recording


def explained(model: nn.Module) -> torch.Tensor:
    y = model(networks.images(), explain=True)
    return (y * y.detach()).sum()


def test_names_and_shapes_in_backward_order() -> None:
    loss = explained(networks.convolutional())
    with lrp.trace.record() as relevances:
        loss.backward()
    shapes = {name: tuple(relevance.shape) for name, relevance in relevances.items()}
    expected = {
        "last": (2, 16), "more.0": (2, 8, 5, 5), "alone": (2, 8, 5, 5), "block.shortcut": (2, 4, 5, 5),
        "block.conv": (2, 4, 5, 5), "first": (2, 2, 10, 10),
    }  # fmt: skip
    assert shapes == expected
    assert list(shapes)[:3] == ["last", "more.0", "alone"]
    assert list(shapes)[-1] == "first"


def test_values_are_the_relevance_at_the_input_of_the_layer() -> None:
    model, x = networks.plain(), networks.images(channels=1, size=6)
    hidden = model[:2](x).detach().requires_grad_()
    y = model[2:](hidden, explain=True)
    (expected,) = torch.autograd.grad(y.sum(), hidden)
    y = model(x, explain=True)
    with lrp.trace.record() as relevances:
        y.sum().backward()
    assert torch.equal(relevances["2"], expected)
    assert torch.equal(relevances["0"], x.grad)
    assert not relevances["0"].requires_grad


def test_a_layer_that_is_called_again_is_numbered() -> None:
    layer = nn.Linear(3, 3)
    model = lrp.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)
    y = model(torch.rand(2, 3, requires_grad=True), explain=True)
    with lrp.trace.record() as relevances:
        y.sum().backward()
    assert list(relevances) == ["0#3", "0#2", "0"]


def test_torchlrps_calls_give_a_list() -> None:
    model = networks.convolutional()
    loss = explained(model)
    with lrp.trace.record() as relevances:
        loss.backward(retain_graph=True)
    lrp.trace.enable_and_clean()
    loss.backward()
    collected = lrp.trace.collect_and_disable()
    assert all(torch.equal(a, b) for a, b in zip(collected, relevances.values(), strict=True))


def test_nothing_stays_switched_on() -> None:
    model = networks.plain()
    x = networks.images(channels=1, size=6)
    with pytest.raises(ZeroDivisionError), lrp.trace.record() as stopped:
        raise ZeroDivisionError
    lrp.trace.enable_and_clean()
    lrp.trace.enable_and_clean()
    assert lrp.trace.collect_and_disable() == []
    model(x, explain=True).sum().backward()
    assert stopped == {}
    assert not recording._recorders
    with pytest.raises(RuntimeError, match="enable_and_clean"):
        lrp.trace.collect_and_disable()


def test_records_nest() -> None:
    y = networks.plain()(networks.images(channels=1, size=6), explain=True).sum()
    with lrp.trace.record() as outer:
        with lrp.trace.record() as inner:
            y.backward(retain_graph=True)
        first = outer["0"]
        y.backward()
    assert list(inner) == list(outer) == ["5", "2", "0"]
    assert inner["0"] is not outer["0"]
    assert torch.equal(first, outer["0"])


def test_another_thread_is_not_recorded() -> None:
    def elsewhere() -> None:
        networks.plain()(networks.images(channels=1, size=6), explain=True).sum().backward()

    with lrp.trace.record() as relevances:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert relevances == {}


def test_threads_explain_side_by_side() -> None:
    expected = networks.relevance(networks.convolutional(), networks.images(), "alpha2beta1")
    maps = []

    def explain(rule: str) -> None:
        for _ in range(5):
            maps.append((rule, networks.relevance(networks.convolutional(), networks.images(), rule)))

    threads = [threading.Thread(target=explain, args=(rule,)) for rule in ("alpha2beta1", "epsilon", "zplus", "gamma")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(maps) == 20
    assert all(torch.equal(relevance, expected) for rule, relevance in maps if rule == "alpha2beta1")
