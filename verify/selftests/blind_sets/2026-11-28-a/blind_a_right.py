"""Right implementations in unusual form."""
import copy
import math
from collections import OrderedDict
import torch
import torch.nn.functional as F
from blind_a_kit import Core, batched_tensor, right, names_of


@right('Each half by one run with substituted parameters and one reverse pass, rule as a custom autograd.Function.')
class r_vjp(Core):
    pass


def layout(c, x):
    """(number of batch dimensions, whether the matrix form applies)"""
    m = c.snap
    if not c.known:
        return None
    if isinstance(m, torch.nn.Linear):
        return x.ndim - 1
    k = m.weight.ndim - 1 if m._parameters['weight'] is not None and m.weight.ndim > 1 else None
    return (1 if x.ndim > 1 else None) if k is None else x.ndim - k


def wild(t):
    return not batched_tensor(t) and not bool(torch.isfinite(t).all())


class Matrix(Core):
    # 0 * inf in a matrix product would carry a NaN to entries that are not connected: then the runs of the base
    def mat(self, c, P, x, nb):
        shape = x.shape[nb:]
        n = math.prod(shape)
        E = torch.eye(n, dtype=x.dtype, device=x.device).reshape((n,) + tuple(shape))
        Y = self.run(c, self.nob(P), E, False)
        return Y.reshape(n, -1), Y.shape[1:]

    def const(self, c, P, x, nb, center):
        return self.run(c, P, torch.zeros((1,) + tuple(x.shape[nb:]), dtype=x.dtype, device=x.device), center).reshape(-1)

    def lin(self, c, P, x, center=False):
        nb = layout(c, x)
        if nb is None or math.prod(x.shape[nb:]) > 600 or wild(x):
            return super().lin(c, P, x, center)
        A, oshape = self.mat(c, P, x, nb)
        bshape = tuple(x.shape[:nb])
        y = x.reshape(bshape + (A.shape[0],)) @ A + self.const(c, P, x, nb, center)
        plain = super().lin

        def back(s):
            if wild(s):
                return plain(c, P, x, center)[1](s)
            return (s.to(A.dtype).reshape(bshape + (A.shape[1],)) @ A.t()).reshape(x.shape)
        return y.reshape(bshape + tuple(oshape)), back


@right('Explicit matrices: the parameters are changed, the layer is applied to the unit vectors, everything else is matrix products.')
class r_matrix(Matrix):
    pass


@right('Explicit contributions: a tensor of x_i A_ji for every sample, summed over i for the denominator and over j for the relevance.')
class r_contributions(Matrix):
    def eps_one(self, c, R, P, epsilon):
        nb = layout(c, c.x)
        if nb is None or math.prod(c.x.shape[nb:]) > 600:
            return super().eps_one(c, R, P, epsilon)
        A, oshape = self.mat(c, P, c.x, nb)
        bs = tuple(c.x.shape[:nb])
        con = c.x.reshape(bs + (A.shape[0],))[..., None] * A
        d = con.sum(-2) + self.const(c, P, c.x, nb, True)
        s = self.div(R, d.reshape(bs + tuple(oshape)), epsilon).reshape(bs + (A.shape[1],))
        return super().eps_one(c, R, P, epsilon) if wild(s) or wild(con) else (con * s[..., None, :]).sum(-1).reshape(c.x.shape)

    def two(self, c, Pp, Pn, R, stab, mask=None):
        nb = layout(c, c.x)
        if nb is None or math.prod(c.x.shape[nb:]) > 600:
            return super().two(c, Pp, Pn, R, stab, mask)
        (A, oshape), (An, _) = self.mat(c, Pp, c.x, nb), self.mat(c, Pn, c.x, nb)
        bs = tuple(c.x.shape[:nb])
        flat = c.x.reshape(bs + (A.shape[0],))
        con = self.pos(flat)[..., None] * A + self.neg(flat)[..., None] * An
        d = con.sum(-2) + self.const(c, Pp, c.x, nb, False)
        s = self.div(R, d.reshape(bs + tuple(oshape)), stab, mask).reshape(bs + (A.shape[1],))
        return super().two(c, Pp, Pn, R, stab, mask) if wild(s) or wild(con) else (con * s[..., None, :]).sum(-1).reshape(c.x.shape)


