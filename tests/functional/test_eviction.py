"""What the rules of forgetting keep, against plain loops; and what forgetting costs at most."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import eviction as E
from llm_study.functional.attention import attention_reference, attention_weights

law = settings(max_examples=60, derandomize=True, deadline=None)


def random_weights(B: int, H: int, T: int, S: int, seed: int = 0) -> Tensor:
    return (
        torch.randn(B, H, T, S, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).softmax(-1)
    )


def real_mask(B: int, S: int, seed: int) -> Tensor:
    """Return a mask with padding on the left of some rows."""
    pads = torch.randint(S, (B, 1), generator=torch.Generator().manual_seed(seed))
    return torch.arange(S) >= pads


sizes = {"B": st.integers(1, 2), "K": st.integers(1, 3), "S": st.integers(1, 9), "seed": st.integers(0, 2**32)}


@given(**sizes, group=st.integers(1, 3), T=st.integers(0, 4))
@law
def test_accumulated_attention_is_its_sum(B: int, K: int, S: int, seed: int, group: int, T: int) -> None:
    weights = random_weights(B, K * group, T, S, seed)
    found = E.accumulated_attention(weights, n_kv_heads=K)
    for b, g, j in ((b, g, j) for b in range(B) for g in range(K) for j in range(S)):
        heads = range(g * group, (g + 1) * group)
        assert found[b, g, j].item() == pytest.approx(sum(weights[b, h, i, j].item() for h in heads for i in range(T)))


def test_bfloat16_is_added_up_in_float32() -> None:
    weights = torch.full((1, 1, 1000, 2), 0.5, dtype=torch.bfloat16)
    assert E.accumulated_attention(weights, n_kv_heads=1).tolist() == [[[500.0, 500.0]]]


@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=9), n=st.integers(1, 10))
@law
def test_largest_are_the_largest_and_earlier_of_equal(values: list[int], n: int) -> None:
    expected = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:n])
    assert E.largest(torch.tensor(values).float(), n).tolist() == expected


@given(**sizes, budget=st.integers(1, 10), data=st.data())
@law
def test_heavy_hitters_by_a_loop(B: int, K: int, S: int, seed: int, budget: int, data: st.DataObject) -> None:
    recent = data.draw(st.integers(0, budget))
    scores = random_weights(B, K, 1, S, seed)[:, :, 0]
    real = real_mask(B, S, seed)
    kept = E.heavy_hitters(scores, budget=budget, recent=recent, real=real)
    assert torch.equal(kept, E.heavy_hitters(scores, budget=budget, recent=recent, real=real[:, None].expand(B, K, S)))
    for b, g in ((b, g) for b in range(B) for g in range(K)):
        late = list(range(max(0, S - recent), S))
        others = [j for j in range(S) if j not in late]
        others.sort(key=lambda j: (not real[b, j], -scores[b, g, j] if real[b, j] else j))
        assert kept[b, g].tolist() == sorted(late + others[: max(0, min(budget, S) - len(late))])


@given(**sizes, sinks=st.integers(0, 4), more=st.integers(1, 5))
@law
def test_sinks_and_recent_by_a_loop(B: int, K: int, S: int, seed: int, sinks: int, more: int) -> None:
    real = real_mask(B, S, seed)
    kept = E.sinks_and_recent(real, budget=sinks + more, sinks=sinks)
    for b in range(B):
        first = [j for j in range(S) if real[b, j]][:sinks]
        others = [j for j in reversed(range(S)) if j not in first]
        assert kept[b].tolist() == sorted((first + others)[: sinks + more])
    each_head = E.sinks_and_recent(real[:, None].expand(B, K, S), budget=sinks + more, sinks=sinks)
    assert torch.equal(each_head, kept[:, None].expand(each_head.shape))


@given(**sizes, group=st.integers(1, 2), kernel=st.sampled_from([1, 3, 5]), data=st.data())
@law
def test_observation_votes_by_a_loop(
    B: int, K: int, S: int, seed: int, group: int, kernel: int, data: st.DataObject
) -> None:
    T = data.draw(st.integers(1, S))
    window = data.draw(st.integers(1, T))
    weights = random_weights(B, K * group, T, S, seed)
    votes = E.observation_votes(weights, n_kv_heads=K, window=window, kernel=kernel)
    assert votes.shape == (B, K, S - window)
    for b, g in ((b, g) for b in range(B) for g in range(K)):
        heads = range(g * group, (g + 1) * group)
        raw = [sum(weights[b, h, i, j] for h in heads for i in range(T - window, T)) for j in range(S - window)]
        for j in range(S - window):
            near = raw[max(0, j - kernel // 2) : j + kernel // 2 + 1]
            assert votes[b, g, j].item() == pytest.approx(float(max(near)))


def test_snapkv_keeps_its_window_and_what_it_voted_for() -> None:
    votes = torch.tensor([[[0.1, 0.9, 0.2, 0.3]], [[0.5, 0.4, 0.3, 0.2]]])
    assert E.snapkv_select(votes, budget=4, window=2).tolist() == [[[1, 3, 4, 5]], [[0, 1, 4, 5]]]
    assert E.snapkv_select(votes, budget=2, window=2).tolist() == [[[4, 5]], [[4, 5]]]
    real = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    assert E.snapkv_select(votes, budget=4, window=2, real=real).tolist() == [[[1, 3, 4, 5]], [[2, 3, 4, 5]]]


# --- what is lost


@given(**sizes, group=st.integers(1, 2), data=st.data())
@law
def test_the_output_moves_by_the_evicted_mass(
    B: int, K: int, S: int, seed: int, group: int, data: st.DataObject
) -> None:
    torch.manual_seed(seed % 2**31)
    q = 2 * torch.randn(B, K * group, 3, 4, dtype=torch.float64)
    k, v = torch.randn(2, B, K, S, 4, dtype=torch.float64).unbind()
    n = data.draw(st.integers(1, S))
    kept = torch.rand(B, K, S).argsort(-1)[..., :n].sort(-1).values
    mask = torch.zeros(B, K, 1, S, dtype=torch.bool).scatter(3, kept[:, :, None], True).repeat_interleave(group, 1)
    weights = attention_weights(q, k)
    mass = E.evicted_mass(weights, kept)
    assert torch.allclose(mass, (weights * ~mask).sum(-1))
    full, less = attention_reference(q, k, v), attention_reference(q, k, v, mask=mask)
    values = v.repeat_interleave(group, dim=1)
    gone = (weights * ~mask) @ values  # ε times the mean of what is gone
    mean_kept = (weights * mask) @ values / (1 - mass)[..., None]
    assert torch.allclose(full - less, gone - mass[..., None] * mean_kept)
    bound = 2 * mass * values.norm(dim=-1).amax(-1)[..., None]
    assert ((full - less).norm(dim=-1) <= bound + 1e-12).all()


# --- bad input


def test_budgets_that_make_no_sense_are_refused() -> None:
    scores, real = torch.zeros(1, 1, 4), torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="budget is 2, expected at least 3: it includes the 3 latest"):
        E.heavy_hitters(scores, budget=2, recent=3)
    with pytest.raises(ValueError, match="budget is 0, expected at least 1"):
        E.heavy_hitters(scores, budget=0, recent=0)
    with pytest.raises(ValueError, match="recent is -1, expected at least 0"):
        E.heavy_hitters(scores, budget=2, recent=-1)
    with pytest.raises(ValueError, match="budget is 4, expected at least 5: the 4 sinks and at least the latest token"):
        E.sinks_and_recent(real, budget=4, sinks=4)
    with pytest.raises(ValueError, match="sinks is -1, expected at least 0"):
        E.sinks_and_recent(real, budget=4, sinks=-1)
    with pytest.raises(ValueError, match="budget is 1, expected at least 2: it includes the window of 2"):
        E.snapkv_select(scores, budget=1, window=2)
    with pytest.raises(ValueError, match="window is 0, expected at least 1"):
        E.snapkv_select(scores, budget=1, window=0)
    with pytest.raises(ValueError, match="number of slots to keep is 0, expected at least 1"):
        E.largest(scores, 0)


@pytest.mark.parametrize(("window", "message"), [(0, "window is 0"), (3, "queries T is 2, expected at least 3")])
def test_windows_that_do_not_fit_are_refused(window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        E.observation_votes(torch.zeros(1, 1, 2, 4), n_kv_heads=1, window=window)


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_even_kernels_are_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match=f"kernel is {kernel}, expected an odd number of at least 1"):
        E.observation_votes(torch.zeros(1, 1, 2, 4), n_kv_heads=1, window=1, kernel=kernel)


def test_shapes_that_do_not_fit_are_refused() -> None:
    weights = torch.zeros(2, 4, 1, 3)
    with pytest.raises(ValueError, match="n_kv_heads = 3 does not divide heads of weights = 4"):
        E.accumulated_attention(weights, n_kv_heads=3)
    with pytest.raises(ValueError, match="heads of kept = 3 does not divide heads of weights = 4"):
        E.evicted_mass(weights, torch.zeros(2, 3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="batch size of kept is 1, batch size of weights is 2"):
        E.evicted_mass(weights, torch.zeros(1, 2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape of real is \(2, 1, 4\), shape \(B, K, S\) is \(2, 1, 3\)"):
        E.heavy_hitters(torch.zeros(2, 1, 3), budget=1, recent=0, real=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"real has dtype torch\.float32, expected torch\.bool"):
        E.sinks_and_recent(torch.ones(1, 3), budget=2, sinks=1)
