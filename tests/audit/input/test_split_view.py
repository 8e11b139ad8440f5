"""From the wire's transcript to what a worker sees at a split."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import nets
from cloister.audit.input.attack_knowledge import AttackKnowledge, PartBefore, PixelMap
from cloister.audit.input.split_view import SplitView, observe, observe_blinded
from cloister.errors import InputError, ShapeError
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import part_before, split_at
from cloister.plan import policies
from cloister.trusted.clips import OnClip
from cloister.trusted.session import Session
from cloister.wire.transcript import Entry, Transcript

IMAGES = np.random.default_rng(0).random((11, 3, 9, 12), dtype=np.float32)


def residual():
    return prepare(from_model(nets.residual(), name="residual"))


def sent(plan, images=IMAGES, *, batch=4, payloads=True):
    """The transcript of a session, over several micro-batches of which the last one is smaller."""
    with Session(plan, batch=batch, record_payloads=payloads, on_clip=OnClip.IGNORE) as session:
        return session.run(images).transcript


def linear(graph, position):
    return [node.name for node in graph.nodes if node.op == "Conv"][position]


def clear(requests, *, target=5, dtype=np.float32):
    entries = [
        Entry("to_worker", i, target, "w", x.dtype, x.shape, x.nbytes, x)
        for i, x in enumerate(np.asarray(x, dtype) for x in requests)
    ]
    return Transcript(entries)


def test_the_view_is_what_the_model_computes_before_the_split():
    graph = residual()
    split = split_at(graph, [linear(graph, 0)])
    plan = policies.origami(graph, until=split.until, integrity="prefix", calibration=IMAGES)
    view = observe(sent(plan), inputs=len(IMAGES))
    wanted = interpret(part_before(graph, split), {graph.inputs[0]: IMAGES}).values()
    assert view.count == len(IMAGES)
    for seen, exact in zip(view.values, wanted, strict=True):
        assert seen.dtype == np.float32
        assert seen.shape == exact.shape
        assert np.abs(seen - exact).max() < 0.01 * np.abs(exact).max()


def test_several_values_cross_in_the_order_of_the_split():
    graph = residual()
    both = [linear(graph, 1), linear(graph, 3)]
    split = split_at(graph, both)
    assert len(split.values) > 1
    plan = policies.origami(graph, until=both, integrity="prefix", calibration=IMAGES)
    view = observe(sent(plan), inputs=len(IMAGES))
    wanted = interpret(part_before(graph, split), {graph.inputs[0]: IMAGES}).values()
    for seen, exact in zip(view.values, wanted, strict=True):
        assert np.abs(seen - exact).max() < 0.02 * np.abs(exact).max()


def test_an_attacker_computes_the_same_of_its_own_images():
    graph = residual()
    split = split_at(graph, [linear(graph, 0)])
    part = part_before(graph, split)
    pixels = PixelMap((3, 9, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    found = PartBefore(part, pixels).view(IMAGES)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (pixels.mean, pixels.std))
    inputs = ((IMAGES - mean) / std).astype(np.float32)
    for seen, exact in zip(
        found.values, interpret(part, {graph.inputs[0]: inputs}).values(), strict=True
    ):
        assert seen == pytest.approx(exact, abs=1e-4)


def test_blinded_requests_are_numbers_around_zero_with_their_channels_first():
    graph = residual()
    plan = policies.slalom(graph, calibration=IMAGES)
    transcript = sent(plan)
    view = observe_blinded(transcript, target_id=0, inputs=len(IMAGES))
    (numbers,) = view.values
    assert numbers.shape == IMAGES.shape
    assert -0.5 <= numbers.min() < -0.49
    assert 0.49 < numbers.max() <= 0.5
    (first, *_) = transcript.messages(target_id=0, direction="to_worker")
    words = np.rint((numbers[: len(first.payload)].astype(np.float64) + 0.5) * 2.0**32)
    assert np.abs(words.transpose(0, 2, 3, 1) - first.payload).max() <= 2**8


def test_a_view_of_some_of_the_inputs():
    values = (np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4, dtype=np.float32))
    some = SplitView(values).of(np.array([2, 0]))
    assert some.values[0].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert some.values[1].tolist() == [2, 0]
    assert (some.count, some.shapes) == (2, ((3,), ()))


# ---- what cannot be a view


def test_transcripts_that_are_no_view_of_the_inputs_are_refused():
    plan = policies.make("open", residual())
    with pytest.raises(InputError, match="record_payloads=True"):
        observe(sent(plan, payloads=False), inputs=len(IMAGES))
    with pytest.raises(InputError, match="of 11 inputs, of 12 that were run"):
        observe(sent(plan), inputs=12)
    with pytest.raises(InputError, match="of 0 inputs, of 3 that were run"):
        observe(Transcript(), inputs=3)
    with pytest.raises(InputError, match="blinded requests of node 9 of 0 inputs"):
        observe_blinded(sent(plan), target_id=9, inputs=len(IMAGES))
    x = IMAGES[:2]
    two = Transcript([*clear([x], target=1).entries, *clear([x], target=2).entries])
    with pytest.raises(InputError, match="several targets"):
        observe(two, inputs=4)


@pytest.mark.parametrize("shape", [(3, 9, 12), (9, 12, 3), (324,)])
def test_pixels_are_laid_out_as_the_model_takes_them(shape):
    found = PixelMap(shape)(torch.from_numpy(IMAGES))
    assert tuple(found.shape[1:]) == shape
    if len(shape) == 3 and shape[2] == 3:
        found = found.permute(0, 3, 1, 2)
    assert np.array_equal(found.reshape(IMAGES.shape).numpy(), IMAGES)


def test_images_of_another_size_than_the_model_are_refused():
    with pytest.raises(ShapeError, match=r"\(3, 9, 12\), the model takes \(3, 9, 13\)"):
        PixelMap((3, 9, 13))(torch.from_numpy(IMAGES))


def test_public_images_that_do_not_fit_their_view_are_refused():
    before = PartBefore(part_before(residual(), split_at(residual(), [linear(residual(), 0)])),
                        PixelMap((3, 9, 12)))  # fmt: skip
    view = before.view(IMAGES)
    with pytest.raises(InputError, match="11, but a view of 3"):
        AttackKnowledge(IMAGES, view.of(np.arange(3)), before)
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        AttackKnowledge(IMAGES * 255, view, before)
    with pytest.raises(ShapeError, match=r"\(n, c, h, w\)"):
        AttackKnowledge(IMAGES[0], view, before)