@right('Everything of a linear layer in float64 inside, rounded once to the dtype of the input at the end.')
class r_double(Core):
    def relevance(self, c, rule, Rs):
        if not c.known or rule.kind == 'basic' or c.x.dtype == torch.float64:
            return super().relevance(c, rule, Rs)
        c = copy.copy(c)
        c.narrow, c.x, c.xs = c.x.dtype, c.x.double(), [c.x.double()]
        c.P = self.mod(c.P, lambda p: p.double())
        c.snap = self.shallow(c.snap, c.P)
        for k, v in c.snap._buffers.items():
            if v is not None and v.is_floating_point():
                c.snap._buffers[k] = v.double()
        o = dict(rule.opts)
        for k in ('epsilon', 'stabilizer'):
            if k in o and callable(o[k]):
                o[k] = (lambda f: lambda d: f(d.to(c.narrow)).double())(o[k])
        Rs = [R.double() for R in Rs]
        fn = getattr(self, rule.kind)
        return fn(c, Rs, **o) if rule.multi else [fn(c, Rs[0], **o)]


class Chunked(Core):
    size = 1

    def lin(self, c, P, x, center=False):
        if not c.known or not self.batched(c) or x.shape[0] < 2 or x.ndim < 2:
            return super().lin(c, P, x, center)
        parts = [super(Chunked, self).lin(c, P, p, center) for p in x.split(self.size)]
        return torch.cat([y for y, _ in parts]), lambda s: torch.cat([b(q) for (_, b), q in zip(parts, s.split(self.size))])


@right('A loop over the samples, one run and one reverse pass for each.')
class r_loop(Chunked):
    pass


@right('The batch in pieces of three samples, the last one shorter.')
class r_pieces(Chunked):
    size = 3


@right('Output channels in blocks of two: denominators are concatenated, relevances of the blocks are added up.')
class r_rows(Core):
    def lin(self, c, P, x, center=False):
        m, w = c.snap, P.get('weight')
        if not c.known or 'ConvT' in type(m).__name__ or w.ndim < 2 or getattr(m, 'groups', 1) > 1 or w.shape[0] < 3:
            return super().lin(c, P, x, center)
        parts = [super(r_rows, self).lin(c, self.mod(P, lambda p: p[i:i + 2]), x, center) for i in range(0, w.shape[0], 2)]
        ax = -1 if w.ndim == 2 else -(w.ndim - 1)
        return torch.cat([y for y, _ in parts], ax), lambda s: sum(b(q) for (_, b), q in zip(parts, s.split(2, ax)))


@right('Input features in two interleaved halves, each through the layer on its own; the bias goes with the first.')
class r_columns(Core):
    def lin(self, c, P, x, center=False):
        if not c.known or c.snap._buffers.get('running_mean') is not None or not bool(torch.isfinite(x).all()):
            return super().lin(c, P, x, center)
        even = (torch.arange(x.numel(), device=x.device).reshape(x.shape) % 2 == 0).to(x.dtype)
        y, back = super().lin(c, P, x * even, center)
        y2, _ = super().lin(c, self.nob(P), x * (1 - even), center)
        return y + y2, back


@right('The stabilized denominator as a choice between d + eps and d - eps.')
class r_where(Core):
    def add_eps(self, d, eps):
        return torch.where(d < 0, d - eps, d + eps)


@right('The sign by copysign, after adding zero so that -0 counts as +0.')
class r_copysign(Core):
    def sign(self, d):
        return torch.copysign(torch.ones_like(d), d.detach() + 0.)


