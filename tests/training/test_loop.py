"""The loop does what a loop written by hand does, however a batch is split, and goes on as if it had not stopped."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from llm_study.optim.schedule import linear
from llm_study.training.loop import History, Settings, Trainer, next_token_loss
from llm_study.training.progress import Progress

V, T, B = 11, 5, 12


def model(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(V, 8), nn.Dropout(dropout), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, V)).to(
        dtype
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Rows with very different numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(V, (B, T + 1), generator=generator)
    targets = ids[:, 1:].clone()
    for row in range(B):
        targets[row, (row * row + step) % (T + 1) :] = -100
    return ids[:, :-1], targets


def trainer(net: nn.Module, *, lr: float = 0.05, steps: int = 8, **changes: Any) -> Trainer:
    settings = {name: changes.pop(name) for name in Settings.__dataclass_fields__ if name in changes}
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.1)
    schedule = LambdaLR(optimizer, partial(linear, total=steps, warmup=2))
    made: dict[str, Any] = {"schedule": schedule, "settings": Settings(steps=steps, **settings), **changes}
    return Trainer(net, next_token_loss, batch, optimizer, **made)


def by_hand(net: nn.Module, *, lr: float = 0.05, steps: int = 8, clip: float | None = 1.0) -> list[float]:
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.1)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * linear(step, total=steps, warmup=2)
        ids, targets = batch(step)
        loss = F.cross_entropy(net(ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("accumulate", [1, 2, 3, 12])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_pieces_of_any_size_give_the_step_of_the_whole_batch(accumulate: int, clip: float | None) -> None:
    hand, ours = model(), model()
    losses = by_hand(hand, clip=clip)
    found = trainer(ours, accumulate=accumulate, clip=clip).run().losses
    assert found == pytest.approx(losses, rel=1e-12)
    assert losses[0] - losses[-1] > 0.05
    for a, b in zip(hand.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("clip", "step"), [(None, 1000.0), (2.0, 2.0)])
def test_a_long_gradient_is_clipped_only_where_that_is_said(clip: float | None, step: float) -> None:
    net = nn.Linear(1, 1, bias=False).double()
    before = net.weight.item()
    rows = (torch.ones(2, 1, dtype=torch.float64),)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)

    def loss(m: nn.Module, piece: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        return 1000 * m(piece[0]).sum(), len(piece[0])

    Trainer(net, loss, lambda _: rows, optimizer, settings=Settings(steps=1, clip=clip)).run()
    assert before - net.weight.item() == pytest.approx(step)


def test_a_mean_of_means_would_be_another_loss() -> None:
    """So the test above would see it."""
    _, targets = batch(0)
    counts = [int((targets[4 * i : 4 * i + 4] >= 0).sum()) for i in range(3)]
    assert max(counts) > 1.2 * min(counts)


def test_a_batch_that_cannot_be_split_is_told() -> None:
    with pytest.raises(ValueError, match=r"= 5 does not divide rows of the batch = 12"):
        trainer(model(), accumulate=5).run()


def test_targets_that_do_not_count_give_nothing() -> None:
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    none = (torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), -100))
    run = Trainer(
        net, next_token_loss, lambda step: none, torch.optim.SGD(net.parameters(), 1.0), settings=Settings(steps=1)
    )
    assert run.run().losses == [0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_half_precision_multiplies_in_bf16_and_keeps_parameters_in_float32() -> None:
    single, half = model(dtype=torch.float32), model(dtype=torch.float32)
    seen = []
    half[2].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    a, b = trainer(single).run().losses, trainer(half, precision="bf16").run().losses
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert a != b
    assert a == pytest.approx(b, rel=2e-2)


def test_precision_follows_the_device() -> None:
    assert trainer(model()).settings.precision == "float32"
    with pytest.raises(ValueError, match="precision is 'fp16' on a CPU, expected bf16 or float32"):
        trainer(model(), precision="fp16")
    net = model(dtype=torch.bfloat16)
    loss, count = next_token_loss(net, batch(0))
    assert loss.dtype == torch.float32
    assert int(count) == int((batch(0)[1] >= 0).sum())


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where: str, clip: float | None) -> None:
    net = model()

    def loss(m: nn.Module, piece: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        total, count = next_token_loss(m, piece)
        bad = total * float("nan") if where == "loss" else total + (m[4].bias * 0).abs().sqrt().sum()
        return (bad if len(run.history.losses) == 2 else total), count

    settings = Settings(steps=5, clip=clip)
    run = Trainer(net, loss, batch, torch.optim.AdamW(net.parameters()), settings=settings)
    run.step()
    run.step()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=f"step 3: the .*{where} is nan; the parameters are as before this step"):
        run.run()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert len(run.history.losses) == 2


def test_evaluation_is_called_when_it_is_due_and_sees_no_dropout() -> None:
    net, seen = model(0.5), []

    def evaluate(m: nn.Module) -> float:
        seen.append((m.training, torch.is_grad_enabled()))
        return float(len(seen))

    reports: list[Progress] = []
    history = trainer(net, eval_every=3, evaluate=evaluate, report=reports.append).run()
    assert history.evaluations == [(3, 1.0), (6, 2.0), (8, 3.0)]
    assert seen == [(False, False)] * 3
    assert [r.evaluation for r in reports] == [None, None, 1.0, None, None, 2.0, None, 3.0]
    assert [r.loss for r in reports] == history.losses
    assert [r.tokens for r in reports] == [int((batch(step)[1] >= 0).sum()) for step in range(8)]
    assert history.seconds > 0
    with pytest.raises(ValueError, match="eval_every is 1 and evaluate None"):
        trainer(model(), eval_every=1)  # before any step


def test_a_run_stops_when_evaluations_get_no_better(tmp_path: Path) -> None:
    values = [3.0, 2.0, 2.5, 1.5, 1.5, 1.6, 1.0, 0.5]

    def make() -> Trainer:
        net = model()

        def evaluate(_: nn.Module) -> float:
            return values[len(run.history.losses) - 1]

        run = trainer(net, eval_every=1, patience=2, evaluate=evaluate, folder=tmp_path)
        return run

    run = make()
    run.run()
    assert [value for _, value in run.history.evaluations] == values[:6]
    again = make()
    assert again.resume()
    assert again.finished
    assert again.history == run.history  # the seconds too
    assert again.run().losses == run.history.losses


def test_evaluations_since_the_best() -> None:
    for values, expected in [([], 0), ([1.0], 0), ([1.0, 1.0], 1), ([3.0, 1.0, 2.0, 2.0], 2), ([2.0, 1.0], 0)]:
        assert History([], list(enumerate(values))).since_best() == expected


class KilledError(Exception):
    """The process ends here."""


def killed_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KilledError

    return report


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_that_stopped_goes_on_to_the_same_losses(tmp_path: Path, step: int, precision: str) -> None:
    options: dict[str, Any] = {"eval_every": 2, "save_every": 3, "precision": precision, "accumulate": 2}
    options["evaluate"] = lambda m: float(next_token_loss(m, batch(99))[0]) + float(torch.rand(()))
    whole = model(0.3, torch.float32)
    expected = trainer(whole, **options).run()
    net = model(0.3, torch.float32)
    with pytest.raises(KilledError):
        trainer(net, folder=tmp_path, report=killed_at(step), **options).run()
    net = model(0.3, torch.float32)
    torch.manual_seed(123)  # what the new process drew before
    again = trainer(net, folder=tmp_path, **options)
    if step > 3:
        assert again.resume()
        assert len(again.history.losses) == 3
    else:
        assert not again.resume()
        torch.manual_seed(0)
        net = model(0.3, torch.float32)
        again = trainer(net, folder=tmp_path, **options)
    found = again.run()
    assert found.losses == expected.losses
    assert found.evaluations == expected.evaluations
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), net.parameters(), strict=True))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000006", "step-00000008"]


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"folder": tmp_path, "identity": {"text": "a"}}
    trainer(model(), **options).run()
    for changes, message in [
        ({"steps": 9}, "step-00000008: steps was 8 and is now 9"),
        ({"clip": 2.0}, "clip was 1.0 and is now 2.0"),
        ({"accumulate": 2}, "accumulate was 1 and is now 2"),
        ({"precision": "bf16"}, "precision was 'float32' and is now 'bf16'"),
        ({"identity": {"text": "b"}}, "text was 'a' and is now 'b'"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer(model(), **{**options, **changes}).resume()
    assert trainer(model(), **options, keep=7, save_every=2).resume()  # these change no loss
    other = nn.Sequential(nn.Embedding(V, V)).double()
    with pytest.raises(ValueError, match=r"step-00000008: 0.weight has shape \(11, 8\), expected \(11, 11\)"):
        trainer(other, **options).resume()


def test_without_a_folder_there_is_nothing_to_save_or_resume() -> None:
    run = trainer(model())
    assert not run.resume()
    with pytest.raises(ValueError, match="folder is None"):
        run.save()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"clip": 0.0}, "clip is 0.0, expected a number above 0, or None"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"precision": "fp8"}, "precision is 'fp8', expected auto, float32, bf16, fp16"),
        ({"eval_every": -1}, "eval_every is -1"),
        ({"patience": 1}, "patience is 1 and eval_every 0"),
        ({"patience": 0, "eval_every": 1}, "patience is 0"),
        ({"save_every": -1}, "save_every is -1"),
        ({"keep": 0}, "keep is 0"),
    ],
)
def test_settings_that_make_no_sense_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**{"steps": 3, **settings})
