"""Fused functions, written out in the functions that they are made of, so that each of these has its rule.

What they give differs from the fused ones by rounding alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from lrp_rules.networks.layers import bare
from lrp_rules.recurrent import written_out

if TYPE_CHECKING:
    from collections.abc import Callable


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Return softmax(query key^T scale + mask) value."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = _masked(torch.matmul(query, key.transpose(-2, -1)) * factor, attn_mask)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    weights = torch.softmax(scores, -1) if attn_mask is None else _weights(scores)
    return torch.matmul(F.dropout(weights, dropout_p, dropout_p > 0), value)


def _weights(scores: Tensor) -> Tensor:
    """Return the softmax of scores: zeros for a query that may look at nothing."""
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return scores + mask. Where that is -inf, nothing is added: the score is replaced."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    closed = mask == -math.inf
    if mask.requires_grad or bool((mask.masked_fill(closed, 0) != 0).any()):
        scores = scores + mask.masked_fill(closed, 0)
    return scores.masked_fill(closed, -math.inf)


def multi_head_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int,  # noqa: ARG001  as torch calls it
    num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True,
    key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None, static_k: Tensor | None = None, static_v: Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return what nn.MultiheadAttention computes: (L, N, E) in and out, and the weights."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    if is_causal and attn_mask is None:
        msg = "need attn_mask if specifying the is_causal hint"
        raise RuntimeError(msg)
    length, samples = query.shape[:2]
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)  # type: ignore[assignment]
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (F.linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases, strict=True))  # type: ignore[arg-type]
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.repeat(1, samples, 1)]), torch.cat([v, bias_v.repeat(1, samples, 1)])
    q = q.reshape(length, samples * num_heads, -1).transpose(0, 1)
    k = k.reshape(k.shape[0], samples * num_heads, -1).transpose(0, 1) if static_k is None else static_k
    v = v.reshape(v.shape[0], samples * num_heads, -1).transpose(0, 1) if static_v is None else static_v
    if add_zero_attn:
        k = torch.cat([k, k.new_zeros((k.shape[0], 1, k.shape[2]))], 1)
        v = torch.cat([v, v.new_zeros((v.shape[0], 1, v.shape[2]))], 1)
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-2, -1))
    added = k.shape[1] - key.shape[0]
    if attn_mask is not None:
        scores = _masked(scores, _with(attn_mask, added, False if attn_mask.dtype == torch.bool else 0.0, invert=True))
    if key_padding_mask is not None:
        padding = _with(key_padding_mask, added, False if key_padding_mask.dtype == torch.bool else 0.0, invert=True)
        padding = padding.view(samples, 1, 1, -1).expand(-1, num_heads, -1, -1).reshape(samples * num_heads, 1, -1)
        scores = _masked(scores, padding)
    masked = not need_weights and (attn_mask is not None or key_padding_mask is not None)
    attention = F.dropout(_weights(scores) if masked else torch.softmax(scores, -1), dropout_p, training)
    out = torch.matmul(attention, v).transpose(0, 1).reshape(length, samples, -1)
    out = F.linear(out, out_proj_weight, out_proj_bias)
    shown: Tensor | None = None
    if need_weights:
        shown = attention.view(samples, num_heads, length, -1)
        shown = shown.mean(1) if average_attn_weights else shown
        shown = shown if batched else shown.squeeze(0)
    return out if batched else out.squeeze(1), shown


def _with(mask: Tensor, added: int, value: Any, *, invert: bool) -> Tensor:
    """Return a mask for keys that were added, too; True in a mask of nn.MultiheadAttention forbids."""
    mask = F.pad(mask, (0, added), value=value) if added else mask
    return ~mask if mask.dtype == torch.bool and invert else mask


def addmm(
    input: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1,
) -> Tensor:  # fmt: skip
    """Return beta input + alpha first second."""
    product = torch.matmul(first, second)
    return torch.add(input if beta == 1 else input * beta, product if alpha == 1 else product * alpha)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Return the first half, gated by the sigmoid of the second."""
    signal, gate = input.chunk(2, dim)
    return signal * torch.sigmoid(gate)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """Return the input over its norm."""
    found = input / torch.norm(input, p, dim, keepdim=True).clamp_min(eps)
    return found if out is None else out.copy_(found)


#: The functions that recurrent layers and cells call, and the modules that call them.
RECURRENT: dict[str, type[nn.Module]] = {
    "lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN,
    "lstm_cell": nn.LSTMCell, "gru_cell": nn.GRUCell, "rnn_tanh_cell": nn.RNNCell, "rnn_relu_cell": nn.RNNCell,
}  # fmt: skip
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def _recurrent(name: str) -> Callable[..., Any]:
    nonlinearity = "relu" if "relu" in name else "tanh"

    def cell(x: Tensor, hx: Any, *weights: Tensor | None) -> Any:
        given = dict(zip(_NAMES, (*weights, None, None), strict=False))
        hidden = weights[1]
        assert hidden is not None  # only biases may be
        module = bare(RECURRENT[name], given, hidden_size=hidden.shape[1], nonlinearity=nonlinearity)
        return written_out(module)(x, hx)

    def layers(x: Tensor, *args: Any) -> Any:
        packed = isinstance(args[0], Tensor) and not args[0].is_floating_point()
        sizes, hx, flat, biases, count, dropout, training, bidirectional, first = (
            (*args, False) if packed else (None, *args)
        )
        each = len(flat) // (count * (1 + bidirectional))
        names = [*_NAMES[:2], *(_NAMES[2:4] if biases else ()), *_NAMES[4:]][:each]
        suffixes = [
            f"_l{layer}{way}" for layer in range(count) for way in ("", "_reverse")[: 2 if bidirectional else 1]
        ]
        given = dict(zip([name + suffix for suffix in suffixes for name in names], flat, strict=True))
        module = bare(
            RECURRENT[name], given, bidirectional=bidirectional, batch_first=first, num_layers=count, training=training,
            dropout=dropout, nonlinearity=nonlinearity, hidden_size=flat[0].shape[0] // _GATES.get(name, 1),
            proj_size=flat[each - 1].shape[0] if "weight_hr" in names else 0,
        )  # fmt: skip
        output, state = written_out(module)(x if sizes is None else PackedSequence(x, sizes), hx)
        states = state if isinstance(state, tuple) else (state,)
        return (output if sizes is None else output.data, *states)

    return cell if name.endswith("cell") else layers


#: How many parts the weights of a layer have.
_GATES = {"lstm": 4, "gru": 3}

#: By the names of operations.
WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "multi_head_attention": multi_head_attention_forward,
    "addmm": addmm,
    "glu": glu,
    "normalize": normalize,
    **{name: _recurrent(name) for name in RECURRENT},
}
