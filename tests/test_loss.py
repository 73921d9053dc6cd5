"""The losses: hand-computed numbers, torch's own cross-entropy, derivatives, and behaviour in low precision."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.loss import Loss, dice, loss_of

relaxed = settings(max_examples=25, deadline=None)  # timing is no property, and torch's first call is slow
LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
every_loss = pytest.mark.parametrize("name", ["dice_ce", "focal", "dice_focal", "ce"])


@st.composite
def batches(draw, ndim=4):
    """Logits [B, C, H, W] or [B, C] in float32, target of the same batch, and a weight for each class."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    b, c, h, w = (draw(st.integers(low, high)) for low, high in ((1, 3), (2, 4), (1, 5), (1, 5)))
    shape = (b, c, h, w)[:ndim]
    logits = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    target = torch.randint(c, (b, *shape[2:]), generator=generator)
    return logits, target, torch.rand(c, generator=generator) * 3 + 0.1


def images(logits_per_class, target):
    """One value a class, the same at every pixel -> logits [B, C, H, W] for a target [B, H, W]."""
    target = torch.tensor(target)
    logits = torch.tensor(logits_per_class)[None, :, None, None]
    return logits.expand(target.shape[0], -1, *target.shape[1:]), target


# p = 1/2 everywhere for two equal logits; p = (3/4, 1/4) for (ln 3, 0).
ONE_OF_FOUR = images([0.0, 0.0], [[[1, 0], [0, 0]]])
NOTHING = images([0.0, 0.0], [[[0, 0], [0, 0]]])
BOTH = images([0.0, 0.0], [[[1, 0], [0, 0]], [[0, 0], [0, 0]]])
TWO = images([LN3, 0.0], [[[0, 1]]])
THREE = images([0.0, 0.0, 0.0], [[[0, 1, 2]]])
PAIR = torch.tensor([[LN3, 0.0], [LN3, 0.0]]), torch.tensor([0, 1])  # classification, p_t = 3/4 and 1/4


@pytest.mark.parametrize(
    ("loss", "weight", "batch", "expected"),
    [
        ("focal", None, (torch.zeros(1, 2), torch.tensor([0])), LN2 / 4),
        ("focal", None, (torch.zeros(1, 4), torch.tensor([3])), 9 / 16 * LN4),
        ("focal", None, PAIR, ((LN4 - LN3) / 16 + 9 / 16 * LN4) / 2),
        ("focal", [1, 3], PAIR, ((LN4 - LN3) / 16 + 3 * 9 / 16 * LN4) / 4),
        ("focal", [10, 30], PAIR, ((LN4 - LN3) / 16 + 3 * 9 / 16 * LN4) / 4),  # only ratios count
        ("ce", [1, 3], PAIR, (LN4 - LN3 + 3 * LN4) / 4),
        ("dice_ce", None, ONE_OF_FOUR, 1 / 2 + LN2),
        ("dice_ce", [1, 3], TWO, 1 - 1.5 / 2.5 + (LN4 - LN3 + 3 * LN4) / 4),
        ("dice_focal", None, ONE_OF_FOUR, 1 / 2 + LN2 / 4),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_numbers_by_hand(loss, weight, batch, expected, device):
    logits, target = (tensor.to(device) for tensor in batch)
    value = Loss(loss, weight).to(device)(logits, target)
    assert value.shape == () and value.device.type == device and value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        # lesion: Σ p·g = 1/2, Σ p = 2, Σ g = 1 -> (1 + 1) / (3 + 1)
        (ONE_OF_FOUR, 1 / 2),
        (NOTHING, 1 - 1 / 3),  # empty mask: smooth / (Σ p + smooth)
        (BOTH, (1 / 2 + 2 / 3) / 2),  # mean over images, not pooled
        (THREE, 1 - (2 / 3 + 1) / 3),  # classes 1 and 2: Σ p·g = 1/3, Σ p = Σ g = 1
        (images([-50.0, 50.0], [[[1, 1]]]), 0),
        (images([50.0, -50.0], [[[0, 0]]]), 0),  # nothing there, nothing predicted
        (images([50.0, -50.0], [[[1, 1]]]), 1 - 1 / 3),
    ],
)
def test_dice_by_hand(batch, expected):
    assert dice(*batch).item() == pytest.approx(expected, abs=1e-6)


