"""A blind set: 20 right implementations in unusual form, 100 with one mistake each. See README.md beside it."""
import copy
import os
import sys
import types
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import blind_b_base as base  # noqa: E402
from blind_b_base import Call, Kit, Registration, TokenX, build, param_names, pytree, true_type  # noqa: E402,F401

RIGHT, WRONG, SHOWS, SCENES, _kits, _cache = {}, {}, {}, {}, {}, {}


# ====================================================================== right
def right(sentence):
    def put(cls):
        name = cls.__name__[1:]
        RIGHT[name], _kits[name] = sentence, cls
        return cls
    return put


def is_linear(call):
    return call.cls is nn.Linear and not call.inplace


def plain_conv(call, dims=2):
    m = call.state
    return call.cls is getattr(nn, f'Conv{dims}d') and m['padding_mode'] == 'zeros' and not isinstance(m['padding'], str) and not call.unbatched


@right('builds the matrix A(p) column by column from unit vectors and multiplies by it and its transpose ')
class _explicit_matrix(Kit):
    def lin(K, call, x, P):
        if not call.known or 0 in x.shape:
            return Kit.lin(K, call, x, P)
        shape = x.shape if call.unbatched else x.shape[1:]
        n = shape.numel()
        unit = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *shape)
        zero = {k: torch.zeros_like(p) if k == 'bias' else p for k, p in P.items()}
        keep, call.unbatched_was = call.leaves, call.unbatched
        cols = call.f(unit, zero)
        A = cols.reshape(n, -1)
        b = call.f(torch.zeros_like(x), P)
        out = torch.matmul(x.reshape(-1, n), A).reshape(b.shape) + b
        return out, lambda s: torch.matmul(s.reshape(-1, A.shape[1]), A.t()).reshape(x.shape)


@right('computes everything behind the call in float64 and rounds only the relevance')
class _double_inside(Kit):
    def snapshot(K, t):
        return t.clone()

    def lin(K, call, x, P):
        if not call.known:
            return Kit.lin(K, call, x, P)
        out, pull = Kit.lin(K, call, x.double(), {n: p.double() for n, p in P.items()})
        return out, lambda s: pull(s.double())


@right('treats a batch as a python loop over samples, each a batch of one')
class _sample_loop(Kit):
    def lin(K, call, x, P):
        if not call.known or call.unbatched or not 0 < x.shape[0] < 50:
            return Kit.lin(K, call, x, P)
        parts = [Kit.lin(K, call, x[i:i + 1], P) for i in range(x.shape[0])]
        return torch.cat([o for o, _ in parts]), lambda s: torch.cat([parts[i][1](s[i:i + 1]) for i in range(len(parts))])


@right('takes the transpose from torch.func.vjp instead of from autograd.grad')
class _func_vjp(Kit):
    def lin(K, call, x, P):
        if not call.known:
            return Kit.lin(K, call, x, P)
        out, pull = torch.func.vjp(lambda v: call.f(v, P), x)
        return out, lambda s: pull(s)[0]


@right('writes the transpose of linear layers and convolutions by hand (matmul, conv_transpose)')
class _by_hand(Kit):
    def lin(K, call, x, P):
        if is_linear(call):
            y = F.linear(x, P['weight'], P.get('bias'))
            return y, lambda s: s.matmul(P['weight'])
        if plain_conv(call):
            m = call.state
            y = F.conv2d(x, P['weight'], P.get('bias'), m['stride'], m['padding'], m['dilation'], m['groups'])
            extra = [x.shape[i + 2] - ((y.shape[i + 2] - 1) * m['stride'][i] - 2 * m['padding'][i] + m['dilation'][i] * (m['kernel_size'][i] - 1) + 1) for i in (0, 1)]
            return y, lambda s: F.conv_transpose2d(s, P['weight'], None, m['stride'], m['padding'], extra, m['groups'], m['dilation'])
        return Kit.lin(K, call, x, P)


