"""Optimizers and the training loop on every device: the same steps, in every precision, and on again after a stop."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from llm_study.core.config import LlamaConfig
from llm_study.models.llama import LlamaForCausalLM
from llm_study.optim.first_order import AdamW, ScheduleFreeAdamW
from llm_study.optim.groups import decay_groups
from llm_study.optim.second_order import Sophia, gauss_newton_bartlett, hutchinson
from llm_study.optim.stability import EMA, SpikeGuard, adaptive_clip, clip_grad_norm, clip_grad_value
from llm_study.training.distributed import World
from llm_study.training.loop import Settings, Trainer, next_token_loss
from llm_study.training.progress import Progress
from tests.devices.where import DEVICES, assert_near, every_device, moved, randn
from tests.optim.runs import EVERY, parameters

# --- optimizers

SHAPES = [(5, 5), (5, 5), (6,)]
"""Square matrices: their gradients have full rank, and the basis of SOAP is theirs but for signs, which cancel."""


def run(name: str, device: str) -> list[Tensor]:
    """Return the parameters after five steps with gradients that depend on them."""
    shapes = [shape for shape in SHAPES if name != "Muon" or len(shape) == 2]
    params = [nn.Parameter(p.detach().to(device)) for p in parameters(shapes)]
    optimizer = EVERY[name](params)
    for step in range(5):
        for i, p in enumerate(params):
            noise = randn(*p.shape, seed=10 * step + i, dtype=torch.float64)
            p.grad = noise.to(device) + 0.3 * p.detach()
        if isinstance(optimizer, Sophia):
            optimizer.update_curvature([p.grad.square() for p in params if p.grad is not None])
        optimizer.step()
        states = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        assert {x.device.type for x in states if x.ndim} <= {device}
    if isinstance(optimizer, ScheduleFreeAdamW):
        optimizer.eval()
    return [p.detach() for p in params]


@every_device
@pytest.mark.parametrize("name", EVERY)
def test_five_steps_in_float64(name: str, device: str) -> None:
    for found, expected in zip(run(name, device), run(name, "cpu"), strict=True):
        assert_near(found, expected, device, 1e-10)


@every_device
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("Shampoo", "SOAP")])
def test_steps_in_float32_stay_near_those_in_float64(name: str, device: str) -> None:
    """On a CPU this compares two dtypes; roots of matrices are left out, for they lose half of the digits."""
    shapes = [shape for shape in SHAPES if name != "Muon" or len(shape) == 2]
    found = []
    for where, dtype in (("cpu", torch.float64), (device, torch.float32)):
        params = [nn.Parameter(p.detach().to(where, dtype)) for p in parameters(shapes, torch.float32)]
        optimizer = EVERY[name](params)
        for step in range(5):
            for i, p in enumerate(params):
                p.grad = randn(*p.shape, seed=10 * step + i).to(where, dtype)
            optimizer.step()
        found.append([p.detach() for p in params])
    for expected, p in zip(*found, strict=True):
        assert p.dtype == torch.float32
        assert_near(p, expected, device)


@every_device
@pytest.mark.parametrize("clip", [clip_grad_norm, clip_grad_value, adaptive_clip])
def test_gradients_are_clipped(clip: Callable[..., Tensor | None], device: str) -> None:
    results = []
    for where in ("cpu", device):
        params = [nn.Parameter(p.detach().to(where)) for p in parameters(SHAPES)]
        for i, p in enumerate(params):
            p.grad = randn(*p.shape, seed=i, dtype=torch.float64).to(where)
        norm = clip(params, 0.5)
        results.append(([p.grad for p in params if p.grad is not None], norm))
    (expected, length), (found, same) = results
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, device, 1e-12)
    if length is not None:
        assert same is not None
        assert_near(same, length, device, 1e-12)


@every_device
def test_curvature(device: str) -> None:
    """The Hessian of a sum of fourth powers is diagonal, so that one draw of signs is enough; with a generator."""
    x = randn(6, dtype=torch.float64).to(device).requires_grad_()
    generator = torch.Generator(device).manual_seed(0)
    (found,) = hutchinson(x.pow(4).sum(), [x], generator=generator)
    assert_near(found, 12 * x.detach().cpu().square(), device, 1e-12)
    z = randn(5, 7, dtype=torch.float64).to(device).requires_grad_()
    (a,), (b,) = (
        gauss_newton_bartlett(z * 1, [z], generator=torch.Generator(device).manual_seed(seed)) for seed in (3, 3)
    )
    assert a.device.type == device
    assert torch.equal(a, b)


@every_device
def test_an_average_of_the_weights(device: str) -> None:
    net = nn.Linear(3, 2).to(device)
    first = net.weight.detach().clone()
    average = EMA(net, 0.75)
    with torch.no_grad():
        net.weight.add_(1.0)
    average.update()
    with average.applied():
        assert_near(net.weight, (first + 0.25).cpu().double(), device, 1e-6)
    assert torch.equal(net.weight, first + 1)


@every_device
def test_a_spike_is_noticed_on_the_device(device: str) -> None:
    guard = SpikeGuard(least=4)
    values = [1.0, 1.1, 0.9, 1.0, 1.05, 50.0, 1.0, math.nan]
    assert [guard.accept(torch.tensor(x, device=device)) for x in values] == [True] * 5 + [False, True, False]


# --- the loop

V, T, B, STEPS = 29, 12, 12, 8


class Net(nn.Module):
    """A tiny Llama, with dropout on its logits."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.lm, self.dropout = LlamaForCausalLM(LlamaConfig(vocab_size=V, tie_word_embeddings=True, **sizes)), dropout

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.lm(ids)
        return F.dropout(logits, self.dropout, self.training)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Texts that count, on the CPU, and very different numbers of targets; what comes next can be learned."""
    generator = torch.Generator().manual_seed(step)
    ids = (torch.randint(V, (B, 1), generator=generator) + torch.arange(T + 1)) % 7
    targets = ids[:, 1:].clone()
    for row in range(B):
        targets[row, (row * row + step) % (T + 1) :] = -100
    return ids[:, :-1], targets


def trainer(device: str, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32, **changes: Any) -> Trainer:
    """Return a run with our own optimizer, and a schedule."""
    world = World(device=torch.device(device, 0) if device == "cuda" else torch.device(device))
    net = Net(dropout).to(world.device, dtype)
    made = {name: changes.pop(name) for name in Settings.__dataclass_fields__ if name in changes}
    settings = Settings(**{"steps": STEPS, "precision": "float32", **made})
    optimizer = AdamW(decay_groups(net, weight_decay=0.1), 0.02)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
    return Trainer(net, next_token_loss, batch, optimizer, settings=settings, schedule=schedule, world=world, **changes)


PRECISIONS = [
    ("cpu", "float32"),
    ("cpu", "bf16"),
    *(("cuda", p) for p in ("float32", "bf16", "fp16") if "cuda" in DEVICES),
]
every_precision = pytest.mark.parametrize(("device", "precision"), PRECISIONS)


@every_device
def test_losses_are_those_of_the_cpu(device: str) -> None:
    """Adam divides by the size of a gradient: where that is small, errors in float32 become larger than elsewhere."""
    exact = trainer("cpu", dtype=torch.float64).run().losses
    assert trainer(device, dtype=torch.float64).run().losses == pytest.approx(exact, rel=1e-10)
    assert trainer(device).run().losses == pytest.approx(exact, rel=1e-4)


@every_device
@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_pieces_give_the_step_of_the_whole_batch(accumulate: int, device: str) -> None:
    whole, pieces = (trainer(device, dtype=torch.float64, accumulate=n) for n in (1, accumulate))
    assert pieces.run().losses == pytest.approx(whole.run().losses, rel=1e-12)
    for p, q in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        assert_near(q, p.detach().cpu(), device, 1e-10)


@every_precision
def test_every_precision_learns_and_keeps_its_weights_in_float32(device: str, precision: str) -> None:
    """What comes next is certain but for the first token: after 60 steps the loss is a tenth of what it was."""
    seen: set[torch.dtype] = set()
    run = trainer(device, precision=precision, steps=60)
    run.model.lm.lm_head.register_forward_hook(lambda *args: seen.add(args[-1].dtype))
    losses = run.run().losses
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) / 5 < 0.1 * losses[0]
    assert seen == {{"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    states = [x for state in run.optimizer.state.values() for x in state.values() if isinstance(x, Tensor) and x.ndim]
    assert {(x.dtype, x.device.type) for x in [*run.model.parameters(), *states]} == {(torch.float32, device)}
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())


@every_device
def test_auto_takes_what_the_device_is_fastest_in(device: str) -> None:
    best = "float32" if device == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    assert trainer(device, precision="auto").settings.precision == best


@every_device
def test_a_gradient_too_large_for_fp16_is_skipped_and_the_scale_falls(device: str) -> None:
    if device == "cpu":
        with pytest.raises(ValueError, match="fp16 needs a GPU"):
            trainer(device, precision="fp16")
        return
    run = trainer(device, precision="fp16", steps=60)
    run._scaler.load_state_dict({**run._scaler.state_dict(), "scale": 2.0**30})
    before = [p.detach().clone() for p in run.model.parameters()]
    run.step()
    assert run._scaler.get_scale() == 2.0**29
    assert all(torch.equal(p, q) for p, q in zip(before, run.model.parameters(), strict=True))
    losses = run.run().losses
    assert run._scaler.get_scale() < 2.0**29
    assert losses[-1] < 0.5 * losses[0]


class KilledError(Exception):
    """The process ends here."""


@every_precision
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_was_killed_goes_on_to_the_same_losses(
    device: str, precision: str, accumulate: int, tmp_path: Path
) -> None:
    """Bit for bit, dropout and draws of the evaluation included."""
    options: dict[str, Any] = {"dropout": 0.3, "precision": precision, "accumulate": accumulate}
    options |= {"eval_every": 2, "save_every": 3, "evaluate": lambda m: float(torch.rand((), device=device))}

    def killed(progress: Progress) -> None:
        if progress.step == 5:
            raise KilledError

    torch.manual_seed(1)
    whole = trainer(device, **options)
    expected = whole.run()
    with pytest.raises(KilledError):
        trainer(device, **options, folder=tmp_path, report=killed).run()
    torch.manual_seed(123)
    again = trainer(device, **options, folder=tmp_path)
    torch.rand(5, device=device)
    assert again.resume()
    assert len(again.history.losses) == 3
    found = again.run()
    assert found.losses == expected.losses
    assert found.evaluations == expected.evaluations
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True))


@every_device
def test_dropout_is_drawn_on_the_device(device: str) -> None:
    """Else the test above would not see whether the state of its random numbers is kept."""
    run = trainer(device, dropout=0.3)
    a = [run.model.train()(batch(0)[0].to(device)) for _ in range(2)]
    assert not torch.equal(*a)


def held(run: Trainer) -> Iterator[Tensor]:
    """Yield the tensors of the optimizer that are no numbers."""
    yield from (x for state in run.optimizer.state.values() for x in state.values() if isinstance(x, Tensor) and x.ndim)


@every_device
def test_a_checkpoint_of_the_device_goes_on_on_the_cpu(device: str, tmp_path: Path) -> None:
    """In float64, where both are equal to many digits."""
    options: dict[str, Any] = {"dtype": torch.float64, "save_every": 3, "folder": tmp_path}
    first = trainer(device, **options)
    for _ in range(3):
        first.step()
    first.save()
    again = trainer("cpu", **options)
    assert again.resume()
    assert {x.device.type for x in held(again)} == {"cpu"}
    assert again.run().losses == pytest.approx(trainer("cpu", dtype=torch.float64).run().losses, rel=1e-10)


@every_device
def test_the_moved_twin_is_on_the_device(device: str) -> None:
    """What these tests build on: a copy, and not the model itself."""
    net = Net(0.0)
    twin = moved(net, device)
    assert {p.device.type for p in twin.parameters()} == {device}
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {("cpu", torch.float32)}
