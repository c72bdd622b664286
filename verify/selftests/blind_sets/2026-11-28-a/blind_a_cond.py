"""Wrong only under one condition, or where two things meet."""
import copy
from collections import OrderedDict
from contextlib import contextmanager
import torch
import blind_a_base
from blind_a_kit import B, C, CT, Core, batched_tensor, D, L, T, differs, fill, gen, names_of, refused, rel, same, second, set_, wrong
from blind_a_whole import GammaForm, Halves, TwoHalves


# --- values of options -----------------------------------------------------------------------------------------------------------
@wrong('epsilon or 1e-6: LRP-0 (epsilon=0) is stabilized after all.', differs('Epsilon', m=lambda: set_(L(2, 1, bias=False), [[1., 1.]]), epsilon=0,
                                                                        x=lambda: torch.tensor([[1., -1. + 2e-7]], dtype=D, requires_grad=True)))
class epsilon_zero_default(Core):
    def S(self, d, stab):
        return super().S(d, stab or 1e-6)


@wrong('With beta=0 the second half is evaluated and multiplied by zero: NaN where its denominator is zero and epsilon is zero.',
       differs('AlphaBeta', alpha=1., beta=0., stabilizer=0., m=lambda: set_(L(bias=False), torch.ones(3, 4)), x=lambda: T(3, 4).detach().abs().requires_grad_()))