@right('The beta half is ZPlus of the layer with negated parameters, and changes its sign back.')
class r_negated(Core):
    def alphabeta(self, c, R, alpha, beta, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        r = alpha * self.two(c, self.mod(P, self.pos), self.mod(P, self.neg), R, stabilizer)
        if beta == 0:
            return r
        N = self.mod(P, torch.neg)
        xp, xn = self.pos(c.x), self.neg(c.x)
        y1, b1 = self.lin(c, self.mod(N, self.pos), xp)
        y2, b2 = self.lin(c, self.nob(self.mod(N, self.neg)), xn)
        s = self.div(R, -(y1 + y2), stabilizer)
        return r + (xp * b1(s) + xn * b2(s)) * beta


@right('Gamma as the plain layer plus gamma times ZPlus (or its negative counterpart): four products instead of changed weights.')
class r_gammasum(Core):
    def gamma(self, c, R, gamma, stabilizer, zero_params=None):
        P, z, x = self.zero(c.P, zero_params), c.z, c.x
        xp, xn = self.pos(x), self.neg(x)
        y, b = self.lin(c, P, x)
        total = 0
        for u, v, mask in ((self.pos, self.neg, ~(z <= 0)), (self.neg, self.pos, z < 0)):
            y1, b1 = self.lin(c, self.mod(P, u), xp)
            y2, b2 = self.lin(c, self.nob(self.mod(P, v)), xn)
            s = self.div(R, y + gamma * (y1 + y2), stabilizer, mask)
            total = total + x * b(s) + gamma * (xp * b1(s) + xn * b2(s))
        return total


@right('ZBox from the distances to the box: A(w+)(x - l) + A(w-)(x - h).')
class r_boxdist(Core):
    def box(self, c, R, P, l, h, stab):
        u, v = c.x - l, c.x - h
        y1, b1 = self.lin(c, self.mod(P, self.pos), u)
        y2, b2 = self.lin(c, self.mod(P, self.neg), v)
        s = self.div(R, y1 + y2, stab)
        return u * b1(s) + v * b2(s)


@right('The denominators are computed in the forward pass already and kept with the call; the backward pass only transports.')
class r_eager(Core):
    def make_call(self, *a):
        c = super().make_call(*a)
        c.kept, c.mode = [], None
        rule = a[0]
        if c.known and rule.kind in ('epsilon', 'norm', 'zplus', 'alphabeta', 'gamma', 'zbox', 'wsquare', 'flat') and c.P.get('weight') is not None and not self.foreign(a[1]):
            c.cg, c.mode = True, 'dry'
            self.relevance(c, rule, [torch.zeros_like(c.z)])
            c.cg, c.mode = False, 'use'
        return c

    def relevance(self, c, rule, Rs):
        if getattr(c, 'mode', None) == 'dry':
            o = dict(rule.opts)
            o['epsilon' if rule.kind == 'epsilon' else 'stabilizer'] = 1.
            fn = getattr(self, rule.kind)
            return fn(c, Rs if rule.multi else Rs[0], **o)
        return super().relevance(c, rule, Rs)

    def lin(self, c, P, x, center=False):
        mode = getattr(c, 'mode', None)
        if mode == 'dry':
            with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
                xx = x if x.requires_grad else x.detach().requires_grad_()
                y = self.run(c, P, xx, center)
            c.kept.append((xx, y))
            return torch.ones_like(y).detach(), lambda s: torch.zeros_like(xx).detach()
        if mode != 'use':
            return super().lin(c, P, x, center)
        c.at = getattr(c, 'at', -1) + 1
        xx, y = c.kept[c.at]
        return (y if c.cg else y.detach()), lambda s: torch.autograd.grad(y, xx, s.to(y.dtype), create_graph=c.cg, retain_graph=True)[0]


@right('The transpose is taken at the origin: the gradient of a second, empty run at x = 0, since a linear map has the same one everywhere.')
class r_origin(Core):
    def lin(self, c, P, x, center=False):
        if not c.known:
            return super().lin(c, P, x, center)
        y = self.run(c, P, x, center)

        def back(s):
            with torch.enable_grad():
                o = torch.zeros_like(x).requires_grad_()
                v = self.run(c, self.nob(P), o, False)
            return torch.autograd.grad(v, o, s.to(v.dtype), create_graph=c.cg, retain_graph=True)[0]
        return y, back


@right('Images in channels-last memory inside.')
class r_channelslast(Core):
    def lin(self, c, P, x, center=False):
        if not c.known or x.ndim != 4 or 'Conv' not in type(c.snap).__name__:
            return super().lin(c, P, x, center)
        y, back = super().lin(c, P, x.contiguous(memory_format=torch.channels_last), center)
        return y.contiguous(), lambda s: back(s).reshape(x.shape)


@right('The functional vjp of torch.func instead of torch.autograd.grad.')
class r_func(Core):
    def lin(self, c, P, x, center=False):
        y, back = torch.func.vjp(lambda v: self.run(c, P, v, center), x)
        return y, lambda s: back(s.to(y.dtype))[0]


@right('AlphaBeta by two parameter runs with a doubled batch (x+ above x-), both halves read off from the four products.')
class r_stacked(Core):
    def alphabeta(self, c, R, alpha, beta, stabilizer, zero_params=None):
        if beta == 0 or not c.known or not self.batched(c):
            return super().alphabeta(c, R, alpha, beta, stabilizer, zero_params)
        P, n = self.zero(c.P, zero_params), c.x.shape[0]
        X = torch.cat([self.pos(c.x), self.neg(c.x)])
        Pp, Pn = self.mod(P, self.pos), self.mod(P, self.neg)
        y1, b1 = self.lin(c, self.nob(Pp), X)
        y2, b2 = self.lin(c, self.nob(Pn), X)
        o = self.ones(c) * 0
        cp, cn = self.lin(c, Pp, o)[0], self.lin(c, Pn, o)[0]
        s, t = self.div(R, y1[:n] + y2[n:] + cp, stabilizer), self.div(R, y2[:n] + y1[n:] + cn, stabilizer)
        q1, q2 = b1(torch.cat([alpha * s, -beta * t])), b2(torch.cat([-beta * t, alpha * s]))
        xp, xn = self.pos(c.x), self.neg(c.x)
        return xp * q1[:n] + xn * q1[n:] + xp * q2[:n] + xn * q2[n:]


@right('Linear and plain convolution as patches (unfold / fold) times a matrix.')
class r_unfold(Core):
    def lin(self, c, P, x, center=False):
        m, w, b = c.snap, P.get('weight'), P.get('bias')
        if c.known and isinstance(m, torch.nn.Linear):
            y = torch.einsum('...i,oi->...o', x, w)
            return (y if b is None else y + b), lambda s: s.to(w.dtype) @ w
        if not (c.known and isinstance(m, torch.nn.Conv2d) and m.groups == 1 and m.padding_mode == 'zeros' and not isinstance(m.padding, str) and x.ndim == 4):
            return super().lin(c, P, x, center)
        o = dict(kernel_size=m.kernel_size, dilation=m.dilation, padding=m.padding, stride=m.stride)
        W = w.flatten(1)
        y = torch.einsum('ok,nkl->nol', W, F.unfold(x, **o))
        y = y if b is None else y + b[:, None]
        return (y.reshape((x.shape[0], w.shape[0]) + tuple(c.z.shape[2:])),
                lambda s: F.fold(W.t() @ s.to(w.dtype).reshape(s.shape[0], s.shape[1], -1), tuple(x.shape[2:]), **o))


@right('WSquare and Flat: the denominator once, for a batch of one, then expanded; ReLUBetaSmooth by tanh.')
class r_expand(Core):
    def ones(self, c):
        return torch.ones_like(c.x.detach()[:1] if self.batched(c) and c.known else c.x.detach())

    def wsquare(self, c, R, stabilizer, zero_params=None):
        return self.wide(c, R, stabilizer, self.mod(self.zero(c.P, zero_params), self.square))

    def flat(self, c, R, stabilizer, zero_params=None):
        if not c.known:
            return super().flat(c, R, stabilizer, zero_params)
        return self.wide(c, R, stabilizer, self.nob(self.mod(c.P, torch.ones_like)))

    def wide(self, c, R, stab, P):
        y, _ = self.lin(c, P, self.ones(c))
        _, back = self.lin(c, P, torch.ones_like(c.x.detach()))
        return back(self.div(R, y.expand(R.shape), stab))

    def smooth(self, c, R, beta_smooth):
        return (1 + torch.tanh(c.x * (beta_smooth / 2))) / 2 * R
