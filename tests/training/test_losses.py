"""Every loss against its formula in float64, and its gradient against autograd on the formula, however it is cut up."""

import math
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from eecompile_training.losses import HeadTerm, attention_loss, gate_loss, head_losses, hidden_loss
from torch import Tensor

pytestmark = pytest.mark.torch
N, D, V = 11, 6, 9


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(rows: Tensor, parameters: Any) -> Tensor:
    return rows @ parameters[0].T


ROWS = [random(N, D, seed=s) for s in (1, 2, 3)]
WEIGHT, TARGETS, THEIRS = random(V, D, seed=4), torch.arange(N) % V, random(N, V, seed=5)
COLUMNS = torch.tensor([7, 2, 5, 0])


def kl(p_logits: Tensor, q_logits: Tensor, temperature: float) -> Tensor:
    """sum over rows of T^2 sum_v p (log p - log q), written out."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(p_logits / temperature, q_logits / temperature, strict=True):
        p, q = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
        total = total + (p * (p.log() - q.log())).sum()
    return total * temperature**2


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([-(z[t] - z.exp().sum().log()) for z, t in zip(logits, targets, strict=True)]).sum()


def expected(rows: list[Tensor], weight: Tensor, count: int) -> Tensor:
    """The last layer: .5 CE + .3 KL to the teacher, T 2; exit 1: .7 CE + .2 KL to the last layer's own, T 1.5; exit 2:
    1.1 KL to the teacher and .4 CE over four columns."""
    z = [r @ weight.T for r in rows]
    theirs = THEIRS.double()
    found = 0.5 * cross_entropy(z[0], TARGETS) + 0.3 * kl(theirs, z[0], 2.0)
    found = found + 0.7 * cross_entropy(z[1], TARGETS) + 0.2 * kl(z[0].detach(), z[1], 1.5)
    few, inside = z[2][:, COLUMNS], [i for i in range(N) if int(TARGETS[i]) in COLUMNS.tolist()]
    places = torch.tensor([COLUMNS.tolist().index(int(TARGETS[i])) for i in inside])
    return (found + 1.1 * kl(theirs[:, COLUMNS], few, 1.0) + 0.4 * cross_entropy(few[inside], places)) / count


def terms(rows: list[Tensor], weight: Tensor) -> list[HeadTerm]:
    chosen = weight[COLUMNS]
    return [
        HeadTerm("last", rows[0], product, (weight,), 0.5, 0.3, 2.0, of="teacher", is_own=True),
        HeadTerm("exit_1", rows[1], product, (weight,), 0.7, 0.2, 1.5, of="self"),
        HeadTerm("exit_2", rows[2], product, (chosen,), 0.4, 1.1, 1.0, columns=COLUMNS, of="teacher"),
    ]


def never(part: slice) -> Tensor:
    raise AssertionError("the last layer's logits are there already")


@pytest.mark.parametrize("chunk", [1, 4, N, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_head_losses_and_their_gradients_are_the_formulas(chunk: int, frozen: bool) -> None:
    ours = [r.clone().requires_grad_() for r in ROWS]
    weight = WEIGHT.clone().requires_grad_(not frozen)
    found = head_losses(terms(ours, weight), TARGETS, 13, own=never, teacher=lambda part: THEIRS[part], chunk=chunk)
    (3 * found.total).backward()

    exact = [r.double().requires_grad_() for r in ROWS]
    matrix = WEIGHT.double().requires_grad_()
    wanted = expected(exact, matrix, 13)
    (3 * wanted).backward()
    torch.testing.assert_close(found.total.double(), wanted, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
    if frozen:
        assert weight.grad is None
    else:
        torch.testing.assert_close(weight.grad.double(), matrix.grad, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
    assert set(found.parts) == {f"{n}.{k}" for n in ("last", "exit_1", "exit_2") for k in ("ce", "kl")}
    torch.testing.assert_close(
        found.parts["exit_1.ce"].double(), cross_entropy(exact[1] @ matrix.T, TARGETS) / 13, rtol=1e-5, atol=1e-6
    )


def test_without_the_last_layer_its_logits_are_asked_for() -> None:
    rows = ROWS[1].clone().requires_grad_()
    term = HeadTerm("exit", rows, product, (WEIGHT,), kl=1.0)
    found = head_losses([term], TARGETS, N, own=lambda part: ROWS[0][part] @ WEIGHT.T, chunk=4)
    z = [r.double() @ WEIGHT.double().T for r in (ROWS[0], ROWS[1])]
    torch.testing.assert_close(found.total.double(), kl(z[0], z[1], 1.0) / N, rtol=1e-5, atol=1e-6)


def test_no_logits_of_more_than_a_chunk_exist_at_once() -> None:
    widest = 0

    def watched(rows: Tensor, parameters: Any) -> Tensor:
        nonlocal widest
        widest = max(widest, len(rows))
        return product(rows, parameters)

    term = HeadTerm("exit", ROWS[0].clone().requires_grad_(), watched, (WEIGHT,), ce=1.0)
    head_losses([term], TARGETS, N, own=never, chunk=4).total.backward()
    assert widest == 4


def loop_hidden(each: Callable[[Tensor, Tensor], float], a: Tensor, b: Tensor, mask: Tensor) -> float:
    return sum(each(a[i, t], b[i, t]) for i in range(2) for t in range(3) if mask[i, t]) / 7


def test_hidden_losses_are_the_formulas() -> None:
    a, b, mask = random(2, 3, D), random(2, 3, D, seed=1), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()

    def cosine(x: Tensor, y: Tensor) -> float:
        x, y = x.double(), y.double()
        return 1 - float((x * y).sum() / (math.sqrt(float((x * x).sum())) * math.sqrt(float((y * y).sum()))))

    def squares(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).square().sum()) / D

    assert float(hidden_loss(a, b, "cosine", mask, 7)) == pytest.approx(loop_hidden(cosine, a, b, mask), rel=1e-5)
    assert float(hidden_loss(a, b, "mse", mask, 7)) == pytest.approx(loop_hidden(squares, a, b, mask), rel=1e-5)


def test_attention_and_gate_losses_are_the_formulas() -> None:
    a, b = torch.softmax(random(2, 4, 3, 3), -1), torch.softmax(random(2, 4, 3, 3, seed=1), -1)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    wanted = sum(
        float((a[i, h, t].double() - b[i, h, t].double()).square().sum()) / 4
        for i in range(2) for h in range(4) for t in range(3) if mask[i, t]
    ) / 5  # fmt: skip
    assert float(attention_loss(a, b, mask, 5)) == pytest.approx(wanted, rel=1e-5)
    logit, right = random(6), torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    p = [1 / (1 + math.exp(-float(z))) for z in logit]
    wanted = -sum(math.log(q) if r else math.log(1 - q) for q, r in zip(p, right, strict=True)) / 9
    assert float(gate_loss(logit, right, 9)) == pytest.approx(wanted, rel=1e-5)
