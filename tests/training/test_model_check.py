"""Models that cannot train on encrypted samples are named before a key is asked for."""

import pytest
import torch
from torch import nn

from cloister.errors import InputError, UnsupportedError
from training.test_trainer import FROZEN, PAPER, TRUSTED, same, small, trainer, weights


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(30, 3)

    def forward(self, picture, age):
        return self.dense(picture.flatten(1)) + age


class Branches(nn.Module):
    """Both read the sample."""

    def __init__(self, second=None):
        super().__init__()
        self.left = nn.Linear(30, 3)
        self.right = second or nn.Linear(30, 3)

    def forward(self, x):
        return self.left(x.flatten(1)) + self.right(x.flatten(1))


class Residual(nn.Module):
    """The second branch has no layer of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(30, 3)

    def forward(self, x):
        return self.first(x.flatten(1)) + x.flatten(1)[:, :3]


class Behind(nn.Module):
    """Both branches read the first layer's output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(30, 8)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x, scale=2.0):
        hidden = self.first(x.flatten(1)).relu()
        return self.left(hidden) + scale * self.right(hidden)


@pytest.mark.parametrize("settings", [FROZEN, PAPER])
def test_a_model_with_two_inputs_is_named(settings):
    with pytest.raises(UnsupportedError, match=r"TwoInputs.forward takes 2 inputs .picture, age."):
        trainer(settings, model=TwoInputs())


@pytest.mark.parametrize("settings", [PAPER, TRUSTED])
@pytest.mark.parametrize(("model", "named"), [
    (Branches, r"right \(Linear\) reads the sample, and so does the first layer left"),
    (lambda: Branches(nn.Sequential(nn.ReLU(), nn.Linear(30, 3))), "reads the sample"),
    (Residual, r"Residual\.forward reads the sample, and so does the first layer first"),
])  # fmt: skip
def test_branches_that_both_read_the_sample_are_named(settings, model, named):
    made, authority, _ = trainer(settings, model=model())
    with pytest.raises(UnsupportedError, match=named):
        made.fit(1)
    assert authority.log == []


@pytest.mark.parametrize(
    ("settings", "model"), [(FROZEN, Branches()), (FROZEN, Residual()), (PAPER, Behind())]
)
def test_models_that_are_right(settings, model):
    made, _, _ = trainer(settings, model=model)
    assert made.fit(4)[-1].loss < made.history[0].loss


@pytest.mark.parametrize("settings", [FROZEN, PAPER])
def test_no_key_is_asked_for_where_the_model_does_not_fit(settings):
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 7), nn.ReLU(), nn.Linear(8, 3))
    made, authority, _ = trainer(settings, model=model)
    with pytest.raises(InputError, match="model: "):
        made.fit(1)
    assert authority.log == []


def test_scores_that_are_no_tensor():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(30, 3)

        def forward(self, x):
            return self.dense(x.flatten(1)), 1

    made, _, _ = trainer(FROZEN, model=Two())
    with pytest.raises(InputError, match="gives a tuple, not one tensor"):
        made.fit(1)


@pytest.mark.parametrize("settings", [FROZEN, PAPER])
def test_the_check_changes_neither_model_nor_generator(settings):
    """Batch statistics, dropout's generator and the mode of training are as they were."""
    made, _, _ = trainer(settings, model=small())
    torch.manual_seed(3)
    state, before = (
        torch.get_rng_state(),
        {k: v.clone() for k, v in made.model.state_dict().items()},
    )
    made._try_model()
    assert torch.equal(torch.get_rng_state(), state)
    assert made.model.training
    assert same(weights(made), before)