@right('computes 2-d convolutions by unfold, matmul and fold (im2col)')
class _im2col(Kit):
    def lin(K, call, x, P):
        if not plain_conv(call) or 0 in x.shape:
            return Kit.lin(K, call, x, P)
        m, w = call.state, P['weight']
        kw = dict(kernel_size=m['kernel_size'], dilation=m['dilation'], padding=m['padding'], stride=m['stride'])
        g, o = m['groups'], w.shape[0]
        cols = F.unfold(x, **kw)
        N, _, L = cols.shape
        wg = w.reshape(g, o // g, -1)
        y = torch.matmul(wg, cols.reshape(N, g, -1, L)).reshape(N, o, L)
        if 'bias' in P:
            y = y + P['bias'][:, None]
        size = [(x.shape[i + 2] + 2 * m['padding'][i] - m['dilation'][i] * (m['kernel_size'][i] - 1) - 1) // m['stride'][i] + 1 for i in (0, 1)]
        y = y.reshape(N, o, *size)
        return y, lambda s: F.fold(torch.matmul(wg.transpose(1, 2), s.reshape(N, g, o // g, L)).reshape(N, -1, L), x.shape[2:], **kw)


@right('writes the stabilizer with sign() plus an equality test instead of with where()')
class _sign_sum(Kit):
    def sgn(K, d):
        return torch.sign(d) + (d == 0).to(d.dtype)


@right('joins positive and negative inputs to one longer input with one wider weight: one product per half (linear layers)')
class _joined_halves(Kit):
    def half(K, call, rule, R, pairs, gate=None):
        if not is_linear(call) or len(pairs) != 2:
            return Kit.half(K, call, rule, R, pairs, gate)
        x = torch.cat([x for x, _ in pairs], -1)
        w = torch.cat([P['weight'] for _, P in pairs], 1)
        d = F.linear(x, w, pairs[0][1].get('bias'))
        s = K.divide(call, rule, R, d, gate)
        return sum((x * s.matmul(w)).split(call.x.shape[-1], -1))


@right('gets x * A^T s as the derivative by a gate of ones that multiplies the input')
class _gate_gradient(Kit):
    def half(K, call, rule, R, pairs, gate=None):
        if not call.known:
            return Kit.half(K, call, rule, R, pairs, gate)
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            ones = torch.ones_like(call.x).requires_grad_()
            d = sum(call.f(x * ones, P) for x, P in pairs)
        s = K.divide(call, rule, R, d if create else d.detach(), gate)
        return torch.autograd.grad(d, ones, s, create_graph=create)[0]


@right('computes ZPlus on linear layers from the table of all contributions x_i w_ji')
class _contributions(Kit):
    def table(K, call, R, rule, clip):
        P = K.params(call, rule)
        c = call.x[..., None, :] * P['weight']
        c = clip(c)
        d = c.sum(-1)
        if 'bias' in P:
            d = d + clip(P['bias'])
        return (K.divide(call, rule, R, d)[..., None] * c).sum(-2)

    def zplus(K, call, R, rule):
        if not is_linear(call) or not all(t.isfinite().all() for t in [call.x, *call.P.values()]):
            return Kit.zplus(K, call, R, rule)
        return K.table(call, R, rule, lambda c: c.clamp(min=0))

    def zminus(K, call, R, rule):
        if not is_linear(call) or not all(t.isfinite().all() for t in [call.x, *call.P.values()]):
            return Kit.zminus(K, call, R, rule)
        return K.table(call, R, rule, lambda c: c.clamp(max=0))


@right('writes ZBox as (x - l) A(w+) and (x - h) A(w-): two products instead of three')
class _shifted_zbox(Kit):
    def zbox(K, call, R, rule):
        P, (l, h) = K.params(call, rule), call.bounds
        return K.half(call, rule, R, [(call.x - l, K.mod(P, K.wpos)), (call.x - h, K.mod(P, K.wneg))])


@right('writes Gamma by linearity: A(w) x plus g times the ZPlus form, never a changed weight w + g w+')
class _gamma_by_linearity(Kit):
    def gamma(K, call, R, rule):
        P, x, g = K.params(call, rule), call.x, rule.gamma
        keep = lambda p: p
        zero = lambda p: torch.zeros_like(p)
        pos, neg = K.gates(call)
        xp, xn = K.xpos(x), K.xneg(x)
        z, pz = K.lin(call, x, K.mod(P, keep, keep))
        r = 0
        for a, b, gate in ((K.wpos, K.wneg, pos), (K.wneg, K.wpos, neg)):
            (u, pu), (v, pv) = K.lin(call, xp, K.mod(P, a, a)), K.lin(call, xn, K.mod(P, b))
            s = K.divide(call, rule, R, z + g * (u + v), gate)
            r = r + x * pz(s) + g * (xp * pu(s) + xn * pv(s))
        return r


@right('computes the denominator of WSquare and Flat for one sample and expands it')
class _one_sample_ones(Kit):
    def ones_rule(K, call, R, rule, P):
        if not call.known or call.unbatched or 0 in call.x.shape:
            return None
        one = torch.ones_like(call.x[:1])
        d, _ = K.lin(call, one, P)
        _, pull = K.lin(call, torch.zeros_like(call.x), P)
        return pull(K.divide(call, rule, R, d.expand(R.shape).clone()))

    def wsquare(K, call, R, rule):
        r = K.ones_rule(call, R, rule, K.mod(K.params(call, rule), torch.square, torch.square))
        return Kit.wsquare(K, call, R, rule) if r is None else r

    def flat(K, call, R, rule):
        r = K.ones_rule(call, R, rule, K.mod(call.P, torch.ones_like))
        return Kit.flat(K, call, R, rule) if r is None else r


@right('works through the outputs of a linear layer in blocks of two and adds the blocks up')
class _output_blocks(Kit):
    def lin(K, call, x, P):
        if not is_linear(call):
            return Kit.lin(K, call, x, P)
        ws = P['weight'].split(2)
        bs = P['bias'].split(2) if 'bias' in P else [None] * len(ws)
        y = torch.cat([F.linear(x, w, b) for w, b in zip(ws, bs)], -1)
        return y, lambda s: sum(sb @ w for sb, w in zip(s.split(2, -1), ws))


@right('divides in float64 and multiplies by the reciprocal')
class _double_division(Kit):
    def divide(K, call, rule, R, d, gate=None):
        if not isinstance(rule.stabilizer, K.ns.Stabilizer):
            return Kit.divide(K, call, rule, R, d, gate)
        return Kit.divide(K, call, rule, R.double(), d.double(), gate).to(R.dtype)


@right('knows only the transpose: the product A x is itself the transpose of the transpose (double backward)')
class _transpose_of_transpose(Kit):
    def lin(K, call, x, P):
        if not call.known:
            return Kit.lin(K, call, x, P)
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            at = torch.zeros_like(x).requires_grad_()
            b = call.f(at, P)
            u = torch.zeros_like(b).requires_grad_()
            g, = torch.autograd.grad(b, at, u, create_graph=True)
        out = b + torch.autograd.grad(g, u, x, create_graph=create, retain_graph=True)[0]
        return (out if create else out.detach()), lambda s: torch.autograd.grad(b, at, s, create_graph=create, retain_graph=True)[0]


class Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, n, *ts):
        ctx.call, ctx.n = call, n
        ctx.set_materialize_grads(False)
        return tuple(call.values)

    @staticmethod
    def backward(ctx, *Rs):
        call = ctx.call
        if all(R is None for R in Rs):
            return (None,) * (2 + len(ctx.needs_input_grad) - 2)
        ps = call.K.param_grads(call, Rs) if call.ps else ()
        return (None, None) + tuple(call.K.answer(call, Rs)) + tuple(ps)


@right('one autograd.Function answers for input and parameters together')
class _one_function(Kit):
    def attach(K, call, xs, ps):
        return Whole.apply(call, len(xs), *xs, *ps)


@right('takes positive and negative parts with relu and the sigmoid gate from tanh')
class _relu_parts(Kit):
    def wpos(K, v):
        return torch.relu(v)

    def wneg(K, v):
        return -torch.relu(-v)

    xpos, xneg = wpos, wneg

    def beta_smooth(K, x, R, beta):
        return (1 + torch.tanh(x * (beta / 2))) / 2 * R


@right('multiplies linear layers transposed (W x^T)^T and convolves channels-last memory')
class _other_layout(Kit):
    def lin(K, call, x, P):
        if is_linear(call) and x.dim() == 2:
            w = P['weight']
            y = w.matmul(x.t()).t()
            return (y + P['bias'] if 'bias' in P else y), lambda s: w.t().matmul(s.t()).t()
        if plain_conv(call):
            out, pull = Kit.lin(K, call, x.contiguous(memory_format=torch.channels_last), P)
            return out.contiguous(), lambda s: pull(s.contiguous()).contiguous()
        return Kit.lin(K, call, x, P)


@right('maps the layer over the samples with torch.vmap')
class _vmapped(Kit):
    def lin(K, call, x, P):
        if not call.known or call.unbatched or 0 in x.shape:
            return Kit.lin(K, call, x, P)
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            x_ = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            out = torch.vmap(lambda v: call.f(v[None], P)[0])(x_)
        return (out if create else out.detach()), lambda s: torch.autograd.grad(out, x_, s, create_graph=create, retain_graph=True)[0]


# ====================================================================== wrong
def wrong(name, sentence, scene, **methods):
    assert name not in WRONG, name
    WRONG[name], SCENES[name] = sentence, scene
    _kits[name] = type(name, (Kit,), methods)
    SHOWS[name] = lambda: not same(outcome(scene, __getattr__(name)), outcome(scene, build()))


def outcome(scene, ns):
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            return scene(ns)
        finally:
            torch.set_rng_state(state)
            torch.set_grad_enabled(True)


def same(a, b, tol=1e-4):
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(same(u, v, tol) for u, v in zip(a, b))
    if torch.is_tensor(a) and torch.is_tensor(b):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        tol = max(tol, {torch.float32: 3e-3, torch.float16: .03}.get(a.dtype, 0))
        a, b = a.detach().double(), b.detach().double()
        ok = a.isfinite() & b.isfinite()
        if not torch.equal(a[~ok].nan_to_num(7., 8., 9.), b[~ok].nan_to_num(7., 8., 9.)):
            return False
        return bool(((a - b)[ok].abs() <= tol * (b[ok].abs().max() if ok.any() else 1.)).all())
    return type(a) is type(b) and a == b


def __getattr__(name):
    if name not in _kits:
        raise AttributeError(name)
    if name not in _cache:
        _cache[name] = build(_kits[name])
    return _cache[name]


# ---------------------------------------------------------------------- small scenes
def T(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 17), dtype=torch.float64).to(dtype)


def fill(m, dtype=torch.float64):
    m = m.to(dtype)
    with torch.no_grad():
        for i, p in enumerate(m.parameters()):
            p.copy_(T(*p.shape, seed=100 + i))
    return m


def L(n=4, m=3, bias=True, dtype=torch.float64):
    return fill(nn.Linear(n, m, bias=bias), dtype)


def C(*a, cls=nn.Conv2d, **k):
    return fill(cls(*(a or (2, 3, 3)), **k))


def rel(ns, rule, m, x, R=None, keep=False, **kw):
    x = x.detach().clone().requires_grad_() if not keep else x
    h = rule.register(m)
    try:
        y = m(x, **kw)
        R = T(*y.shape, seed=50).to(y.dtype) if R is None else R
        return torch.autograd.grad(y, x, R)[0]
    finally:
        h.remove()


def on(kind, *a, m=L, x=None, R=None, **k):
    """A scene: the rule called kind, with these arguments, on this layer."""
    return lambda ns: rel(ns, getattr(ns, kind)(*a, **k), m(), T(3, 4) if x is None else x, R)


def err(fn):
    try:
        fn()
        return 'no error'
    except (ValueError, TypeError, RuntimeError) as e:
        return type(e).__name__


def second(ns, rule, m, x, R=None):
    """Derivatives of sum(r^2) by x, by R and by the weight."""
    h = rule.register(m)
    try:
        x = x.clone().requires_grad_()
        y = m(x)
        R = (T(*y.shape, seed=50) if R is None else R).clone().requires_grad_()
        r, = torch.autograd.grad(y, x, R, create_graph=True)
        ps = [p for p in m.parameters()]
        return [r] + [torch.zeros(()) if g is None else g for g in torch.autograd.grad(r.pow(2).sum(), [x, R] + ps, allow_unused=True)]
    finally:
        h.remove()


X34 = T(3, 4)
ximg = T(2, 2, 6, 6)

# ---------------------------------------------------------------------- wrong: the formula or a convention, whenever it is used
keep = lambda p: p
zeros = lambda x: torch.zeros_like(x)
only = lambda kind, fn, method='S': {method: lambda K, call, rule, d: fn(K, call, rule, d) if rule.kind == kind else Kit.S(K, call, rule, d)}

wrong('eps_always_added', 'Epsilon adds +eps whatever the sign of the denominator; shows where d < 0 and eps is not tiny', on('Epsilon', .5),
      **only('epsilon', lambda K, call, rule, d: d + K.ns.Stabilizer(rule.stabilizer.epsilon).epsilon if isinstance(rule.stabilizer, K.ns.Stabilizer) else rule.stabilizer(d)))


def dead_neuron(ns, rule='Epsilon'):
    m = L()
    with torch.no_grad():
        m.weight[1] = torch.tensor([1., -1., 2., -2.])
        m.bias[1] = 0
    x = X34.clone()
    x[0] = torch.tensor([3., 3., .5, .5])
    return rel(ns, getattr(ns, rule)(), m, x)


wrong('sign_of_zero_is_zero', 'the stabilizer takes torch.sign, so that a denominator of exactly 0 stays 0', dead_neuron, sgn=lambda K, d: torch.sign(d))
wrong('epsilon_without_bias', 'Epsilon leaves the bias out of the denominator', on('Epsilon'),
      epsilon=lambda K, call, Rs, rule: [K.half(call, rule, Rs[0], [(call.x, K.mod(K.params(call, rule), keep))])] if call.replay else Kit.epsilon(K, call, Rs, rule))
wrong('epsilon_renormalised', 'Epsilon rescales its answer so that each sample conserves sum(R), taking the bias share back', on('Epsilon'),
      epsilon=lambda K, call, Rs, rule: [r * ((Rs[0].reshape(Rs[0].shape[0], -1).sum(1) / r.reshape(r.shape[0], -1).sum(1)).reshape(-1, *[1] * (r.dim() - 1))) if not call.unbatched and r.numel() and Rs[0].dim() > 1 else r for r in Kit.epsilon(K, call, Rs, rule)])
wrong('norm_fixed_stabilizer', 'Norm ignores its stabilizer argument and always uses 1e-6', on('Norm', .4), **only('norm', lambda K, call, rule, d: d + 1e-6 * K.sgn(d)))


def zp(pairs):
    return dict(zplus=lambda K, call, R, rule: K.half(call, rule, R, pairs(K, call.x, K.params(call, rule))))


wrong('zplus_no_bias', 'ZPlus leaves b+ out of the denominator', on('ZPlus'), **zp(lambda K, x, P: [(K.xpos(x), K.mod(P, K.wpos)), (K.xneg(x), K.mod(P, K.wneg))]))
wrong('zplus_positive_inputs_only', 'ZPlus drops the product of negative inputs with negative weights', on('ZPlus'), **zp(lambda K, x, P: [(K.xpos(x), K.mod(P, K.wpos, K.wpos))]))
wrong('zplus_bias_unclamped', 'ZPlus takes the bias itself instead of b+; shows where b < 0', on('ZPlus'), **zp(lambda K, x, P: [(K.xpos(x), K.mod(P, K.wpos, keep)), (K.xneg(x), K.mod(P, K.wneg))]))
wrong('alphabeta_adds_beta', 'AlphaBeta adds the beta half instead of subtracting it', on('AlphaBeta'), alphabeta=lambda K, call, R, rule: rule.alpha * K.zplus(call, R, rule) + (rule.beta * K.zminus(call, R, rule) if rule.beta else 0))
wrong('alphabeta_b_plus_below', 'AlphaBeta puts b+ instead of b- into the negative denominator', on('AlphaBeta'),
      zminus=lambda K, call, R, rule: K.half(call, rule, R, [(K.xpos(call.x), K.mod(K.params(call, rule), K.wneg, K.wpos)), (K.xneg(call.x), K.mod(K.params(call, rule), K.wpos))]))
wrong('alphabeta_shared_denominator', 'AlphaBeta divides both halves by the positive denominator', on('AlphaBeta'),
      zminus=lambda K, call, R, rule: (lambda P, s: K.xpos(call.x) * K.lin(call, K.xpos(call.x), K.mod(P, K.wneg))[1](s) + K.xneg(call.x) * K.lin(call, K.xneg(call.x), K.mod(P, K.wpos))[1](s))(
          K.params(call, rule), K.divide(call, rule, R, K.lin(call, K.xpos(call.x), K.mod(K.params(call, rule), K.wpos, K.wpos))[0] + K.lin(call, K.xneg(call.x), K.mod(K.params(call, rule), K.wneg))[0])))
wrong('alphabeta_unchecked', 'AlphaBeta accepts alpha - beta != 1', lambda ns: [err(lambda: ns.AlphaBeta(2., .5)), err(lambda: ns.AlphaBeta(-1., -2.))],
      check_alpha_beta=lambda K, a, b: None if a >= 0 and b >= 0 else Kit.check_alpha_beta(K, a, b))


def gam(up=None, dn=None, bias=True, upper=None, lower=None):
    """Gamma with other branches: upper/lower(K, x, P, u, d) give the pairs of the branch z > 0 / z < 0."""
    def gamma(K, call, R, rule):
        P, x, g = K.params(call, rule), call.x, rule.gamma
        u = (lambda p: up(K, p, g)) if up else (lambda p: p + g * K.wpos(p))
        d = (lambda p: dn(K, p, g)) if dn else (lambda p: p + g * K.wneg(p))
        xp, xn = K.xpos(x), K.xneg(x)
        pos, neg = K.gates(call)
        a = upper(K, x, P, u, d) if upper else [(xp, K.mod(P, u, u)), (xn, K.mod(P, d))]
        b = lower(K, x, P, u, d) if lower else [(xp, K.mod(P, d, d)), (xn, K.mod(P, u))]
        return K.half(call, rule, R, a, pos) + K.half(call, rule, R, b, neg)
    return gamma


wrong('gamma_classic', 'Gamma is the form for positive inputs only: w + g w+ with the whole x, in both branches', on('Gamma'), gamma=gam(upper=lambda K, x, P, u, d: [(x, K.mod(P, u, u))], lower=lambda K, x, P, u, d: [(x, K.mod(P, u, u))]))
wrong('gamma_bias_unscaled', 'Gamma takes b instead of b + g b+ and b + g b-', on('Gamma'),
      gamma=gam(upper=lambda K, x, P, u, d: [(K.xpos(x), K.mod(P, u, keep)), (K.xneg(x), K.mod(P, d))], lower=lambda K, x, P, u, d: [(K.xpos(x), K.mod(P, d, keep)), (K.xneg(x), K.mod(P, u))]))
wrong('gamma_negative_branch_bias', 'Gamma uses b + g b+ in the branch z < 0 too', on('Gamma', 1.), gamma=gam(lower=lambda K, x, P, u, d: [(K.xpos(x), K.mod(P, d, u)), (K.xneg(x), K.mod(P, u))]))
wrong('gamma_gate_by_relevance', 'Gamma takes the branch by the sign of R instead of the output', on('Gamma'),
      gamma=lambda K, call, R, rule: (setattr(call, 'z', R), Kit.gamma(K, call, R, rule))[1])


def zb(fn):
    def zbox(K, call, R, rule):
        P, (l, h) = K.params(call, rule), call.bounds
        (z, pz), (lo, pl), (hi, ph) = K.lin(call, call.x, K.mod(P, keep)), K.lin(call, l, K.mod(P, K.wpos)), K.lin(call, h, K.mod(P, K.wneg))
        return fn(K, lambda d: K.divide(call, rule, R, d), call.x, l, h, z, lo, hi, pz, pl, ph, P, call)
    return zbox


wrong('zbox_bounds_swapped', 'ZBox pairs low with w- and high with w+', on('ZBox', -3., 4.), bounds=lambda K, call, rule: Kit.bounds(K, call, rule)[::-1])
wrong('zbox_keeps_bias', 'ZBox leaves the bias in the first product of the denominator', on('ZBox', -3., 4.),
      zbox=zb(lambda K, div, x, l, h, z, lo, hi, pz, pl, ph, P, call: (lambda s: x * pz(s) - l * pl(s) - h * ph(s))(div(K.lin(call, x, P)[0] - lo - hi))))
wrong('zbox_clamps_input', 'ZBox clamps the input into [low, high]; shows for inputs outside the box', on('ZBox', -.5, .5),
      zbox=lambda K, call, R, rule: (setattr(call, 'x', torch.minimum(torch.maximum(call.x, call.bounds[0]), call.bounds[1])), Kit.zbox(K, call, R, rule))[1])


def sq(fw, fb, times_x=False):
    def wsquare(K, call, R, rule):
        d, pull = K.lin(call, torch.ones_like(call.x), K.mod(K.params(call, rule), fw, fb))
        r = pull(K.divide(call, rule, R, d))
        return r * call.x if times_x else r
    return wsquare


square = lambda p: p * p
wrong('wsquare_no_bias', 'WSquare leaves b^2 out', on('WSquare'), wsquare=sq(square, None))
wrong('flat_bias_one', 'Flat sets the bias to one like the weights: each denominator is one too large', on('Flat'),
      flat=lambda K, call, R, rule: (lambda d, pull: pull(K.divide(call, rule, R, d)))(*K.lin(call, torch.ones_like(call.x), K.mod(call.P, torch.ones_like, torch.ones_like))))


def flat_count(K, call, R, rule):
    d, pull = K.lin(call, torch.ones_like(call.x), K.mod(call.P, torch.ones_like))
    if not d.numel():
        return Kit.flat(K, call, R, rule)
    return pull(K.divide(call, rule, R, d.amax(tuple(range(d.dim())), keepdim=True).expand_as(d)))


wrong('flat_full_count', 'Flat divides by the full number of inputs of a kernel, also at a padded border', on('Flat', m=lambda: C(padding=1), x=ximg), flat=flat_count)
wrong('deconv_gates_input', 'ReLUDeconvNet keeps R where the input is positive instead of where R is', on('ReLUDeconvNet', m=nn.ReLU),
      answer=lambda K, call, Rs: [Rs[0] * (call.x > 0)] if call.rule.kind == 'deconv' else Kit.answer(K, call, Rs))
wrong('guided_without_gradient', 'ReLUGuidedBackprop keeps positive R and forgets the gradient of the ReLU', on('ReLUGuidedBackprop', m=nn.ReLU),
      answer=lambda K, call, Rs: [K.deconv(Rs[0])] if call.rule.kind == 'guided' else Kit.answer(K, call, Rs))
wrong('smooth_without_beta', 'ReLUBetaSmooth computes sigmoid(x), without beta', on('ReLUBetaSmooth', m=nn.ReLU), beta_smooth=lambda K, x, R, beta: torch.sigmoid(x) * R)
wrong('pass_is_gradient', 'Pass returns the plain gradient of the module', on('Pass', m=nn.Tanh), pass_=lambda K, call, Rs, rule: [K.plain(call, Rs[0])] if len(call.ys) == 1 else Rs)
wrong('clip_loses_sign', 'Stabilizer(clip=True) returns max(d, eps): negative denominators become +eps', lambda ns: ns.Stabilizer(.3, clip=True)(X34),
      stabilize=lambda K, d, st: d.clamp(min=st.epsilon) if st.clip and not st.norm_scale else Kit.stabilize(K, d, st))
wrong('norm_scale_not_mean', 'Stabilizer(norm_scale=True) scales with the root of the sum of squares: grows with the layer width', lambda ns: ns.Stabilizer(.3, norm_scale=True)(X34), rms=lambda K, d, dims: (d * d).sum(dim=dims, keepdim=True).sqrt())
wrong('gammamod_drops_parameter', 'GammaMod returns gamma * clamp(p) without adding p', lambda ns: modded(ns.GammaMod(.5, min=0.), L()), gamma_mod=lambda K, p, g, lo, hi: g * (p.clamp(min=lo, max=hi) if (lo, hi) != (None, None) else p))


def modded(mod, m):
    with mod(m) as q:
        return [getattr(q, n).detach().clone() for n in ('weight', 'bias')]


# ---------------------------------------------------------------------- wrong: only under one condition
def nan_bias(m):
    with torch.no_grad():
        m.bias[1] = float('nan')
    return m


def positive(m):
    with torch.no_grad():
        m.weight.abs_()
    return m


class Named(nn.Module):
    """An affine module of our own with names that contain one another."""
    def __init__(self):
        super().__init__()
        self.w, self.bias, self.bias_k = (nn.Parameter(T(3, 4, seed=1)), nn.Parameter(T(3, seed=2)), nn.Parameter(T(3, seed=3)))

    def forward(self, x):
        return F.linear(x, self.w, self.bias) + self.bias_k


wrong('zero_params_by_substring', 'zero_params matches by substring: "bias_k" zeroes "bias" as well; shows with such names only', on('Epsilon', zero_params='bias_k', m=Named),
      params=lambda K, call, rule: {n: torch.zeros_like(p) if any(n in z for z in K.names(rule.zero_params)) else p for n, p in call.P.items()})
wrong('zero_params_string_ignored', 'zero_params given as a string is ignored, only a list works', on('Epsilon', zero_params='bias'),
      params=lambda K, call, rule: {n: torch.zeros_like(p) if not isinstance(rule.zero_params, str) and n in K.names(rule.zero_params) else p for n, p in call.P.items()})
wrong('gamma_gate_zeroed', 'the gate of Gamma is computed with the zeroed parameters instead of the real output', on('Gamma', zero_params='bias', x=T(8, 4)),
      gamma=lambda K, call, R, rule: (setattr(call, 'z', call.f(call.x, K.params(call, rule)).detach()), Kit.gamma(K, call, R, rule))[1])
wrong('gamma_zero_is_positive', 'Gamma treats z = 0 exactly as positive and hands that relevance on', lambda ns: dead_neuron(ns, 'Gamma'), gates=lambda K, call: (~(call.z < 0), call.z < 0))
wrong('gamma_gate_hides_nan', 'Gamma masks with z > 0: an output of NaN gets relevance 0 instead of NaN', on('Gamma', m=lambda: nan_bias(L())), gates=lambda K, call: (call.z > 0, call.z < 0))


def then_inplace(ns, rule):
    m = L()
    h = rule(ns).register(m)
    try:
        x = X34.clone().requires_grad_()
        y = m(x)
        y += 2
        return torch.autograd.grad(y, x, torch.ones_like(y))[0]
    finally:
        h.remove()


def keep_live_z(K, call, xs, ps):
    if call.rule.kind == 'gamma':
        call.z = call.values[0]
    return Kit.attach(K, call, xs, ps)


wrong('gamma_gate_overwritten', 'Gamma keeps the output itself for its gate; an addition in place (a residual) overwrites it', lambda ns: then_inplace(ns, lambda ns: ns.Gamma()), attach=keep_live_z)
wrong('beta_zero_evaluated', 'AlphaBeta(1, 0) multiplies the negative half by zero instead of leaving it out: 0 * inf', on('AlphaBeta', 1, 0, stabilizer=0., m=lambda: positive(L(bias=False)), x=T(3, 4).abs()),
      alphabeta=lambda K, call, R, rule: rule.alpha * K.zplus(call, R, rule) - rule.beta * K.zminus(call, R, rule))
wrong('epsilon_zero_is_default', 'epsilon=0 is falsy and becomes 1e-6 (epsilon or 1e-6); shows on denominators near 0 only',
      on('Epsilon', 0., x=T(3, 4) * 1e-7, m=lambda: L(bias=False)), ensure=lambda K, v: Kit.ensure(K, v or 1e-6))
wrong('callable_is_added', 'a callable stabilizer is added to the denominator instead of replacing it', on('ZPlus', lambda d: d + .1),
      S=lambda K, call, rule, d: Kit.S(K, call, rule, d) if isinstance(rule.stabilizer, K.ns.Stabilizer) else d + rule.stabilizer(d))
wrong('callable_from_number_only', 'ensure() rebuilds a Stabilizer from its epsilon and loses clip and norm_scale', on('Epsilon', lambda d: d, x=X34) and (lambda ns: rel(ns, ns.ZPlus(ns.Stabilizer(.5, clip=True)), L(), X34)),
      ensure=lambda K, v: K.ns.Stabilizer(epsilon=v.epsilon) if isinstance(v, K.ns.Stabilizer) else Kit.ensure(K, v))
wrong('stabilizer_type_unchecked', 'a stabilizer that is neither number nor callable (a string) silently becomes the default', lambda ns: [err(lambda: ns.Gamma(stabilizer='1e-6')), err(lambda: ns.Epsilon(None))],
      ensure=lambda K, v: Kit.ensure(K, v if callable(v) or isinstance(v, (int, float)) else 1e-6))
wrong('norm_scale_over_batch', 'norm_scale takes the root mean square over the whole batch: samples mix; a batch of one is right', lambda ns: rel(ns, ns.Epsilon(ns.Stabilizer(.5, norm_scale=True)), L(), X34),
      norm_dims=lambda K, d, st: tuple(range(d.dim())) if st.dim is None else st.dim)
wrong('clip_ignores_norm_scale', 'clip together with norm_scale clips at the unscaled epsilon', lambda ns: ns.Stabilizer(.5, clip=True, norm_scale=True)(X34 * 5),
      stabilize=lambda K, d, st: K.sgn(d) * d.abs().clamp(min=st.epsilon) if st.clip else Kit.stabilize(K, d, st))
wrong('zbox_leading_ones', 'ZBox broadcasts a low with fewer dimensions from the right (leading ones); shows only where that shape fits too',
      lambda ns: rel(ns, ns.ZBox(T(1, 6, seed=4).abs() * -3, 4.), C(6, 3, 3), T(2, 6, 6, 6)),
      bounds=lambda K, call, rule: [v.to(call.x).expand_as(call.x).clone() if torch.is_tensor(v) and 0 < v.dim() < call.x.dim() and fits(v, call.x) else t for v, t in zip((rule.low, rule.high), Kit.bounds(K, call, rule))])


def fits(v, x):
    try:
        v.expand(x.shape)
        return True
    except RuntimeError:
        return False


wrong('zbox_longer_batch_tail', 'ZBox cuts a low with a longer batch at the wrong end: it keeps the last samples', lambda ns: rel(ns, ns.ZBox(T(5, 4, seed=4).abs() * -3, 4.), L(), X34),
      bounds=lambda K, call, rule: [v[-call.x.shape[0]:].to(call.x) if torch.is_tensor(v) and v.dim() == call.x.dim() and v.shape[0] > call.x.shape[0] else t for v, t in zip((rule.low, rule.high), Kit.bounds(K, call, rule))])


wrong('zbox_bad_shape_accepted', 'a low whose shape does not fit is broadcast from its mean instead of refused', lambda ns: err(lambda: rel(ns, ns.ZBox(-T(2, 3).abs(), 4.), L(), X34)),
      bounds=lambda K, call, rule: [t for t in K.lenient(call, rule)],
      lenient=lambda K, call, rule: Kit.bounds(K, call, types.SimpleNamespace(**{n: v.mean() if torch.is_tensor(v) and not fits(v, call.x) else v for n, v in (('low', rule.low), ('high', rule.high))})))


# ---------------------------------------------------------------------- wrong: conduct
def conduct(rule, look, m=L, x=None, R=None):
    """A scene: use the rule once, remove it, then look(m, x, R) at what is left changed."""
    def scene(ns):
        mod, v = m(), (X34 if x is None else x).clone().requires_grad_()
        r0 = T(*mod(v).shape, seed=50) if R is None else R.clone()
        was = look(mod, v, r0)
        h = rule(ns).register(mod)
        during = look(mod, v, r0)
        try:
            torch.autograd.grad(mod(v), v, r0)
        except (ValueError, RuntimeError, ZeroDivisionError):
            pass
        after = look(mod, v, r0)
        h.remove()
        return [during, after, look(mod, v, r0)] if was is not None else []
    return scene


def div_inplace(K, call, rule, R, d, gate=None):
    return R.div_(K.S(call, rule, d)) if gate is None and not torch.is_grad_enabled() else Kit.divide(K, call, rule, R, d, gate)


wrong('relevance_overwritten', 'divides in place: the relevance tensor that the caller passed is changed', conduct(lambda ns: ns.Epsilon(), lambda m, x, R: R.clone()), divide=div_inplace)


def clean_input(K, call, xs, ps):
    with torch.no_grad():
        for x in xs:
            if not x.isfinite().all():
                torch.nan_to_num_(x.detach())
    return Kit.attach(K, call, xs, ps)


wrong('input_cleaned_in_place', 'NaN in the caller\'s input is overwritten with 0, in place', conduct(lambda ns: ns.Norm(), lambda m, x, R: x.detach().clone(), x=torch.tensor([[1., float('nan'), 2., 3.]], dtype=torch.float64)), attach=clean_input)


def unsafe_half(K, call, rule, R, pairs, gate=None):
    m = call.module()
    if m is None or 'weight' not in m._parameters or m._parameters['weight'] is None:
        return Kit.half(K, call, rule, R, pairs, gate)
    old = m.weight.detach().clone()
    m.weight.data.copy_(pairs[0][1]['weight'].detach())
    r = Kit.half(K, call, rule, R, pairs, gate)
    m.weight.data.copy_(old)
    return r


def failing(d):
    raise ZeroDivisionError('on the way')


wrong('weights_left_after_error', 'writes the clamped weights into the module and does not restore them when the stabilizer raises', conduct(lambda ns: ns.ZPlus(failing), lambda m, x, R: m.weight.detach().clone()), half=unsafe_half)


def on_register_with(do):
    def on_register(K, rule, module):
        reg = Kit.on_register(K, rule, module)
        do(module)
        return reg
    return on_register


def replaced(m):
    if m._parameters.get('weight') is not None:
        m._parameters['weight'] = nn.Parameter(m.weight.detach().clone(), m.weight.requires_grad)


def parameter_kept(ns):
    m = L()
    w = m.weight
    h = ns.Epsilon().register(m)
    a = m.weight is w
    h.remove()
    return [a, m.weight is w]


wrong('parameter_replaced', 'registering puts a new Parameter object into the module: an optimizer keeps the old one', parameter_kept, on_register=on_register_with(replaced))


def thaw(K, reg):
    if reg.handles and reg.module() is not None:
        for p in reg.module().parameters():
            p.requires_grad_(True)
    Kit.on_remove(K, reg)


def frozen(m):
    m.weight.requires_grad_(False)
    return m


wrong('frozen_comes_back_thawed', 'remove() sets requires_grad=True on every parameter; shows where one was frozen', conduct(lambda ns: ns.Gamma(), lambda m, x, R: m.weight.requires_grad, m=lambda: frozen(L())), on_remove=thaw)
wrong('eval_left', 'switches the module to eval for its computation and leaves it there', conduct(lambda ns: ns.WSquare(), lambda m, x, R: m.training),
      attach=lambda K, call, xs, ps: (call.module().eval(), Kit.attach(K, call, xs, ps))[1])
wrong('hook_left', 'remove() forgets the pre-hook: it stays on the module (without effect)', conduct(lambda ns: ns.Flat(), lambda m, x, R: len(m._forward_hooks) + len(m._forward_pre_hooks) > 0),
      on_remove=lambda K, reg: [h.remove() for h in reg.handles[1:]] and reg.handles.clear())


def remove_one(ns):
    rule, a, b = ns.Epsilon(), L(), L()
    h, k = rule.register(a), rule.register(b)
    h.remove()
    x = X34.clone().requires_grad_()
    r = torch.autograd.grad(b(x), x, T(3, 3, seed=50))[0]
    k.remove()
    return r


def remove_all(K, reg):
    for regs in list(K.live.values()):
        for other in regs:
            if other.rule is reg.rule:
                Kit.on_remove(K, other)


wrong('remove_takes_all', 'one rule on two modules: remove() of one handle takes the rule off both', remove_one, on_remove=remove_all)


def after_remove(ns):
    m, x = L(), X34.clone().requires_grad_()
    h = ns.ZPlus().register(m)
    y = m(x)
    h.remove()
    return torch.autograd.grad(y, x, T(3, 3, seed=50))[0]


wrong('graph_dies_with_remove', 'after remove() a graph made before gives the plain gradient', after_remove,
      answer=lambda K, call, Rs: Kit.answer(K, call, Rs) if call.reg.handles or not call.replay else [K.plain(call, Rs[0])])


def clear_hooks(K, reg):
    if reg.handles and reg.module() is not None:
        reg.module()._forward_hooks.clear()
    Kit.on_remove(K, reg)


def with_user_hook(m):
    m.register_forward_hook(lambda m, a, y: None)
    return m


wrong('user_hooks_cleared', 'remove() clears all forward hooks of the module, other people\'s too', conduct(lambda ns: ns.Pass(), lambda m, x, R: len(m._forward_hooks), m=lambda: with_user_hook(nn.Tanh())), on_remove=clear_hooks)


def removed_twice(ns):
    m, x = L(), X34.clone().requires_grad_()
    h = ns.ZPlus().register(m)
    h.remove()
    k = ns.ZPlus().register(m)
    h.remove()
    r = torch.autograd.grad(m(x), x, T(3, 3, seed=50))[0]
    k.remove()
    return r


wrong('second_remove_hits_successor', 'remove() called a second time takes off the rule that was registered since', removed_twice,
      on_remove=lambda K, reg: Kit.on_remove(K, reg) if reg.handles else [Kit.on_remove(K, o) for o in K.live.get(reg.module(), ())])


def two_calls(ns):
    m, a, b = L(), X34.clone().requires_grad_(), T(3, 4, seed=9).requires_grad_()
    h = ns.Epsilon().register(m)
    y, z = m(a), m(b)
    r = torch.autograd.grad([y, z], [a, b], [T(3, 3, seed=50), T(3, 3, seed=51)])
    h.remove()
    return list(r)


def note_last(where):
    def attach(K, call, xs, ps):
        setattr(getattr(call, where), '_last', call)
        return Kit.attach(K, call, xs, ps)
    return attach


def last_x(K, call, Rs):
    last = call.reg._last
    if last.x.shape == call.x.shape and last.x.dtype == call.x.dtype and last is not call:
        call = copy.copy(call)
        call.x = last.x
        call.live = [last.x]
    return Kit.answer(K, call, Rs)


wrong('last_call_wins', 'a module called twice in one pass: both calls use the input of the last', two_calls, attach=note_last('reg'), answer=last_x)


def two_modules(ns):
    a, b, rule = L(), L(4, 4), ns.ZPlus()
    net = nn.Sequential(fill(nn.Linear(4, 4)), nn.Tanh(), b)
    with torch.no_grad():
        b.weight.mul_(-.5)
    hs = [rule.register(net[0]), rule.register(b)]
    x = X34.clone().requires_grad_()
    r = torch.autograd.grad(net(x), x, T(3, 4, seed=50))[0]
    [h.remove() for h in hs]
    return r


def last_params(K, call, Rs):
    last = call.rule._last
    if {n: p.shape for n, p in last.P.items()} == {n: p.shape for n, p in call.P.items()}:
        call = copy.copy(call)
        call.P = last.P
    return Kit.answer(K, call, Rs)


wrong('instance_shared_parameters', 'one rule instance on two modules of equal shape: the parameters of the last one called serve both', two_modules, attach=note_last('rule'), answer=last_params)


def step_between(ns):
    m, x = L(), X34.clone().requires_grad_()
    h = ns.WSquare().register(m)
    y = m(x)
    with torch.no_grad():
        m.weight[0] += 1
    r = torch.autograd.grad(y, x, T(3, 3, seed=50))[0]
    h.remove()
    return r


def live_params(K, call, Rs):
    m = call.module()
    if m is not None:
        call = copy.copy(call)
        call.P = {n: getattr(m, n) for n in call.P}
    return Kit.answer(K, call, Rs)


wrong('weights_of_backward_time', 'reads the weights when the relevance arrives, not when the call was made', step_between, answer=live_params)


def step_after(ns):
    m, x = L(), X34.clone().requires_grad_()
    h = ns.WSquare().register(m)
    torch.autograd.grad(m(x), x, T(3, 3, seed=50))
    with torch.no_grad():
        m.weight[0] += 1
    r = torch.autograd.grad(m(x), x, T(3, 3, seed=50))[0]
    h.remove()
    return r


def stale(K, call, xs, ps):
    if call.replay:
        call.P = call.reg.__dict__.setdefault('_P', call.P)
    return Kit.attach(K, call, xs, ps)


wrong('weights_cached', 'keeps the parameters of the first call: after an optimizer step the old ones are used', step_after, attach=stale)


def rerun(K, call, xs, ps):
    if call.cls not in base.KNOWN:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call.f(call.x, call.P)
            call.module().forward(*pytree.tree_unflatten([call.x if t is None else t for t in call.leaves], call.spec)[0]) if len(call.leaves) == 1 else None
    return Kit.attach(K, call, xs, ps)


wrong('batch_norm_runs_twice', 'runs the module a second time for its own purposes: running statistics of batch norm move twice',
      conduct(lambda ns: ns.Norm(), lambda m, x, R: m.running_mean.clone(), m=lambda: nn.BatchNorm1d(4).double()), attach=rerun)


def new_mask(K, call, Rs):
    if issubclass(call.cls, nn.modules.dropout._DropoutNd):
        call = copy.copy(call)
        call.replay, call.rng = True, None
    return Kit.answer(K, call, Rs)


def dropout_mask(ns):
    m, x = nn.Dropout(.5), T(4, 50).abs().requires_grad_()
    h = ns.Norm().register(m)
    y = m(x)
    r = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    h.remove()
    return bool(((r == 0) == (y == 0)).all())


wrong('dropout_new_mask', 'the backward of Dropout draws a new mask and advances the generator', dropout_mask, answer=new_mask)


def seeded(ns):
    torch.manual_seed(5)
    a = torch.rand(1)
    h = ns.Pass().register(nn.Tanh())
    b = torch.rand(1)
    h.remove()
    return bool(a == b)


wrong('seed_set', 'register() calls torch.manual_seed(5) "for reproducibility"', seeded, on_register=on_register_with(lambda m: torch.manual_seed(5)))


def grad_mode(ns):
    err(lambda: rel(ns, ns.ZBox(-T(2, 3).abs(), 4.), L(), X34))
    return torch.is_grad_enabled()


def bounds_without_grad(K, call, rule):
    torch.set_grad_enabled(False)
    b = Kit.bounds(K, call, rule)
    torch.set_grad_enabled(True)
    return b


wrong('grad_mode_lost_on_error', 'an error in ZBox\'s bounds leaves gradients switched off globally', grad_mode, bounds=bounds_without_grad)


def signed_zero(ns):
    m, x = nn.Tanh(), torch.tensor([[-0., 0., 1.]], requires_grad=True)
    h = ns.Norm().register(m)
    y = m(x)
    h.remove()
    return torch.signbit(y)


wrong('output_loses_negative_zero', 'hands out y + 0 as output: -0.0 becomes 0.0, not bit for bit', signed_zero,
      attach=lambda K, call, xs, ps: (setattr(call, 'values', [v + 0. for v in call.values]), Kit.attach(K, call, xs, ps))[1])


def weight_grad(K, call, Rs):
    if call.replay and not torch.is_grad_enabled():
        with torch.enable_grad(), base.contextlib.suppress(RuntimeError):     # vmap refuses backward()
            live = {n: getattr(call.module(), n) for n in call.P}
            call.f(call.x.detach(), live).backward(Rs[0])
    return Kit.answer(K, call, Rs)


wrong('weight_grad_written', 'uses backward() inside: the parameters\' .grad is filled by a mere autograd.grad', conduct(lambda ns: ns.Gamma(), lambda m, x, R: m.weight.grad is None), answer=weight_grad)


def loose(K, rule, module):
    reg = Kit.on_register(K, rule, module)
    for d in (module._forward_pre_hooks, module._forward_hooks):
        for k, part in list(d.items()):
            if isinstance(part, base.Part):
                d[k] = loosened(reg, part.fn)
    return reg


def loosened(reg, fn):
    def hook(module, *a):
        reg.module = lambda: module
        return fn(module, *a)
    return hook


def model_copy(ns):
    m, x = L(), X34.clone().requires_grad_()
    h = ns.ZPlus().register(m)
    r = torch.autograd.grad(copy.deepcopy(m)(x), x, T(3, 3, seed=50))[0]
    h.remove()
    return r


wrong('copy_of_model_is_live', 'a deepcopy of the model carries a live rule', model_copy, on_register=loose)


def backward_twice(ns):
    m, x = L(), X34.clone().requires_grad_()
    h = ns.ZPlus().register(m)
    y = m(x)
    r = [torch.autograd.grad(y, x, T(3, 3, seed=50), retain_graph=True)[0] for _ in range(2)]
    h.remove()
    return r


wrong('second_backward_differs', 'the first backward leaves the clamped input behind: a second one through the same graph misses negative inputs', backward_twice,
      zplus=lambda K, call, R, rule: (lambda r: (setattr(call, 'x', K.xpos(call.x)), r)[1])(Kit.zplus(K, call, R, rule)))

# ---------------------------------------------------------------------- wrong: derivatives and batched relevance
wrong('denominator_is_constant', 'the second derivative treats the denominator as a constant', lambda ns: second(ns, ns.Epsilon(.1), L(), X34),
      divide=lambda K, call, rule, R, d, gate=None: Kit.divide(K, call, rule, R, d.detach(), gate))


def detached_params(K, call, Rs):
    call = copy.copy(call)
    call.P = {n: p.detach() for n, p in call.P.items()}
    return Kit.answer(K, call, Rs)


wrong('weights_are_constant', 'a relevance has no derivative by the weights', lambda ns: second(ns, ns.ZPlus(.1), L(), X34), answer=detached_params)
wrong('factor_is_constant', 'the second derivative of ZBox treats the input factor in front as a constant', lambda ns: second(ns, ns.ZBox(-3., 4., .1), L(), X34),
      zbox=zb(lambda K, div, x, l, h, z, lo, hi, pz, pl, ph, P, call: (lambda s: x.detach() * pz(s) - l * pl(s) - h * ph(s))(div(z - lo - hi))))


# ---------------------------------------------------------------------- wrong: only for some data, sizes and layouts
NAN34 = X34.clone()
NAN34[1, 2] = float('nan')
wrong('nan_hidden', 'NaN in the relevance is replaced by 0', on('Epsilon', x=NAN34), answer=lambda K, call, Rs: [r if r is None else r.nan_to_num(0., float('inf'), -float('inf')) for r in Kit.answer(K, call, Rs)])


def scaled_divide(K, call, rule, R, d, gate=None):
    top = R.abs().max().clamp(min=1e-30) if R.numel() else 1.
    return Kit.divide(K, call, rule, R / top, d, gate) * top


wrong('nan_spreads', 'scales R by its maximum over the batch for safety: NaN in one sample\'s relevance reaches all', on('ZPlus', R=torch.where(torch.arange(9).reshape(3, 3) == 4, float('nan'), T(3, 3))), divide=scaled_divide)
wrong('mean_over_batch', 'divides the relevance by the batch size; a batch of one is right', on('Gamma'), divide=lambda K, call, rule, R, d, gate=None: Kit.divide(K, call, rule, R, d, gate) / (R.shape[0] if R.dim() > 1 and not call.unbatched else 1))


def chunked(K, call, x, P):
    if not call.known or call.unbatched or x.shape[0] <= 4:
        return Kit.lin(K, call, x, P)
    n = x.shape[0] // 4 * 4
    out, pull = Kit.lin(K, call, x, P)
    return out, lambda s: torch.cat([pull(s)[:n], torch.zeros_like(x[n:])])


wrong('chunk_tail_lost', 'works in chunks of four samples and loses the last, incomplete chunk; shows for batches such as 6', on('ZPlus', x=T(6, 4)), lin=chunked)


def seam(K, call, x, P):
    if not is_linear(call) or P['weight'].shape[0] <= 4:
        return Kit.lin(K, call, x, P)
    w = P['weight']
    y = F.linear(x, w, P.get('bias'))
    return y, lambda s: sum(s[..., i:i + 5] @ w[i:i + 5] for i in range(0, w.shape[0], 4))


wrong('blocks_overlap', 'goes through the outputs of a linear layer in blocks of 4 that overlap by one: the first output of each later block counts twice', on('Epsilon', m=lambda: L(4, 9)), lin=seam)


def float_divide(K, call, rule, R, d, gate=None):
    return Kit.divide(K, call, rule, R.float(), d.float(), gate).to(R.dtype)


wrong('float32_division', 'divides in float32 whatever the dtype: float64 values below 1e-38 are lost', on('Epsilon', 0., m=lambda: L(bias=False), x=X34 * 1e-60, R=T(3, 3) * 1e-30), divide=float_divide)


def in_memory_order(K, t):
    if t.is_contiguous() or 0 in t.stride():
        return t.clone()
    stride, n = [], 1
    for k in reversed(t.shape):
        stride.insert(0, n)
        n *= k
    return t.as_strided(t.shape, stride).clone()


wrong('memory_order', 'reads a tensor that is not contiguous in the order of memory (a transposed input)', lambda ns: rel(ns, ns.Epsilon(), L(), T(4, 3).t()), snapshot=in_memory_order)


def no_dilation(K, call, x, P):
    m = call.state
    out, pull = Kit.lin(K, call, x, P)
    if not plain_conv(call) or max(m['dilation']) == 1:
        return out, pull

    def hand(s):
        r = F.conv_transpose2d(s, P['weight'], None, m['stride'], m['padding'], 0, m['groups'])
        return F.pad(r, (0, x.shape[3] - r.shape[3], 0, x.shape[2] - r.shape[2]))
    return out, hand


wrong('dilation_lost', 'a hand-written transposed convolution forgets the dilation', on('WSquare', m=lambda: C(dilation=2), x=ximg), lin=no_dilation)


def wide(cls=nn.Conv1d):
    return C(2, 2, 3, cls=cls, padding=1, padding_mode='circular')


def matrix_clamp(K, call, R, rule):
    if call.cls is not nn.Conv1d or call.state['padding_mode'] == 'zeros' or call.unbatched:
        return Kit.zplus(K, call, R, rule)
    shape = call.x.shape[1:]
    P = K.params(call, rule)
    unit = torch.eye(shape.numel(), dtype=call.x.dtype).reshape(-1, *shape)
    A = call.f(unit, K.mod(P, keep)).reshape(len(unit), -1)
    x = call.x.reshape(-1, len(unit))
    d = x.clamp(min=0) @ A.clamp(min=0) + x.clamp(max=0) @ A.clamp(max=0)
    d = d.reshape(R.shape) + (P['bias'].clamp(min=0)[:, None] if 'bias' in P else 0)
    s = K.divide(call, rule, R, d).reshape(len(x), -1)
    return (x.clamp(min=0) * (s @ A.clamp(min=0).t()) + x.clamp(max=0) * (s @ A.clamp(max=0).t())).reshape(call.x.shape)


wrong('matrix_clamped', 'ZPlus clamps the matrix, not the parameter; shows where circular padding puts several parameters into one entry (input narrower than the kernel)',
      on('ZPlus', m=wide, x=T(2, 2, 2)), zplus=matrix_clamp)


def zero_padding(K, call, x, P):
    if call.state.get('padding_mode', 'zeros') != 'zeros':
        call.state = dict(call.state, padding_mode='zeros')
    return Kit.forward(K, call, x, P)


wrong('padding_mode_lost', 'circular, reflect and replicate padding are treated as zeros in the rule\'s own products', on('Flat', m=lambda: C(padding=1, padding_mode='circular'), x=ximg), forward=zero_padding)


def wn():
    m = parametrizations.weight_norm(L())
    with torch.no_grad():
        m.parametrizations.weight.original0.mul_(torch.tensor([[2.], [.3], [3.]], dtype=torch.float64))
    return m


def raw_weight(K, call, xs, ps):
    m = call.module()
    if base.parametrize.is_parametrized(m) and hasattr(m.parametrizations.weight, 'original1'):
        call.P['weight'] = m.parametrizations.weight.original1
    return Kit.attach(K, call, xs, ps)


wrong('weight_norm_direction', 'under weight_norm the direction v is taken for the weight, without g', on('ZPlus', m=wn), attach=raw_weight)
wrong('gamma_limit_shortcut', 'Gamma with gamma >= 100 is taken for its limit ZPlus, without the gate', on('Gamma', 100.), gamma=lambda K, call, R, rule: Kit.zplus(K, call, R, rule) if rule.gamma >= 100 else Kit.gamma(K, call, R, rule))
wrong('alpha_one_shortcut', 'AlphaBeta(1, 0) takes a short way that forgets the bias', on('AlphaBeta', 1., 0.),
      alphabeta=lambda K, call, R, rule: K.half(call, rule, R, [(K.xpos(call.x), K.mod(K.params(call, rule), K.wpos)), (K.xneg(call.x), K.mod(K.params(call, rule), K.wneg))]) if rule.beta == 0 else Kit.alphabeta(K, call, R, rule))


def flat_pool(K, call, R, rule):
    if call.P:
        return Kit.flat(K, call, R, rule)
    d, pull = K.lin(call, call.x, {})
    return pull(K.divide(call, rule, R, d))


wrong('flat_pool_real_input', 'Flat on a module without parameters uses the real input instead of ones (max pooling, average pooling)', on('Flat', m=lambda: nn.AvgPool2d(2), x=ximg), flat=flat_pool)


def smooth_late(K, call, Rs):
    if call.rule.kind == 'smooth' and call.inplace:
        return [K.beta_smooth(call.values[0], Rs[0], call.rule.beta_smooth)]
    return Kit.answer(K, call, Rs)


def inplace_relu(ns):
    m, x = nn.ReLU(inplace=True), X34.clone().requires_grad_()
    h = ns.ReLUBetaSmooth(2.).register(m)
    r = torch.autograd.grad(m(x * 1), x, T(3, 4, seed=50))[0]
    h.remove()
    return r


wrong('inplace_relu_overwrites', 'ReLUBetaSmooth reads the input after ReLU(inplace=True) has overwritten it', inplace_relu, answer=smooth_late)

# ---------------------------------------------------------------------- wrong: several inputs, copies, missing parameters, helpers


def two_inputs(ns):
    m, a, b = nn.Bilinear(4, 2, 3).double(), X34.clone().requires_grad_(), T(3, 2).requires_grad_()
    fill(m)
    h = ns.Norm().register(m)
    r = torch.autograd.grad(m(a, b), [a, b], T(3, 3, seed=50))
    h.remove()
    return list(r)


wrong('first_input_only', 'Norm on a module with two inputs gives the second one nothing', two_inputs, norm=lambda K, call, Rs, rule: [r if i == 0 else torch.zeros_like(r) for i, r in enumerate(Kit.norm(K, call, Rs, rule))])
wrong('keyword_is_gradient', 'an input passed by keyword is not seen: the plain gradient is handed out', lambda ns: by_keyword(ns),
      wrap=lambda K, reg, module, frame, args, kwargs, output: Kit.wrap(K, reg, module, frame, args, kwargs, output) if args else None)


def by_keyword(ns):
    m, x = L(), X34.clone().requires_grad_()
    h = ns.Epsilon().register(m)
    r = torch.autograd.grad(m(input=x), x, T(3, 3, seed=50))[0]
    h.remove()
    return r


wrong('copy_loses_zero_params', 'copy() keeps every option but zero_params', lambda ns: rel(ns, ns.Gamma(2., zero_params='bias').copy(), L(), X34), copy_args=lambda K, args: {k: v for k, v in args.items() if k != 'zero_params'})


def forgiving(test):
    def check_module(K, rule, module):
        try:
            Kit.check_module(K, rule, module)
        except RuntimeError:
            if not test(K, rule, module):
                raise
    return check_module


wrong('missing_weight_accepted', 'ZPlus and others on a module without parameters silently use the module as it is instead of a RuntimeError', lambda ns: err(lambda: rel(ns, ns.ZPlus(), nn.AvgPool2d(2), ximg)),
      check_module=forgiving(lambda K, rule, m: not list(m.parameters())))
wrong('clampmod_zero_is_none', 'ClampMod(min=0) does nothing: 0 is taken for "no bound"', lambda ns: modded(ns.ClampMod(min=0.), L()), clamp=lambda K, p, lo, hi: p.clamp(min=lo or None, max=hi or None) if lo or hi else p)
wrong('zeroed_after_change', 'zero_params of a ParamMod zeroes after the modifier; shows where the modifier moves 0 (ClampMod(min=0.5))', lambda ns: modded(ns.ClampMod(min=.5, zero_params='bias'), L()),
      param_mod=lambda K, pm, P: {n: torch.zeros_like(p) if n in K.names(pm.zero_params) else p for n, p in pm.apply_(P).items()})


def empty_keys(K, pm, P):
    if pm.param_keys is not None and not K.names(pm.param_keys):
        return {n: pm.modifier(p, n) for n, p in P.items()}
    return pm.apply_(P)


wrong('empty_param_keys_is_all', 'param_keys=[] of a ParamMod means every parameter instead of none', lambda ns: modded(ns.ClampMod(min=0., param_keys=[]), L()), param_mod=empty_keys)


@base.contextlib.contextmanager
def context_no_finally(pm, module):
    pm.check(module)
    old = {n: getattr(module, n) for n in param_names(module)}
    new = {n: p for n, p in pm.apply(old).items() if p is not old[n]}
    module.__dict__.update(new)
    yield module
    for n in new:
        module.__dict__.pop(n, None)


def error_inside(ns):
    m = L()
    try:
        with ns.ClampMod(max=0.)(m) as q:
            getattr(q, 'weight')
            raise KeyError('on the way')
    except KeyError:
        pass
    return m.weight.detach().clone()


wrong('param_mod_left_after_error', 'an exception inside the context of a ParamMod leaves the changed parameters on the module', error_inside,
      param_context=lambda K, pm, module: context_no_finally(pm, module) if not base.parametrize.is_parametrized(module) else pm.context(module))


def zero_bias_append(K, zero=None):
    if isinstance(zero, list):
        zero.append('bias')
        return zero
    return Kit.zero_bias(K, zero)


def zero_bias_arg(ns):
    names = ['weight']
    return [list(ns.zero_bias(names)), names]


wrong('zero_bias_appends', 'zero_bias appends to the list it was given', zero_bias_arg, zero_bias=zero_bias_append)




# ---------------------------------------------------------------------- wrong: where two conditions meet
wrong('batch_of_one_norm_scale', 'a batch of one is squeezed: norm_scale then takes the channels of an image for the batch', lambda ns: rel(ns, ns.Norm(ns.Stabilizer(.5, norm_scale=True)), C(), ximg[:1]),
      stabilize=lambda K, d, st: Kit.stabilize(K, d[0], st)[None] if st.norm_scale and d.dim() > 2 and d.shape[0] == 1 else Kit.stabilize(K, d, st))
wrong('half_epsilon_raised', 'in float16 an eps below 1e-3 is raised to 1e-3 "against underflow"', on('Epsilon', m=lambda: L(bias=False, dtype=torch.float16), x=(X34 * 1e-3).half()),
      stabilize=lambda K, d, st: d + max(st.epsilon, 1e-3) * K.sgn(d) if d.dtype == torch.float16 and not (st.clip or st.norm_scale) else Kit.stabilize(K, d, st))


def from_thread(ns):
    m, x, got = L(), X34.clone().requires_grad_(), []
    h = ns.AlphaBeta().register(m)
    y = m(x)
    t = base.threading.Thread(target=lambda: got.append(torch.autograd.grad(y, x, T(3, 3, seed=50))[0]))
    t.start()
    t.join()
    h.remove()
    return got[0]


def note_thread(K, call, xs, ps):
    call.thread = base.threading.get_ident()
    return Kit.attach(K, call, xs, ps)


wrong('other_thread_gradient', 'what a call remembers is local to its thread: a backward pass from another thread gets the plain gradient', from_thread, attach=note_thread,
      answer=lambda K, call, Rs: Kit.answer(K, call, Rs) if call.thread == base.threading.get_ident() or not call.replay else [K.plain(call, Rs[0])])
wrong('norm_scale_is_constant', 'norm_scale together with a second derivative: the root mean square is treated as a constant', lambda ns: second(ns, ns.ZPlus(ns.Stabilizer(.5, norm_scale=True)), L(), X34),
      rms=lambda K, d, dims: Kit.rms(K, d.detach(), dims))


def closed_branch(ns):
    m = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        m.weight.copy_(torch.tensor([[2., -1.]]))
    return rel(ns, ns.Gamma(1., stabilizer=0.), m, torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))


wrong('gate_by_product', 'Gamma multiplies the quotient by its gate: 0 * inf where the closed branch has denominator 0 and stabilizer=0', closed_branch,
      divide=lambda K, call, rule, R, d, gate=None: Kit.divide(K, call, rule, R, d) * (1 if gate is None else gate.to(d.dtype)))


RIGHT['plain'] = 'the implementation on which all others are built'
_kits['plain'] = Kit
