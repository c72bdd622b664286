"""Wrong whenever they are used: a formula or a convention."""
import copy
from collections import OrderedDict
from contextlib import contextmanager
import torch
import blind_a_base
from blind_a_kit import B, C, CT, Core, batched_tensor, D, L, T, differs, fill, names_of, refused, rel, same, second, set_, wrong

ZERO = dict(m=lambda: set_(L(2, 1, bias=False), [[1., 1.]]), x=lambda: torch.tensor([[1., -1.]], dtype=D, requires_grad=True), R=lambda: torch.ones(1, 1, dtype=D))


# --- stabilizer ------------------------------------------------------------------------------------------------------------------
@wrong('torch.sign for the sign of the stabilizer: nothing is added where the denominator is exactly zero.', differs('Epsilon', **ZERO))
class sign_zero(Core):
    def sign(self, d):
        return torch.sign(d)


@wrong('Epsilon is added without the sign of the denominator.', differs('Epsilon', epsilon=1.))
class eps_unsigned(Core):
    def add_eps(self, d, eps):
        return d + eps


@wrong('A number as stabilizer is a lower bound of |d|, not a summand.', differs('WSquare', stabilizer=.5))
class eps_as_clip(Core):
    def add_eps(self, d, eps):
        return self.sign(d) * d.abs().clamp(min=eps)


@wrong('The result of a callable stabilizer is added to the denominator instead of replacing it.', differs('Gamma', stabilizer=lambda d: d + 1e-6))
class callable_summand(Core):
    def S(self, d, stab):
        return d + stab(d) if callable(stab) else super().S(d, stab)


# --- Epsilon and Norm ------------------------------------------------------------------------------------------------------------
@wrong('Epsilon and Norm without the bias in the denominator.', differs('Epsilon'))
class eps_lost_bias(Core):
    def eps_one(self, c, R, P, epsilon):
        return super().eps_one(c, R, self.nob(P), epsilon)


@wrong('ZPlus rescales the result so that every sample conserves its sum.', differs('ZPlus'))
class rescaled(Core):
    def zplus(self, c, R, stabilizer, zero_params=None):
        r = super().zplus(c, R, stabilizer, zero_params)
        if not self.batched(c):
            return r * (R.sum() / (r.sum() + 1e-12))
        k = R.reshape(R.shape[0], -1).sum(1) / (r.reshape(r.shape[0], -1).sum(1) + 1e-12)
        return r * k.reshape((-1,) + (1,) * (r.ndim - 1))


@wrong('Negative relevance from above is dropped before AlphaBeta.', differs('AlphaBeta'))
class positive_relevance(Core):
    def alphabeta(self, c, R, *a, **k):
        return super().alphabeta(c, R.clamp(min=0), *a, **k)