@relaxed
@given(batches() | batches(ndim=2))
def test_focal_is_the_papers_formula_and_cross_entropy_that_of_torch(batch):
    logits, target, weight = batch
    log_p = logits.double().log_softmax(1).movedim(1, -1)[F.one_hot(target, logits.shape[1]).bool()]
    w = weight.double()[target.flatten()]
    expected = float((w * (1 - log_p.exp()) ** 2 * -log_p).sum() / w.sum())
    loss, weights = Loss("focal", weight.tolist()), weight.tolist()
    assert loss(logits.double(), target).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(Loss("ce", weights)(logits, target), F.cross_entropy(logits, target, weight))


def test_gradients_of_dice_and_focal():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(3, (2, 3, 2), generator=generator)
    loss = Loss("dice_focal", [2.5, 2.5, 0.5])
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


@every_loss
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_and_autocast_change_nothing_but_the_logits(name, device, dtype):
    generator = torch.Generator().manual_seed(0)
    rounded = (torch.randn(2, 3, 16, 16, generator=generator) * 5).to(device, dtype)
    target = torch.randint(3, (2, 16, 16), generator=generator).to(device)
    loss = Loss(name, [2.5, 2.5, 0.5]).to(device)
    expected = loss(rounded.float(), target)
    with torch.autocast(device, torch.bfloat16):
        inside = loss(rounded, target)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected) and torch.equal(loss(rounded, target), expected)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_confident_logits_stay_finite(name, dtype):
    for sign in (100, -100, 15, -15):  # near ±15, 1 - p is a few float32 steps from 0
        logits = torch.zeros(1, 2, 4, 4, dtype=dtype)
        logits[:, 1] = sign
        logits.requires_grad_()
        value = Loss(name)(logits, torch.arange(16).reshape(1, 4, 4) % 2)
        value.backward()
        assert value.isfinite() and value < 200 and logits.grad.isfinite().all()


@every_loss
def test_class_weights_stay_as_given(name):
    """Old fault: the focal loss overwrote them after the first batch."""
    loss = Loss(name, [2.5, 2.5, 0.5])
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 5, generator=generator, requires_grad=True)
    target = torch.randint(3, (4, 5, 5), generator=generator)
    first = loss(logits, target).item()
    for step in range(3):
        loss(logits, torch.full_like(target, step)).backward()
    (stored,) = loss.buffers()
    assert stored.tolist() == [2.5, 2.5, 0.5] and not list(loss.parameters())
    assert loss(logits, target).item() == first


@every_loss
def test_targets_that_are_no_classes(name):
    loss, logits = Loss(name), torch.zeros(1, 2, 4, 4)
    for index in (2, -1, -100):  # torch's cross-entropy would skip -100
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            loss(logits, torch.full((1, 4, 4), index))
    for shape in ((1, 1, 4, 4), (1, 4, 3), (2, 4, 4)):
        with pytest.raises(ValueError, match="expected logits"):
            loss(logits, torch.zeros(shape, dtype=torch.long))


@every_loss
def test_any_integer_target(name):
    logits, target = ONE_OF_FOUR
    for dtype in (torch.uint8, torch.int32, torch.bool):
        assert Loss(name)(logits, target.to(dtype)) == Loss(name)(logits, target)


@every_loss
def test_of_probabilities_it_is_that_of_their_logits(name):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(3, 2, 5, 4, generator=generator), torch.randint(2, (3, 5, 4), generator=generator)
    criterion = Loss(name, (1.0, 3.0))
    assert loss_of(criterion, logits.softmax(1).numpy(), target.numpy()) == pytest.approx(
        float(criterion(logits, target))
    )
    sure = torch.stack([1 - target, target], 1).float()  # of which one is wrong
    sure[0, :, 0, 0] = sure[0, :, 0, 0].flip(0)
    assert 0 < loss_of(criterion, sure.numpy(), target.numpy()) < 2