class ab_beta_zero(Core):
    def alphabeta(self, c, R, alpha, beta, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        Pp, Pn = self.mod(P, self.pos), self.mod(P, self.neg)
        return alpha * self.two(c, Pp, Pn, R, stabilizer) - beta * self.two(c, Pn, Pp, R, stabilizer)


# --- zero_params -----------------------------------------------------------------------------------------------------------------
@wrong('zero_params as one string is searched for the name: "my_bias" zeroes the bias.', differs('Epsilon', zero_params='my_bias'))
class zero_substring(Core):
    def zero(self, P, zero):
        return super().zero(P, [k for k in P if k in zero] if isinstance(zero, str) else zero)


@wrong('AlphaBeta forgets zero_params in its negative half.', differs('AlphaBeta', m=lambda: L(seed=5), zero_params='bias'))
class zero_half(Core):
    def alphabeta(self, c, R, alpha, beta, stabilizer, zero_params=None):
        r = super().alphabeta(c, R, 1., 0, stabilizer, zero_params)
        return alpha * r - beta * self.two(c, self.mod(c.P, self.neg), self.mod(c.P, self.pos), R, stabilizer) if beta else alpha * r


@wrong('The gate of Gamma is that of the layer with zero_params applied.', differs('Gamma', m=lambda: set_(L(), .3 * torch.ones(3, 4), [5., -5., 5.]), zero_params='bias'))
class gamma_gate_zeroed(Core):
    def gate(self, c, P):
        return c.z if all(P[k] is c.P[k] for k in P) else self.lin(c, P, c.x)[0].detach()


@wrong('copy() loses zero_params.', lambda W: not same(*(rel(ns.Epsilon(zero_params='bias').copy(), L(), T(3, 4)) for ns in (W, B))))
class copy_loses_zero(Core):
    def copied(self, rule):
        return type(rule)(**{k: v for k, v in rule.opts.items() if k != 'zero_params'})


# --- Gamma's gate ----------------------------------------------------------------------------------------------------------------
@wrong('Where z is exactly zero, Gamma takes the positive branch.', differs('Gamma', m=lambda: set_(L(2, 1, bias=False), [[1., 1.]]), x=lambda: torch.tensor([[1., -1.]], dtype=D, requires_grad=True)))
class gamma_zero_positive(GammaForm):
    def form(self, c, R, g, stab, P, up, dn, p, n):
        return self.two(c, up, dn, R, stab, ~(c.z < 0)) + self.two(c, dn, up, R, stab, n)


@wrong('The gate of Gamma is the sign of the modified denominator dp.', differs('Gamma', gamma=3., m=lambda: L(8, 6), x=lambda: T(4, 8)))
class gamma_gate_modified(GammaForm):
    def form(self, c, R, g, stab, P, up, dn, p, n):
        d = self.lin(c, up, self.pos(c.x))[0] + self.lin(c, self.nob(dn), self.neg(c.x))[0]
        return self.two(c, up, dn, R, stab, d > 0) + self.two(c, dn, up, R, stab, d < 0)


@wrong('The branches of Gamma are masked by multiplication: 0/0 where the other branch has a zero denominator and stabilizer=0.',
       differs('Gamma', stabilizer=0., gamma=1., m=lambda: set_(L(2, 1, bias=False), [[2., -1.]]), x=lambda: torch.tensor([[1., 1.]], dtype=D, requires_grad=True)))
class gamma_masked_product(Core):
    def div(self, R, d, stab, mask=None):
        return super().div(R, d, stab) * (1 if mask is None else mask.to(d.dtype))


def _inplace_mul(ns):
    m, x = L(), T(3, 4)
    h = ns.Gamma().register(m)
    y = m(x)
    y.mul_(-1.)
    h.remove()
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


@wrong('The gate of Gamma is read from the output tensor in the backward pass; an in-place layer after it (here mul_) turns it.', lambda W: not same(_inplace_mul(W), _inplace_mul(B)))
class gamma_gate_late(Core):
    def on_forward(self, rule, *a):
        self.last = None
        y = super().on_forward(rule, *a)
        if torch.is_tensor(y) and rule.kind == 'gamma' and self.last is not None:
            self.last.z = y.detach()
        self.last = None
        return y

    def make_call(self, *a):
        self.last = super().make_call(*a)
        return self.last


# --- layers ----------------------------------------------------------------------------------------------------------------------
CIRC = lambda: C(2, 3, padding=2, padding_mode='circular')


@wrong('ZPlus clamps the matrix entries, A(w)+, which differs where circular padding gathers several parameters in one entry.',
       differs('ZPlus', m=CIRC, x=lambda: T(2, 2, 2, 2)))
class matrix_clamp(TwoHalves):
    def halves(self, c, R, stab, P, Pp, Pn, xp, xn):
        if getattr(c.snap, 'padding_mode', 'zeros') == 'zeros' or not self.batched(c):
            return self.two(c, Pp, Pn, R, stab)
        n = c.x[0].numel()
        E = torch.eye(n, dtype=c.x.dtype).reshape((n,) + tuple(c.x.shape[1:]))
        A = self.run(c, self.nob(P), E).reshape(n, -1)
        b = self.run(c, self.mod(Pp, lambda p: p), E[:1] * 0).reshape(-1)
        s = self.div(R, (xp.flatten(1) @ self.pos(A) + xn.flatten(1) @ self.neg(A) + b).reshape(R.shape), stab).reshape(R.shape[0], -1)
        return (xp.flatten(1) * (s @ self.pos(A).t()) + xn.flatten(1) * (s @ self.neg(A).t())).reshape(c.x.shape)


@wrong('The transpose of a convolution with reflect padding is that of zero padding.', differs('Epsilon', m=lambda: C(padding=1, padding_mode='reflect'), x=lambda: T(2, 2, 4, 4)))
class reflect_adjoint(Core):
    def lin(self, c, P, x, center=False):
        y, back = super().lin(c, P, x, center)
        if getattr(c.snap, 'padding_mode', '') != 'reflect':
            return y, back
        c2 = copy.copy(c)
        c2.snap = self.shallow(c.snap, c.P)
        c2.snap.__dict__['padding_mode'] = 'zeros'
        return y, super().lin(c2, P, x, center)[1]


@wrong('ZBox pads the bounds by their border values instead of zeros like the input.', differs('ZBox', low=-3., high=4., m=lambda: C(padding=1), x=lambda: T(2, 2, 4, 4)))
class zbox_padded_bounds(Core):
    def lin(self, c, P, x, center=False):
        if x is not getattr(c, 'edge', None) or 'Conv' not in type(c.snap).__name__ or 'Transpose' in type(c.snap).__name__ or c.snap.padding_mode != 'zeros' or isinstance(c.snap.padding, str):
            return super().lin(c, P, x, center)
        c2 = copy.copy(c)
        c2.snap = self.shallow(c.snap, c.P)
        c2.snap.__dict__['padding_mode'] = 'replicate'
        return super().lin(c2, P, x, center)[0], super().lin(c, P, x, center)[1]

    def box(self, c, R, P, l, h, stab):
        y, b = self.lin(c, P, c.x)
        out = []
        for Q, v in ((self.mod(P, self.pos), l), (self.mod(P, self.neg), h)):
            k = copy.copy(c)
            k.edge = v
            out.append(self.lin(k, Q, v))
        s = self.div(R, y - out[0][0] - out[1][0], stab)
        return c.x * b(s) - l * out[0][1](s) - h * out[1][1](s)


@wrong('Flat counts the full kernel for every output: borders of a padded convolution count as many as the middle.', differs('Flat', m=lambda: C(padding=1), x=lambda: T(2, 2, 4, 4)))
class flat_borders(Core):
    def flat(self, c, R, stabilizer, zero_params=None):
        m = c.snap
        if not isinstance(m, torch.nn.Conv2d) or m.padding_mode != 'zeros':
            return super().flat(c, R, stabilizer, zero_params)
        _, back = self.lin(c, self.nob(self.mod(c.P, torch.ones_like)), self.ones(c))
        return back(self.div(R, torch.full_like(c.z, m.weight[0].numel()), stabilizer))


@wrong('The denominator of WSquare counts all input channels for a grouped convolution (it sums the squares as if groups were 1).',
       differs('WSquare', m=lambda: C(2, 4, groups=2), x=lambda: T(2, 2, 4, 4)))
class wsquare_groups(Core):
    def wsquare(self, c, R, stabilizer, zero_params=None):
        g = getattr(c.snap, 'groups', 1)
        if g == 1:
            return super().wsquare(c, R, stabilizer, zero_params)
        Q = self.mod(self.zero(c.P, zero_params), self.square)
        y, back = self.lin(c, Q, self.ones(c))
        y0 = self.lin(c, self.nob(Q), self.ones(c))[0]
        return back(self.div(R, y + (g - 1) * y0, stabilizer))


@wrong('Linear layers on more than two dimensions (tokens) lose the positive bias in ZPlus.', differs('ZPlus', m=lambda: L(seed=5), x=lambda: T(2, 3, 4)))
class tokens_no_bias(TwoHalves):
    def halves(self, c, R, stab, P, Pp, Pn, xp, xn):
        return self.two(c, self.nob(Pp) if isinstance(c.snap, torch.nn.Linear) and c.x.ndim > 2 else Pp, Pn, R, stab)


@wrong('An unbatched image is given a batch dimension and the bias is added to the wrong dimension (it is lost) in Epsilon.', differs('Epsilon', m=C, x=lambda: T(2, 4, 4)))
class unbatched_bias(Core):
    def eps_one(self, c, R, P, epsilon):
        return super().eps_one(c, R, self.nob(P) if isinstance(c.snap, torch.nn.Conv2d) and c.x.ndim == 3 else P, epsilon)


@wrong('For a square weight the transposition is forgotten (told apart by shape).', differs('Epsilon', m=lambda: L(4, 4), x=lambda: T(3, 4)))
class square_weight(Core):
    def lin(self, c, P, x, center=False):
        y, back = super().lin(c, P, x, center)
        w = P.get('weight')
        return y, ((lambda s: s @ w.t()) if type(c.snap) is torch.nn.Linear and w.shape[0] == w.shape[1] else back)


def _normed(seed=2):
    m = torch.nn.utils.parametrizations.weight_norm(L(seed=seed))
    with torch.no_grad():
        m.parametrizations.weight.original0.mul_(torch.tensor([[1.], [3.], [.2]], dtype=D))
    return m


@wrong('Under a parametrization (weight_norm) the direction v is taken for the weight.', differs('Epsilon', m=_normed))
class weight_norm_v(Core):
    def effective(self, module):
        P = super().effective(module)
        par = getattr(module, 'parametrizations', {})
        for k in par:
            o = getattr(par[k], 'original1', None)
            if o is not None and o.shape == P[k].shape:
                P[k] = o
        return P


def _bn():
    m = fill(torch.nn.BatchNorm2d(2).double())
    m(T(6, 2, 4, 4).detach() + 1.)
    return m.eval()


@wrong('Epsilon on batch norm (eval) leaves the running mean out of the denominator.', differs('Epsilon', m=_bn, x=lambda: T(3, 2, 4, 4)))
class bn_mean_lost(Core):
    def lin(self, c, P, x, center=False):
        return super().lin(c, P, x, False)


@wrong('Flat on a layer without parameters uses the input instead of ones.', differs('Flat', m=lambda: torch.nn.MaxPool2d(2), x=lambda: T(2, 1, 4, 4)))
class flat_pool_input(Core):
    def flat(self, c, R, stabilizer, zero_params=None):
        if c.P:
            return super().flat(c, R, stabilizer, zero_params)
        y, back = self.lin(c, c.P, c.x)
        return back(self.div(R, y, stabilizer))


@wrong('Norm on a layer that keeps the shape takes it for linear through the origin (f(x) s instead of x J^T s).', differs('Norm', m=torch.nn.Tanh))
class norm_elementwise(Core):
    def norm(self, c, Rs, stabilizer):
        if not c.known and len(c.xs) == 1 and c.z.shape == c.x.shape:
            f = c.outs[0] if c.cg else c.z
            return [f * self.div(Rs[0], f, stabilizer)]
        return super().norm(c, Rs, stabilizer)


def _inplace_pass(ns):
    h = ns.Pass().register(m := torch.nn.ReLU(inplace=True))
    x = T(3, 4)
    y = m(x * 1)
    h.remove()
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


class NoStash(blind_a_base.PreHook):
    def __call__(self, module, args, kwargs):
        return None


@wrong('Pass on ReLU(inplace=True): the relevance goes through the gradient of the ReLU.', lambda W: not same(_inplace_pass(W), _inplace_pass(B)))
class inplace_gradient(Core):
    def register(self, rule, module):
        h = super().register(rule, module)
        for k, v in module._forward_pre_hooks.items():
            if isinstance(v, blind_a_base.PreHook):
                module._forward_pre_hooks[k] = NoStash(self, rule)
        return h


# --- bounds ----------------------------------------------------------------------------------------------------------------------
@wrong('A bound with fewer dimensions is aligned at the end where that fits, not given trailing ones.',
       differs('ZBox', m=lambda: C(3, 2), x=lambda: T(2, 3, 3, 3), low=torch.tensor([[-5., -4., -3.]]), high=5.))
class bound_leading(Core):
    def bound(self, c, v, what):
        if torch.is_tensor(v) and 0 < v.ndim < c.x.ndim:
            try:
                return v.to(c.x).expand(c.x.shape)
            except RuntimeError:
                pass
        return super().bound(c, v, what)


@wrong('Inputs outside the box are clamped into it first.', differs('ZBox', low=-.2, high=.2))
class box_clamps_input(Core):
    def box(self, c, R, P, l, h, stab):
        c = copy.copy(c)
        c.x = torch.minimum(torch.maximum(c.x, l), h)
        return super().box(c, R, P, l, h, stab)


def _low_shape(ns):
    low = torch.tensor([[-3., -4.]], dtype=D)
    rel(ns.ZBox(low, 5.), C(), T(2, 2, 4, 4))
    return tuple(low.shape)


@wrong('The trailing ones are added to the bound of the caller in place (unsqueeze_).', lambda W: _low_shape(W) != (1, 2))
class bound_unsqueezed(Core):
    def bound(self, c, v, what):
        if torch.is_tensor(v):
            while v.ndim < c.x.ndim:
                v.unsqueeze_(-1)
        return super().bound(c, v, what)


# --- special data ----------------------------------------------------------------------------------------------------------------
@wrong('ZPlus looks at the first sample only to decide that inputs are nonnegative, and then skips x- for all.',
       differs('ZPlus', x=lambda: torch.cat([T(1, 4).detach().abs(), T(2, 4, seed=7).detach()]).requires_grad_()))
class fast_first_sample(TwoHalves):
    def halves(self, c, R, stab, P, Pp, Pn, xp, xn):
        if c.x.ndim > 1 and bool((c.x[0] >= 0).all()):
            y, b = self.lin(c, Pp, xp)
            return xp * b(self.div(R, y, stab))
        return self.two(c, Pp, Pn, R, stab)


@wrong('Flat leaves pruned weights (exact zeros) at zero.', differs('Flat', m=lambda: set_(L(), [[1., 0, 2, 0], [1, 1, 1, 1], [0, 0, 0, 3]])))
class flat_pruned(Core):
    def flat(self, c, R, stabilizer, zero_params=None):
        y, back = self.lin(c, self.nob(self.mod(c.P, lambda p: (p != 0).to(p.dtype))), self.ones(c))
        return back(self.div(R, y, stabilizer))


@wrong('0/0 is defined as 0: where the stabilized denominator is zero (epsilon=0) the relevance vanishes without a word.', differs('Epsilon', epsilon=0., m=lambda: set_(L(2, 1, bias=False), [[1., 1.]]), R=lambda: torch.ones(1, 1, dtype=D),
                                                                          x=lambda: torch.tensor([[1., -1.]], dtype=D, requires_grad=True)))
class zero_by_zero(Core):
    def div(self, R, d, stab, mask=None):
        q = self.S(d, stab)
        return super().div(R, d, stab, q != 0 if mask is None else mask & (q != 0))


@wrong('x+ and x- by where(x > 0): NaN in the input becomes zero.', lambda W: not same(*(rel(ns.ZPlus(), L(), torch.tensor([[float('nan'), 1., -1., 2.]], dtype=D, requires_grad=True)) for ns in (W, B))))
class where_nan(Core):
    def pos(self, v):
        return torch.where(v > 0, v, torch.zeros_like(v))

    def neg(self, v):
        return torch.where(v < 0, v, torch.zeros_like(v))


def _inf_R(ns):
    R = torch.ones(3, 3, dtype=D)
    R[0, 0] = float('inf')
    return rel(ns.Norm(), L(), T(3, 4), R)[1:]


@wrong('If anything in the batch is not finite, s of the whole batch is zero.', lambda W: not same(_inf_R(W), _inf_R(B)))
class batch_not_finite(Core):
    def div(self, R, d, stab, mask=None):
        s = super().div(R, d, stab, mask)
        return torch.where(torch.isfinite(s.sum()), s, torch.zeros_like(s))


@wrong('-0.0 counts as negative (copysign).', lambda W: float(W.Stabilizer(.1)(torch.tensor([[-0.]]))) < 0)
class minus_zero(Core):
    def sign(self, d):
        return torch.copysign(torch.ones_like(d), d)


@wrong('An expanded relevance (stride 0, as sum() makes it) is taken for ones.', differs('Epsilon', R=lambda: torch.tensor(3., dtype=D).expand(3, 3)))
class expanded_relevance(Core):
    def relevance(self, c, rule, Rs):
        return super().relevance(c, rule, [torch.ones_like(R) if R.numel() > 1 and not any(R.stride()) else R for R in Rs])


# --- size, layout, dtype ---------------------------------------------------------------------------------------------------------
@wrong('float64 layers are computed in float32.', differs('Epsilon', tol=1e-9))
class double_to_single(Core):
    def div(self, R, d, stab, mask=None):
        return super().div(R.float(), d.float(), stab, mask).to(d.dtype)


@wrong('The batch is worked off in blocks of 16; the remainder gets nothing.', differs('Gamma', x=lambda: T(20, 4)))
class block_remainder(Core):
    def gamma(self, c, R, *a, **k):
        r = super().gamma(c, R, *a, **k)
        n = r.shape[0]
        return r if n < 16 or n % 16 == 0 else torch.cat([r[:n - n % 16], torch.zeros_like(r[n - n % 16:])])


@wrong('Output features in blocks of 32 that overlap by one: feature 32 counts twice in the transport.', differs('Epsilon', m=lambda: L(4, 40), x=lambda: T(3, 4)))
class block_overlap(Core):
    def lin(self, c, P, x, center=False):
        y, back = super().lin(c, P, x, center)
        if not isinstance(c.snap, torch.nn.Linear) or y.shape[-1] <= 32:
            return y, back
        w = P['weight']
        return y, lambda s: sum(s[..., max(i - 1, 0):i + 32] @ w[max(i - 1, 0):i + 32] for i in range(0, w.shape[0], 32))


@wrong('A channels-last input is read in memory order.', differs('AlphaBeta', m=C, x=lambda: T(2, 2, 4, 4).detach().contiguous(memory_format=torch.channels_last).requires_grad_()))
class memory_order(Core):
    def alphabeta(self, c, *a, **k):
        if c.x.ndim == 4 and not c.x.is_contiguous() and c.x.is_contiguous(memory_format=torch.channels_last):
            c = copy.copy(c)
            c.x = c.x.permute(0, 2, 3, 1).reshape(c.x.shape)
        return super().alphabeta(c, *a, **k)


@wrong('norm_scale squeezes the denominator: for a batch of one image the scale is per channel.',
       lambda W: not same(*(rel(ns.Epsilon(epsilon=ns.Stabilizer(.5, norm_scale=True)), C(), T(1, 2, 4, 4)) for ns in (W, B))))
class norm_batch_of_one(Core):
    def rms(self, d, dim):
        return super().rms(d, (2, 3) if dim is None and d.ndim == 4 and d.shape[0] == 1 else dim)


# --- helpers ---------------------------------------------------------------------------------------------------------------------
def _basic(make, m=L, x=lambda: T(3, 4)):
    def show(W):
        return not same(*(rel(make(ns), m(), x()) for ns in (W, B)))
    return show


@wrong('if min: ClampMod(min=0.) does not clamp.', _basic(lambda ns: ns.BasicHook(param_modifiers=[ns.ClampMod(min=0.)])))
class clamp_min_zero(Core):
    def clampfn(self, p, min, max):
        return super().clampfn(p, min or None, max)


@wrong('param_keys=[] is taken for None: every parameter is changed.', _basic(lambda ns: ns.BasicHook(param_modifiers=[ns.ClampMod(min=0., param_keys=[])])))
class keys_empty(Core):
    def modified(self, mod, module, P):
        mod = copy.copy(mod)
        mod.param_keys = mod.param_keys or None
        return super().modified(mod, module, P)


def _left(ns):
    m = L()
    keep = m.weight.detach().clone()
    try:
        with ns.ClampMod(min=0.)(m):
            raise KeyError
    except KeyError:
        pass
    return not torch.equal(keep, m.weight.detach())


@wrong('ParamMod changes the module in place and, on an exception inside the with block, does not restore it.', _left)
class mod_not_restored(Core):
    @contextmanager
    def modify(self, mod, module):
        old = {k: v.detach().clone() for k, v in module._parameters.items() if v is not None}
        for k, v in self.modified(mod, module, self.effective(module)).items():
            if k in old:
                module._parameters[k].data.copy_(v.detach())
        yield module
        for k, v in old.items():
            module._parameters[k].data.copy_(v)


@wrong('With dim given, the reduced dimension is dropped and the scale is broadcast along the wrong one (seen with square denominators).',
       lambda W: not same(*(ns.Stabilizer(.1, norm_scale=True, dim=1)(T(4, 4).detach()) for ns in (W, B))))
class norm_keepdim(Core):
    def rms(self, d, dim):
        r = super().rms(d, dim)
        return r if dim is None or isinstance(dim, tuple) or d.ndim != 2 or d.shape[0] != d.shape[1] else r.squeeze(dim)


@wrong('BasicHook: input modifiers that return the input itself share one tensor, each of them gets the sum of all gradients.', _basic(lambda ns: ns.BasicHook(
    input_modifiers=[lambda x: x, lambda x: x], param_modifiers=[ns.ClampMod(min=0.), ns.ClampMod(max=0.)], reducer=lambda i, g: i[0] * g[0])))
class basic_shared_input(Core):
    def basic(self, c, R, input_modifiers, param_modifiers, output_modifiers, gradient_mapper, reducer):
        def red2(ins, gs):
            same_ = [i for i, f in enumerate(input_modifiers) if f(c.x) is c.x]
            gs = list(gs)
            if len(same_) > 1:
                tot = sum(gs[i] for i in same_)
                for i in same_:
                    gs[i] = tot
            return reducer(ins, gs)
        return super().basic(c, R, input_modifiers, param_modifiers, output_modifiers, gradient_mapper, red2)


# --- derivatives -----------------------------------------------------------------------------------------------------------------


@wrong('ReLUBetaSmooth gates with a detached input: no second derivative, the purpose of the rule.', lambda W: [
    [rel(ns.ReLUBetaSmooth(), torch.nn.ReLU(), x, R := torch.ones(2, 4, dtype=D, requires_grad=True), create_graph=True).sum().backward() or x.grad is None for x in [T(2, 4)]][0] for ns in (W, B)] == [True, False])
class smooth_detached(Core):
    def smooth(self, c, R, beta_smooth):
        return torch.sigmoid(beta_smooth * c.x.detach()) * R


# --- reuse, memory, conduct ------------------------------------------------------------------------------------------------------
def _again(ns):
    m, x = L(), T(3, 4)
    h = ns.Epsilon().register(m)
    y = m(x)
    torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    h.remove()
    return torch.autograd.grad(y, x, torch.arange(9, dtype=D).reshape(3, 3))[0]


@wrong('A second backward pass through the same graph gives the relevance of the first, whatever R is.', lambda W: not same(_again(W), _again(B)))
class first_relevance(Core):
    def make_call(self, *a):
        c = super().make_call(*a)
        c.kept = []
        return c

    def relevance(self, c, rule, Rs):
        if c.cg or batched_tensor(Rs[0]):
            return super().relevance(c, rule, Rs)
        if not c.kept:
            c.kept.append(super().relevance(c, rule, Rs))
        return c.kept[0]


def _two_modules(ns):
    rule, a, b, x = ns.WSquare(), L(seed=2), L(seed=3), T(3, 4)
    hs = [rule.register(a), rule.register(b)]
    ys = [a(x), b(x)]
    for h in hs:
        h.remove()
    return torch.autograd.grad(ys[0], x, torch.ones_like(ys[0]))[0]


@wrong('One instance on two modules: both use the weights of the module that was registered last, if the shapes agree.', lambda W: not same(_two_modules(W), _two_modules(B)))
class last_module(Core):
    def register(self, rule, module):
        rule.module = module
        return super().register(rule, module)

    def make_call(self, rule, module, *a):
        c = super().make_call(rule, module, *a)
        other = getattr(rule, 'module', module)
        if other is not module:
            Q = self.effective(other)
            if all(k in Q and Q[k] is not None and v is not None and Q[k].shape == v.shape for k, v in c.P.items()):
                c.P = OrderedDict((k, Q[k].clone()) for k in c.P)
        return c


def _two_nets(ns):
    return [rel(ns.WSquare(), L(seed=s), T(3, 4)) for s in (2, 3)][1]


@wrong('The denominator of WSquare is cached by shape: the next layer of the same shape gets that of the first.', lambda W: not same(_two_nets(W), _two_nets(B)))
class cached_by_shape(Core):
    def __init__(self):
        self.cache = {}

    def wsquare(self, c, R, stabilizer, zero_params=None):
        Q = self.mod(self.zero(c.P, zero_params), self.square)
        y, back = self.lin(c, Q, self.ones(c))
        if c.cg or zero_params:
            return back(self.div(R, y, stabilizer))
        k = (tuple(c.x.shape), tuple(c.z.shape), c.x.dtype, type(c.snap), tuple(c.P['weight'].shape))
        return back(self.div(R, self.cache.setdefault(k, y), stabilizer))


def _data_edit(ns):
    m, rule = L(), ns.ZPlus()
    x = T(3, 4)
    rel(rule, m, x)
    m.weight.data.neg_()
    return rel(rule, m, x)


@wrong('Clamped weights are cached by the version counter of the parameter, which an edit of .data does not move.', lambda W: not same(_data_edit(W), _data_edit(B)))
class cached_by_version(Core):
    def __init__(self):
        self.cache = {}

    def make_call(self, rule, module, *a):
        c = super().make_call(rule, module, *a)
        for k, v in module._parameters.items():
            if v is not None and k in c.P:
                ref, ver, val = self.cache.get((id(module), k), (None, None, None))
                if ref is v and ver == v._version:
                    c.P[k] = c.P[k] + (val - c.P[k].detach())
                else:
                    self.cache[id(module), k] = (v, v._version, v.detach().clone())
        return c


def _late(ns):
    m, x = L(), T(3, 4)
    h = ns.AlphaBeta().register(m)
    y = m(x)
    with torch.no_grad():
        m.weight.add_(1.)
    h.remove()
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


@wrong('The weights are read in the backward pass: a step between forward and backward changes the relevance of the call.', lambda W: not same(_late(W), _late(B)))
class weights_at_backward(Core):
    def relevance(self, c, rule, Rs):
        c = copy.copy(c)
        c.P = OrderedDict((k, v if v is None else self.effective(c.module)[k]) for k, v in c.P.items()) if c.known else c.P
        return super().relevance(c, rule, Rs)


def _others(ns):
    m, n = L(), []
    m.register_forward_hook(lambda *a: n.append(1))
    h = ns.ZPlus().register(m)
    m(T(3, 4))
    h.remove()
    m(T(3, 4))
    return len(n)


@wrong('remove() clears all forward hooks of the module, those of others too.', lambda W: _others(W) == 1 and _others(B) == 2)
class clears_hooks(Core):
    def remove(self, handle):
        super().remove(handle)
        handle.module._forward_hooks.clear()


def _bn_stats(ns):
    m = torch.nn.BatchNorm1d(4).double()
    rel(ns.Norm(), m, T(3, 4))
    return int(m.num_batches_tracked)


@wrong('Norm runs the module again in the backward pass: batch norm in training counts the batch twice.', lambda W: _bn_stats(W) == 2 and _bn_stats(B) == 1)
class runs_twice(Core):
    def norm(self, c, Rs, stabilizer):
        if isinstance(c.module, torch.nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                c.module.forward(c.x.detach())
        return super().norm(c, Rs, stabilizer)


def _keyword(ns):
    m, x = L(), T(3, 4)
    h = ns.ZPlus().register(m)
    try:
        y = m(input=x)
        return same(torch.autograd.grad(y, x, torch.ones_like(y))[0], m.weight.sum(0).expand(3, 4).detach())
    except TypeError:
        return False
    finally:
        h.remove()


@wrong('A tensor passed by keyword is not seen: the plain gradient comes out.', _keyword)
class keyword_gradient(Core):
    def on_forward(self, rule, module, args, kwargs, output):
        return super().on_forward(rule, module, args, kwargs, output) if args else None


def _container(ns):
    m, x = torch.nn.Sequential(L()), T(3, 4)
    try:
        return rel(ns.ZPlus(), m, x, torch.ones(3, 3, dtype=D)) is not None
    except RuntimeError:
        return False


@wrong('A rule on a container whose parts have the parameters gives the plain gradient.', _container)
class container_gradient(Core):
    def on_forward(self, rule, module, args, kwargs, output):
        return None if self.foreign(module) and rule.kind in ('zplus', 'alphabeta', 'gamma', 'zbox', 'wsquare', 'flat') else super().on_forward(rule, module, args, kwargs, output)


def _boom(ns):
    m = L()
    keep = m.weight.detach().clone()

    def stab(d):
        raise KeyError('stab')
    try:
        rel(ns.ZPlus(stabilizer=stab), m, T(3, 4))
    except KeyError:
        pass
    return not torch.equal(keep, m.weight.detach())


@wrong('ZPlus clamps the weights in the module for a moment and restores them, but not if a stabilizer raises.', _boom)
class exception_leaves_clamp(Core):
    def zplus(self, c, R, stabilizer, zero_params=None):
        w = c.module._parameters.get('weight')
        if w is None:
            return super().zplus(c, R, stabilizer, zero_params)
        old = w.detach().clone()
        w.data.clamp_(min=0)
        r = super().zplus(c, R, stabilizer, zero_params)
        w.data.copy_(old)
        return r


def _storage(ns):
    m = L()
    p = m.weight.data_ptr()
    keep = m.weight.data
    rel(ns.Gamma(), m, T(3, 4))
    return m.weight.data_ptr() != p


@wrong('Gamma puts the weights back as a copy (p.data = saved): views of the old storage (flattened or shared parameters) no longer follow.', _storage)
class new_storage(Core):
    def gamma(self, c, *a, **k):
        r = super().gamma(c, *a, **k)
        for p in c.module._parameters.values():
            if p is not None:
                p.data = p.data.clone()
        return r


# --- two paths, numerical shortcuts, several tensors -----------------------------------------------------------------------------
def _graph(ns):
    return rel(ns.Epsilon(), L(), T(3, 4), create_graph=True).detach()


@wrong('The separate differentiable path of Epsilon (create_graph=True) forgets the bias; without create_graph all is right.', lambda W: not same(_graph(W), _graph(B)))
class graph_path(Core):
    def eps_one(self, c, R, P, epsilon):
        return super().eps_one(c, R, self.nob(P) if c.cg else P, epsilon)


def _frozen(ns):
    m, x = L().requires_grad_(False), T(3, 4)
    h = ns.ZPlus().register(m)
    y = m(x)
    with torch.no_grad():
        m.weight.add_(1.)
    h.remove()
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


@wrong('Frozen parameters are kept by reference, not copied: a change between forward and backward reaches an earlier call.', lambda W: not same(_frozen(W), _frozen(B)))
class frozen_alias(Core):
    def snapshot(self, p):
        return p.clone() if p.requires_grad else p.detach()


def _moved_stats(ns):
    m, x = _bn(), T(3, 2, 4, 4)
    h = ns.Norm().register(m)
    y = m(x)
    h.remove()
    m.running_mean.add_(2.)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


@wrong('The running statistics of a batch norm are read in the backward pass, not as the call used them.', lambda W: not same(_moved_stats(W), _moved_stats(B)))
class bn_buffers_late(Core):
    def relevance(self, c, rule, Rs):
        if c.known and 'running_mean' in c.module._buffers:
            c = copy.copy(c)
            c.snap = self.shallow(c.module, c.P)
        return super().relevance(c, rule, Rs)


class Product(torch.nn.Module):
    def forward(self, a, b):
        return torch.tanh(a) * b


class Split(torch.nn.Module):
    def forward(self, a):
        return torch.tanh(a), a * a


def _several(ns, second_output=False):
    m, xs = (Split(), [T(3, 4)]) if second_output else (Product(), [T(3, 4), T(3, 4, seed=9)])
    h = ns.Norm().register(m)
    y = m(*xs)
    h.remove()
    y = y if isinstance(y, tuple) else (y,)
    return torch.cat(torch.autograd.grad(y, xs, [torch.ones_like(v) for v in y]))


@wrong('Norm on a module with two inputs: the second one gets its gradient, without the factor x.', lambda W: not same(_several(W), _several(B)))
class norm_second_input(Core):
    def norm(self, c, Rs, stabilizer):
        r = list(super().norm(c, Rs, stabilizer))
        if len(c.xs) > 1 and r[1] is not None:
            r[1] = torch.autograd.grad(c.outs, c.xs[1], [self.div(R, o if c.cg else o.detach(), stabilizer) for R, o in zip(Rs, c.outs)], create_graph=c.cg, retain_graph=True)[0]
        return r


@wrong('Norm on a module with two outputs uses the relevance of the first only.', lambda W: not same(_several(W, True), _several(B, True)))
class norm_second_output(Core):
    def norm(self, c, Rs, stabilizer):
        return super().norm(c, [Rs[0]] + [torch.zeros_like(R) for R in Rs[1:]], stabilizer)


def _twice(ns):
    m = L()
    h = ns.Epsilon().register(m)
    m.register_forward_hook(lambda *a: None)
    h.remove()
    h.remove()
    return len(m._forward_hooks)


@wrong('remove() called a second time takes away a forward hook of somebody else.', lambda W: _twice(W) == 0 and _twice(B) == 1)
class remove_twice_pops(Core):
    def remove(self, handle):
        if getattr(handle, 'gone', False) and handle.module._forward_hooks:
            handle.module._forward_hooks.popitem(last=True)
        handle.gone = True
        super().remove(handle)


def _gammas(ns):
    m = L()
    return [rel(ns.Gamma(gamma=g), m, T(3, 4)) for g in (.25, 4.)][1]


@wrong('The reinforced weights of Gamma are cached by parameter and version, not by gamma: a second rule with another gamma on the same layer gets those of the first.', lambda W: not same(_gammas(W), _gammas(B)))
class gamma_cached(Core):
    def __init__(self):
        self.cache = {}

    def gamma(self, c, R, gamma, stabilizer, zero_params=None):
        p = c.module._parameters.get('weight')
        if p is not None and not c.cg:
            kept = self.cache.get(id(p))
            if kept is not None and kept[0] is p and kept[1] == p._version:
                gamma = kept[2]
            else:
                self.cache[id(p)] = (p, p._version, gamma)
        return super().gamma(c, R, gamma, stabilizer, zero_params)


@wrong("padding='same' with an even kernel is taken for symmetric in the transposed direction: the relevance is shifted by one pixel.", differs('ZPlus', m=lambda: C(k=2, padding='same'), x=lambda: T(2, 2, 4, 4)))
class same_even(Core):
    def lin(self, c, P, x, center=False):
        y, back = super().lin(c, P, x, center)
        m = c.snap
        if getattr(m, 'padding', None) == 'same' and m.kernel_size[-1] * m.dilation[-1] % 2 == 0:
            return y, lambda s: back(s).roll(-1, -1)
        return y, back


@wrong('Stabilizer.ensure(number) makes one that clips.', lambda W: float(W.Stabilizer.ensure(.5)(torch.ones(1, 1))) != 1.5)
class ensure_clips(Core):
    ensure_options = {'clip': True}


@wrong('ReLUGuidedBackprop takes x > 0 for the derivative, right for ReLU but not for LeakyReLU or ELU.', differs('ReLUGuidedBackprop', m=lambda: torch.nn.LeakyReLU(.3)))
class guided_step(Core):
    def guided(self, c, R):
        return torch.where(R <= 0, torch.zeros_like(R), R * (c.x > 0))


@wrong('The sigmoid of ReLUBetaSmooth is exp(v) / (1 + exp(v)), NaN for large inputs.', differs('ReLUBetaSmooth', m=torch.nn.ReLU, x=lambda: (1000 * T(3, 4).detach()).requires_grad_(), R=lambda: torch.ones(3, 4, dtype=D)))
class smooth_overflow(Core):
    def smooth(self, c, R, beta_smooth):
        e = torch.exp(beta_smooth * c.x)
        return e / (1 + e) * R


@wrong('ZPlus as half the sum of the layer and the layer of magnitudes: equal in exact arithmetic, but small positive parts drown beside large negative ones.',
       differs('ZPlus', m=lambda: set_(L(3, 1, bias=False, dtype=torch.float32), [[1e-5, -30.7, -71.3]]), x=lambda: torch.tensor([[1., 1.1, .93]], requires_grad=True)))
class zplus_by_magnitudes(TwoHalves):
    def halves(self, c, R, stab, P, Pp, Pn, xp, xn):
        (y1, b1), (y2, b2) = self.lin(c, self.nob(P), c.x), self.lin(c, self.nob(self.mod(P, torch.abs)), c.x.abs())
        bias = self.lin(c, Pp, c.x * 0)[0]
        s = self.div(R, (y1 + y2) / 2 + bias, stab)
        return (c.x * b1(s) + c.x.abs() * b2(s)) / 2
