"""`cloister train --model FILE.py`: what the file decides, and what is refused by name."""

import json

import pytest

pytest.importorskip("torch")

from cli.test_train import place  # noqa: F401

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.left, self.right = nn.Linear(inputs, 8), nn.Linear(inputs, 8)
        self.last = nn.Linear(8, classes)

    def forward(self, x):
        flat = x.flatten(1)
        return self.last((self.left(flat) + self.right(flat)).relu())

def build(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)

def loss(scores, targets):
    return nn.functional.multi_margin_loss(scores, targets, reduction="none")

def optimizer(parameters):
    return torch.optim.Adagrad(parameters, lr=0.05)

def scheduler(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

class_weights = "balanced"
"""


def test_a_file_decides_how_its_model_is_trained(place, cloister, refused, tmp_path):  # noqa: F811
    data, net, run = place.dataset("budgeted"), tmp_path / "net.py", tmp_path / "run"
    net.write_text(NET)
    train = ("train", data, *place.reach("server"), "--model", net, "--checkpoint", run)
    for options in (("--optimizer", "sgd"), ("--learning-rate", 0.1), ("--loss", "mse"),
                    ("--class-weights", "balanced")):  # fmt: skip
        assert "drop one of them" in refused(*train, *options)
    ran = cloister(*train, "--epochs", 60, "--early-stopping", 3, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    epochs = found["epochs"]
    assert 4 <= len(epochs) < 60
    best = max(epoch["test_accuracy"] for epoch in epochs)
    assert found["test_accuracy"] == best > 0.7
    assert epochs[found["model_epoch"] - 1]["test_accuracy"] == best
    assert found["model_epoch"] == len(epochs) - 3
    net.write_text(NET.replace("0.05", "0.5"))
    changed = refused(*train, "--epochs", 61, "--early-stopping", 3)
    assert "with another model and another optimizer; use another --checkpoint" in changed
    net.write_text(NET + "\ndef schedule(optimizer): return None\n")
    assert "defines schedule, which nothing uses (did you mean scheduler)" in refused(*train)


def test_branches_that_both_read_a_sample_are_refused(place, refused, tmp_path):  # noqa: F811
    data, net = place.dataset("budgeted"), tmp_path / "net.py"
    net.write_text(NET)
    message = refused(
        "train", data, *place.reach("trusted"), "--unblind-to", "trusted", "--model", net
    )
    assert "right (Linear) reads the sample, and so does the first layer left" in message
    assert "--first-layer frozen" in message
    assert place.authority.summary("budgeted").counts["requests"] == 0