# --- ZPlus -----------------------------------------------------------------------------------------------------------------------
class TwoHalves(Core):
    """ZPlus written out, with places to go wrong."""
    def zplus(self, c, R, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        Pp, Pn = self.mod(P, self.pos), self.mod(P, self.neg)
        xp, xn = self.pos(c.x), self.neg(c.x)
        return self.halves(c, R, stabilizer, P, Pp, Pn, xp, xn)


@wrong('ZPlus is the deep-Taylor form for positive inputs: negative inputs are dropped.', differs('ZPlus'))
class zplus_dtd(TwoHalves):
    def halves(self, c, R, stab, P, Pp, Pn, xp, xn):
        y, b = self.lin(c, Pp, xp)
        return xp * b(self.div(R, y, stab))


@wrong('ZPlus normalizes each half by its own sum.', differs('ZPlus'))
class zplus_own_sums(TwoHalves):
    def halves(self, c, R, stab, P, Pp, Pn, xp, xn):
        (y1, b1), (y2, b2) = self.lin(c, Pp, xp), self.lin(c, self.nob(Pn), xn)
        return xp * b1(self.div(R, y1, stab)) + xn * b2(self.div(R, y2, stab))


# --- AlphaBeta -------------------------------------------------------------------------------------------------------------------
class Halves(Core):
    def alphabeta(self, c, R, alpha, beta, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        Pp, Pn = self.mod(P, self.pos), self.mod(P, self.neg)
        a = self.two(c, Pp, Pn, R, stabilizer)
        return alpha * a if beta == 0 else self.join(c, R, alpha, beta, stabilizer, P, Pp, Pn, a)


@wrong('AlphaBeta uses the positive bias in the negative half.', differs('AlphaBeta'))
class ab_wrong_bias(Halves):
    def join(self, c, R, alpha, beta, stab, P, Pp, Pn, a):
        return alpha * a - beta * self.two(c, OrderedDict(Pn, bias=Pp.get('bias')), Pp, R, stab)


@wrong('AlphaBeta divides both halves by the common (Epsilon) denominator.', differs('AlphaBeta'))
class ab_common_denominator(Halves):
    def join(self, c, R, alpha, beta, stab, P, Pp, Pn, a):
        xp, xn = self.pos(c.x), self.neg(c.x)
        s = self.div(R, self.lin(c, P, c.x)[0], stab)
        (_, b1), (_, b2), (_, b3), (_, b4) = self.lin(c, Pp, xp), self.lin(c, Pn, xn), self.lin(c, Pn, xp), self.lin(c, Pp, xn)
        return alpha * (xp * b1(s) + xn * b2(s)) - beta * (xp * b3(s) + xn * b4(s))


@wrong('alpha and beta are normalized to alpha - beta = 1 instead of being refused.', refused(ValueError, lambda ns: ns.AlphaBeta(alpha=3., beta=1.)))
class ab_normalizes(Core):
    def check_alphabeta(self, a, b):
        return super().check_alphabeta(a / (a - b), b / (a - b)) if a > b >= 0 else super().check_alphabeta(a, b)


# --- Gamma -----------------------------------------------------------------------------------------------------------------------
class GammaForm(Core):
    def gamma(self, c, R, gamma, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        up, dn = self.mod(P, lambda p: p + gamma * self.pos(p)), self.mod(P, lambda p: p + gamma * self.neg(p))
        return self.form(c, R, gamma, stabilizer, P, up, dn, ~(c.z <= 0), c.z < 0)


@wrong('Gamma without the gate: the positive branch for every output.', differs('Gamma'))
class gamma_ungated(GammaForm):
    def form(self, c, R, g, stab, P, up, dn, p, n):
        return self.two(c, up, dn, R, stab)


@wrong('Gamma of 2019 (w + g w+ for all inputs), without the generalization to negative inputs.', differs('Gamma'))
class gamma_original(GammaForm):
    def form(self, c, R, g, stab, P, up, dn, p, n):
        y, b = self.lin(c, up, c.x)
        return c.x * b(self.div(R, y, stab))


@wrong('Gamma reinforces the weight but not the bias.', differs('Gamma'))
class gamma_plain_bias(GammaForm):
    def form(self, c, R, g, stab, P, up, dn, p, n):
        b = P.get('bias')
        return self.two(c, OrderedDict(up, bias=b), dn, R, stab, p) + self.two(c, OrderedDict(dn, bias=b), up, R, stab, n)


# --- ZBox, WSquare, Flat ---------------------------------------------------------------------------------------------------------
@wrong('ZBox exchanges the low and the high bound.', differs('ZBox', low=-3., high=4.))
class zbox_exchanged(Core):
    def box(self, c, R, P, l, h, stab):
        return super().box(c, R, P, h, l, stab)


@wrong('ZBox has the bias in its denominator.', differs('ZBox', low=-3., high=4.))
class zbox_bias(Core):
    def zbox(self, c, R, low, high, stabilizer, zero_params=None):
        return self.box(c, R, self.zero(c.P, zero_params), self.bound(c, low, 'low'), self.bound(c, high, 'high'), stabilizer)

    def box(self, c, R, P, l, h, stab):
        y, b = self.lin(c, P, c.x)
        yl, bl = self.lin(c, self.mod(self.nob(P), self.pos), l)
        yh, bh = self.lin(c, self.mod(self.nob(P), self.neg), h)
        s = self.div(R, y - yl - yh, stab)
        return c.x * b(s) - l * bl(s) - h * bh(s)


@wrong('WSquare adds b instead of b^2.', differs('WSquare'))
class wsquare_plain_bias(Core):
    def wsquare(self, c, R, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        y, back = self.lin(c, OrderedDict(P, weight=P['weight'] ** 2), self.ones(c))
        return back(self.div(R, y, stabilizer))


@wrong('Flat sets the bias to one as well.', differs('Flat'))
class flat_bias(Core):
    def flat(self, c, R, stabilizer, zero_params=None):
        y, back = self.lin(c, self.mod(self.zero(c.P, zero_params), torch.ones_like), self.ones(c))
        return back(self.div(R, y, stabilizer))


# --- rules on the gradient -------------------------------------------------------------------------------------------------------
RELU = dict(m=torch.nn.ReLU, x=lambda: T(2, 5))


@wrong('Pass gives no relevance to inputs the activation switched off (it is the gradient of ReLU).', differs('Pass', **RELU))
class pass_gated(Core):
    def passing(self, c, Rs):
        return [torch.where(c.x > 0, R, torch.zeros_like(R)) for R in super().passing(c, Rs)]


# --- helpers ---------------------------------------------------------------------------------------------------------------------


@wrong('GammaMod returns gamma * clamp(p) without p itself.', lambda W: not same(*(rel(ns.BasicHook(param_modifiers=[ns.GammaMod(min=0.)]), L(), T(3, 4)) for ns in (W, B))))
class gammamod_lost(Core):
    def gammafn(self, p, gamma, min, max):
        return gamma * self.clampfn(p, min, max)


@wrong('norm_scale takes the mean over the batch too.', lambda W: not same(*(ns.Stabilizer(.1, norm_scale=True)(T(2, 5).detach()) for ns in (W, B))))
class norm_scale_batch(Core):
    def rms(self, d, dim):
        return super().rms(d, tuple(range(d.ndim)) if dim is None else dim)


def _zb(ns):
    z = ['weight']
    ns.zero_bias(z)
    return z


@wrong('zero_bias appends to the list it was given.', lambda W: _zb(W) != ['weight'])
class zero_bias_appends(Core):
    def zero_bias(self, zero_params=None):
        z = zero_params if isinstance(zero_params, list) else list(names_of(zero_params))
        if 'bias' not in z:
            z.append('bias')
        return z


# --- derivatives and conduct -----------------------------------------------------------------------------------------------------
@wrong('The denominator is detached: the second derivative lacks its part.', second('Epsilon'))
class detached_denominator(Core):
    def div(self, R, d, stab, mask=None):
        return super().div(R, d.detach(), stab, mask)


@wrong('The relevance does not depend on the weights for autograd: they are stored detached.', second('ZPlus', 'w'))
class detached_weights(Core):
    def snapshot(self, p):
        return p.detach().clone().requires_grad_(p.requires_grad)


@wrong('The relevance from above is detached: a loss on the result gives nothing to the layers above.', second('Gamma', 'R'))
class detached_relevance(Core):
    def relevance(self, c, rule, Rs):
        return super().relevance(c, rule, [R.detach() for R in Rs])


def _clobber(ns, rule='Epsilon'):
    R = T(3, 3).detach()
    keep = R.clone()
    rel(getattr(ns, rule)(), L(), T(3, 4), R)
    return not torch.equal(R, keep)


@wrong('The relevance from above is divided in place: the tensor of the caller changes.', _clobber)
class divides_in_place(Core):
    def div(self, R, d, stab, mask=None):
        r = super().div(R, d, stab, mask)
        if mask is None and not batched_tensor(R) and not R.requires_grad and R.dtype == r.dtype and 0 not in R.stride():
            R.data.copy_(r.detach())
            return R
        return r


def _forward(ns):
    m, x = L(), T(3, 4)
    y = m(x)
    h = ns.Norm(stabilizer=.1).register(m)
    z = m(x)
    h.remove()
    return not torch.equal(y, z)


@wrong('Norm hands on the stabilized output in the forward pass.', _forward)
class forward_stabilized(Core):
    def on_forward(self, rule, module, args, kwargs, output):
        y = super().on_forward(rule, module, args, kwargs, output)
        return self.S(y, rule.stabilizer) if y is not None and rule.kind == 'norm' else y


def _after(ns):
    m, x = L(), T(3, 4)
    h = ns.ZPlus().register(m)
    y = m(x)
    h.remove()
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


@wrong('After remove() a graph made with the rule gives the plain gradient.', lambda W: not same(_after(W), _after(B)))
class remove_kills_graph(Core):
    def register(self, rule, module):
        h = super().register(rule, module)
        self.live.append(h)
        return h

    def __init__(self):
        self.live = []

    def remove(self, handle):
        super().remove(handle)
        self.live = [h for h in self.live if h is not handle]

    def relevance(self, c, rule, Rs):
        if not any(h.module is c.module for h in self.live):
            return torch.autograd.grad(c.outs, c.xs, Rs, create_graph=c.cg, retain_graph=True)
        return super().relevance(c, rule, Rs)


def _calls(ns):
    m, xs = L(), [T(3, 4, seed=s) for s in (1, 2)]
    h = ns.Epsilon().register(m)
    ys = [m(x) for x in xs]
    h.remove()
    return torch.autograd.grad(ys[0], xs[0], torch.ones_like(ys[0]))[0]


@wrong('The rule remembers one input, the last: an earlier call of the module gets the relevance of the last one.', lambda W: not same(_calls(W), _calls(B)))
class last_input(Core):
    def make_call(self, rule, *a):
        c = super().make_call(rule, *a)
        rule.stored = c.x
        return c

    def relevance(self, c, rule, Rs):
        if c.known and rule.stored.shape == c.x.shape:
            c = copy.copy(c)
            c.x = rule.stored if c.x is rule.stored else rule.stored.detach()
        return super().relevance(c, rule, Rs)


def _copied(ns):
    m = L()
    h = ns.ZPlus().register(m)
    k = copy.deepcopy(m)
    h.remove()
    x = T(3, 4)
    return not same(torch.autograd.grad(k(x).sum(), x)[0], k.weight.sum(0).expand(3, 4).detach())


class LiveHook(blind_a_base.ForwardHook):
    def __deepcopy__(self, memo):
        return type(self)(self.core, self.rule)


@wrong('A deep copy of the model carries the live rule.', _copied)
class copy_is_live(Core):
    def register(self, rule, module):
        h = super().register(rule, module)
        for k, v in module._forward_hooks.items():
            if type(v) is blind_a_base.ForwardHook and v.rule is rule:
                module._forward_hooks[k] = LiveHook(self, rule)
        return h


def _grads(ns):
    m = L()
    rel(ns.ZPlus(), m, T(3, 4))
    return m.weight.grad is not None


@wrong('The transport uses backward(): gradients pile up in .grad of the parameters.', _grads)
class fills_grad(Core):
    def lin(self, c, P, x, center=False):
        with torch.enable_grad():
            xx = x if c.cg and x.requires_grad else x.detach().requires_grad_()
            y = self.run(c, self.mod(P, lambda p: p.requires_grad_() if p.is_leaf else p), xx, center)
        own = [p for p in c.module._parameters.values() if p is not None and p.requires_grad]

        def back(s):
            ws = [p for p in P.values() if p is not None and p.requires_grad]
            if batched_tensor(s) or len(own) != len(ws):
                return torch.autograd.grad(y, xx, s, create_graph=c.cg, retain_graph=True)[0]
            gs = torch.autograd.grad(y, [xx] + ws, s, create_graph=c.cg, retain_graph=True, allow_unused=True)
            for p, g in zip(own, gs[1:]):
                if g is not None:
                    p.grad = g.detach().clone() if p.grad is None else p.grad + g.detach()
            return gs[0]
        return (y if c.cg else y.detach()), back


def _nan(ns, at=0):
    x = T(3, 4)
    with torch.no_grad():
        x[0, 0] = float('nan')
    return rel(ns.ZPlus(), L(), x)


@wrong('NaN in the relevance is replaced by zero at the end.', lambda W: not same(_nan(W), _nan(B)))
class nan_hidden(Core):
    def relevance(self, c, rule, Rs):
        return [r if r is None else torch.nan_to_num(r, nan=0., posinf=float('inf'), neginf=-float('inf')) for r in super().relevance(c, rule, Rs)]
