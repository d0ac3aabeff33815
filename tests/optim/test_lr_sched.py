import pytest

from util.optim.lr_sched import scaled_lr, warmup_cosine, warmup_reduced, warmup_step


@pytest.mark.parametrize(
    "epoch, expected",
    [
        (0, 0.0),  # the first update of a run
        (0.25, 0.125),
        (1, 0.5),
        (2, 1.0),
        (4, 0.1 + 0.9 * (2 + 2**0.5) / 4),
        (6, 0.55),
        (8, 0.1 + 0.9 * (2 - 2**0.5) / 4),
        (10, 0.1),
    ],
)
def test_linear_warmup_then_half_a_cosine(epoch, expected):
    found = warmup_cosine(epoch, lr=1.0, min_lr=0.1, warmup_epochs=2, epochs=10)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_warmup_does_not_start_at_the_smallest_rate():
    assert warmup_cosine(1, lr=1.0, min_lr=0.9, warmup_epochs=4, epochs=10) == 0.25


def test_without_warmup_a_run_starts_at_the_full_rate():
    assert warmup_cosine(0, lr=0.3, min_lr=0.1, warmup_epochs=0, epochs=10) == pytest.approx(0.3)


def test_the_published_rates():
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)  # pretraining
    assert scaled_lr(0.1, 16384) == pytest.approx(6.4)  # linear probe
    assert scaled_lr(1e-3, 256) == 1e-3


@pytest.mark.parametrize(
    "epoch, expected",
    [
        (0, 0.0),
        (1.5, 0.3),
        (4.5, 0.9),  # warm-up, which is past the first step when it ends
        (5, 0.2),
        (7.99, 0.2),
        (8, 0.04),
        (11.99, 0.04),
        (12, 0.01),
        (100, 0.01),
    ],
)
def test_steps_count_from_the_start_of_the_run(epoch, expected):
    found = warmup_step(epoch, lr=1.0, min_lr=0.01, warmup_epochs=5, decay_epochs=4, decay_rate=0.2)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "epoch, reductions, expected", [(1, 0, 0.5), (1, 3, 0.5), (2, 0, 1.0), (50.5, 1, 0.25), (50.5, 2, 0.1)]
)
def test_reductions_come_after_the_warmup(epoch, reductions, expected):
    found = warmup_reduced(epoch, lr=1.0, min_lr=0.1, warmup_epochs=2, reductions=reductions, decay_rate=0.25)
    assert found == pytest.approx(expected, rel=1e-12)
