"""A session gives the logits of one pass over the whole text: with padding, past a window, after rows change places."""

import pytest
import torch

from llm_study.generation.session import Session, end_ids, follow
from llm_study.nn.layout import lay_out_for_decoding
from tests.generation.tiny import model, prompts

every_family = pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])


@every_family
@torch.no_grad()
def test_is_one_pass_over_the_text(family: str) -> None:
    lm, text = model(family), prompts(2, 12)
    session = Session(lm, text[:, :3], room=9)
    found = [session(), *(session(tokens) for tokens in text[:, 3:].T)]
    assert torch.allclose(torch.stack(found, dim=1), lm(text)[:, 2:], rtol=1e-10, atol=1e-10)
    assert session.cache.length == 12


@every_family
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(family: str) -> None:
    lm, text = model(family), prompts(2, 8)
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
    session = Session(lm, text[:, :5], room=3, mask=mask)
    found = torch.stack([session(), *(session(tokens) for tokens in text[:, 5:].T)], dim=1)
    assert torch.allclose(found[0], lm(text[:1, 3:])[0, 1:], rtol=1e-10, atol=1e-10)
    assert torch.allclose(found[1], lm(text[1:])[0, 4:], rtol=1e-10, atol=1e-10)


@every_family
@torch.no_grad()
def test_rows_go_on_from_others(family: str) -> None:
    lm, text = model(family), prompts(3, 6)
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    session, rows = Session(lm, text[:, :4], room=2, mask=mask), torch.tensor([1, 1, 0])
    session()
    session(text[:, 4])
    session.reorder(rows)
    found = session(text[:, 5])
    for i, row in enumerate(rows):
        whole = torch.cat([text[row, :5][mask[row].sum().neg() + 4 :], text[i, 5:]])
        assert torch.allclose(found[i], lm(whole[None])[0, -1], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_is_one_pass_with_hooks_and_after_laying_out() -> None:
    lm, text, seen = model("llama"), prompts(2, 8), []
    before = lm(text)[:, 2:]
    lay_out_for_decoding(lm)
    hook = lm.model.layers[1].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    for _ in range(2):
        session = Session(lm, text[:, :3], room=5)
        found = [session(), *(session(tokens) for tokens in text[:, 3:].T)]
        assert torch.allclose(torch.stack(found, dim=1), before, rtol=1e-10, atol=1e-10)
        hook.remove()
    assert seen == [3, 1, 1, 1, 1, 1]


def test_copies_stand_one_after_the_other() -> None:
    lm, ids = model(), prompts(2, 3)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()
    one, three = Session(lm, ids, room=1, mask=mask)(), Session(lm, ids, room=1, mask=mask, copies=3)()
    assert torch.allclose(three, one.repeat_interleave(3, dim=0), rtol=1e-12, atol=1e-12)


def test_the_dtype_of_the_cache_is_that_of_the_weights() -> None:
    lm = model().bfloat16()
    session = Session(lm, prompts(1, 3), room=1)
    assert session().dtype == session.cache.keys[0].dtype == torch.bfloat16


def test_what_is_picked_sees_the_text_without_padding() -> None:
    ids, seen = torch.tensor([[9, 9, 5], [3, 4, 6]]), []

    def pick(logits: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        seen.append(text.tolist())
        return logits.argmax(-1)

    def source(tokens: torch.Tensor | None) -> torch.Tensor:
        return torch.eye(10)[[7, 8] if tokens is None else tokens - 1]

    mask = torch.tensor([[0, 0, 1], [1, 1, 1]]).bool()
    tokens = list(follow(source, pick, ids, max_new_tokens=2, mask=mask))
    assert [t.tolist() for t in tokens] == [[7, 8], [6, 7]]
    assert seen == [[[5, 5, 5], [3, 4, 6]], [[5, 5, 5, 7], [3, 4, 6, 8]]]


def test_it_ends_when_all_have_ended() -> None:
    logits = torch.eye(4)[
        torch.tensor([[1, 2, 3, 3, 0], [3, 0, 0, 0, 0]])
    ]  # row 0 ends at its third token, row 1 at its first
    steps = iter(logits.unbind(1))
    tokens = follow(
        lambda _: next(steps), lambda x, _: x.argmax(-1), torch.zeros(2, 1).long(), max_new_tokens=5, eos_id=3
    )
    assert torch.stack(list(tokens), dim=1).tolist() == [[1, 2, 3], [3, 3, 3]]


def test_ends() -> None:
    assert end_ids(0) == (0,)
    assert end_ids([3, 0]) == (3, 0)
