"""Base implementation of the LRP rules: a Core of small overridable parts, and `space(core)` that makes the rule classes from it."""
import copy
import math
from collections import OrderedDict
from contextlib import contextmanager
from numbers import Real
from types import SimpleNamespace

import torch
from torch.nn.utils import parametrize

KNOWN = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d,
         torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks', '_forward_hooks_with_kwargs',
         '_forward_hooks_always_called', '_forward_pre_hooks_with_kwargs')


def names_of(zero):
    return () if zero is None else (zero,) if isinstance(zero, str) else tuple(zero)


class Attach(torch.autograd.Function):
    """Returns the outputs; its backward is the rule for the inputs, and the plain gradient for the parameters."""
    @staticmethod
    def forward(ctx, call, core, rule, nx, np_, *ts):
        ctx.call, ctx.core, ctx.rule, ctx.n = call, core, rule, (nx, np_, len(ts) - nx - np_)
        outs = tuple(t.clone() for t in ts[nx + np_:])
        return outs if len(outs) > 1 else outs[0]

    @staticmethod
    def backward(ctx, *rs):
        nx, np_, no = ctx.n
        c = copy.copy(ctx.call)
        c.cg = torch.is_grad_enabled()
        for x, v in zip(c.xs, c.versions):
            if x._version != v:
                raise RuntimeError('an input of the layer was modified in place after the forward pass')
        need = ctx.needs_input_grad[5:]
        rel = [None] * nx
        if any(need[:nx]):
            rel = [r if r is None else r.to(x.dtype) for r, x in zip(ctx.core.relevance(c, ctx.rule, list(rs)), c.xs)]
        pg = [None] * np_
        want = [i for i in range(np_) if need[nx + i]]
        if want:
            for i, g in zip(want, ctx.core.param_grads(c, [c.plist[i] for i in want], rs)):
                pg[i] = g
        return (None,) * 5 + tuple(rel) + tuple(pg) + (None,) * no


class ForwardHook:
    def __init__(self, core, rule):
        self.core, self.rule = core, rule

    def __call__(self, module, args, kwargs, output):
        return None if self.rule is None else self.core.on_forward(self.rule, module, args, kwargs, output)

    def __deepcopy__(self, memo):
        return type(self)(None, None)

    def __reduce__(self):
        return (type(self), (None, None))


class PreHook(ForwardHook):
    def __call__(self, module, args, kwargs):
        if self.rule is None or not getattr(module, 'inplace', False) or not torch.is_grad_enabled():
            return None
        first = next((a for a in [*args, *kwargs.values()] if torch.is_tensor(a)), None)
        if first is None or not first.requires_grad:
            return None
        kept = first.clone()
        if not isinstance(module, torch.nn.modules.dropout._DropoutNd):
            first._before = kept  # the module changes this tensor itself, as without the rule; on_forward takes the attribute away
            return None
        given = kept.clone()
        given._before = kept
        return tuple(given if a is first else a for a in args), {k: given if a is first else a for k, a in kwargs.items()}


class Handle:
    def __init__(self, core, module, handles):
        self.core, self.module, self.handles = core, module, handles

    def remove(self):
        self.core.remove(self)


class Core:
    ensure_options = {}

    # --- module access -------------------------------------------------------------------------------------------------------
    def effective(self, module):
        """name -> effective parameter (what the forward pass used)."""
        out = OrderedDict()
        for k, v in module._parameters.items():
            base = next((k[:-len(e)] for e in ('_orig', '_g', '_v') if k.endswith(e) and torch.is_tensor(module.__dict__.get(k[:-len(e)]))), None)
            if base is None:
                out[k] = v
            else:
                out[base] = module.__dict__[base]
        if parametrize.is_parametrized(module):
            subs = [m for m in module.parametrizations.modules() if m.training]
            for m in subs:
                m.training = False
            try:
                for k in module.parametrizations:
                    out[k] = getattr(module, k)
            finally:
                for m in subs:
                    m.training = True
        return out

    def snapshot(self, p):
        return p.clone()

    def shallow(self, module, params, center=True):
        m = object.__new__(parametrize.type_before_parametrizations(module))
        m.__dict__ = dict(module.__dict__)
        for h in HOOKS:
            m.__dict__[h] = OrderedDict()
        m.__dict__['_modules'] = OrderedDict((k, v) for k, v in module._modules.items() if k != 'parametrizations')
        m.__dict__['_buffers'] = OrderedDict((k, v if v is None else v.clone()) for k, v in module._buffers.items())
        m.__dict__['_parameters'] = OrderedDict(params)
        for k in params:
            m.__dict__.pop(k, None)
        if not center and m._buffers.get('running_mean') is not None:
            m._buffers['running_mean'] = torch.zeros_like(m._buffers['running_mean'])
        return m

    def foreign(self, module):
        return any(True for k, m in module._modules.items() if m is not None and k != 'parametrizations' for _ in m.parameters())

    # --- hooks ---------------------------------------------------------------------------------------------------------------
    def register(self, rule, module):
        if any(isinstance(h, ForwardHook) and h.rule is not None for h in module._forward_hooks.values()):
            raise RuntimeError(f'{type(module).__name__} already carries a rule: remove() it before registering another one')
        return Handle(self, module, [module.register_forward_pre_hook(PreHook(self, rule), with_kwargs=True),
                                     module.register_forward_hook(ForwardHook(self, rule), with_kwargs=True, prepend=True)])

    def remove(self, handle):
        for h in handle.handles:
            h.remove()

    def on_forward(self, rule, module, args, kwargs, output):
        if not torch.is_grad_enabled():
            return None
        flat = [a for a in args if torch.is_tensor(a)] + [a for a in kwargs.values() if torch.is_tensor(a)]
        flat += [t for a in args if isinstance(a, (tuple, list)) for t in a if torch.is_tensor(t)]
        flat = list({id(t): t for t in flat}.values())  # a tensor given twice has one share
        xs = [a.__dict__.pop('_before', a) for a in flat if a.is_floating_point() or a.is_complex()]
        if not any(x.requires_grad for x in xs):
            return None
        who = f'{type(rule).__name__} on {type(module).__name__}'
        outs = [output] if torch.is_tensor(output) else list(output) if isinstance(output, (tuple, list)) else []
        form, outs = outs, [o for o in outs if o is not None]
        if not outs or not all(torch.is_tensor(o) for o in outs):
            raise TypeError(f'{who}: output must be a tensor or a tuple of tensors, not {type(output).__name__}')
        if any(t.is_complex() or t.is_quantized for t in xs + outs):
            raise TypeError(f'{who}: complex and quantized layers are not supported')
        if not rule.multi and (len(xs) != 1 or len(outs) != 1 or not args or not torch.is_tensor(args[0])):
            raise TypeError(f'{who}: takes exactly one tensor by position and gives one, got {len(xs)} inputs, {len(outs)} outputs')
        if getattr(module, 'inplace', False) and outs[0] is flat[0] and xs[0] is not flat[0] and not isinstance(module, torch.nn.modules.dropout._DropoutNd):
            outs = [self.shallow(module, module._parameters).forward(xs[0].clone())]
        call = self.make_call(rule, module, args, kwargs, output, xs, outs)
        self.check_module(rule, call, module)
        res = Attach.apply(call, self, rule, len(xs), len(call.plist), *xs, *call.plist, *[o.detach() for o in outs])
        if torch.is_tensor(output):
            return res
        res = iter(res if isinstance(res, tuple) else (res,))
        res = tuple(o if o is None else next(res) for o in form)
        return type(output)(*res) if hasattr(output, '_fields') else type(output)(res)

    def make_call(self, rule, module, args, kwargs, output, xs, outs):
        known = (parametrize.type_before_parametrizations(module) in KNOWN
                 or isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not module.training and module.running_mean is not None)
        known = known and len(xs) == 1 and len(outs) == 1 and bool(args) and torch.is_tensor(args[0])
        P = OrderedDict((k, v if v is None else self.snapshot(v)) for k, v in self.effective(module).items())
        plist = [p for p in (P.values() if known else module.parameters()) if p is not None and p.requires_grad]
        return SimpleNamespace(P=P, plist=plist, snap=self.shallow(module, P), xs=xs, x=xs[0], rest=args[1:], kw=kwargs, outs=outs, z=outs[0].detach(),
                               known=known, arg0=args[0] if args else None, versions=[x._version for x in xs], cg=False, module=module)

    def check_module(self, rule, c, module):
        if rule.kind in ('zplus', 'alphabeta', 'gamma', 'zbox', 'wsquare', 'flat') or getattr(rule, 'zero_params', None) and rule.kind == 'epsilon':
            if self.foreign(module):
                raise RuntimeError(f'{type(rule).__name__} needs weight on the module itself, but the parameters of {type(module).__name__} are in its parts: '
                                   'register the rule on those')
        if rule.kind in ('zplus', 'alphabeta', 'gamma', 'zbox', 'wsquare') and c.P.get('weight') is None:
            raise RuntimeError(f"{type(rule).__name__} needs the parameter 'weight', which {type(module).__name__} lacks")
        if rule.kind == 'basic' and rule.changes and self.foreign(module):
            raise RuntimeError(f'BasicHook changes parameters, but those of {type(module).__name__} are in its parts: register it on those')
        if rule.kind == 'zbox':
            self.bounds(c, rule.low, rule.high)

    def param_grads(self, c, ps, rs):
        outs = c.outs
        if c.known:
            with torch.enable_grad():
                outs = [self.run(c, c.P, c.x)]
        use = [i for i, o in enumerate(outs) if o.requires_grad]
        outs, rs = [outs[i] for i in use], [rs[i].to(outs[i].dtype) for i in use]
        return torch.autograd.grad(outs, ps, rs, create_graph=c.cg, retain_graph=True, allow_unused=True)

    # --- arithmetic ----------------------------------------------------------------------------------------------------------
    def pos(self, v):
        return v.clamp(min=0)

    def neg(self, v):
        return v.clamp(max=0)

    def run(self, c, P, x, center=True):
        x = x.clone() if getattr(c.snap, 'inplace', False) else x
        if c.known or not c.snap.training:
            return self.shallow(c.snap, P, center).forward(x, *c.rest, **c.kw)
        with torch.random.fork_rng(devices=[]):
            return self.shallow(c.snap, P, center).forward(x, *c.rest, **c.kw)

    def lin(self, c, P, x, center=False):
        """f(x) with the parameters P, and the function s -> J^T s."""
        with torch.enable_grad():
            xx = x if c.cg and x.requires_grad else x.detach().requires_grad_()
            y = self.run(c, P, xx, center)

        def back(s):
            return torch.autograd.grad(y, xx, s.to(y.dtype), create_graph=c.cg, retain_graph=True)[0]
        return (y if c.cg else y.detach()), back

    def sign(self, d):
        return torch.where(d < 0, -1., 1.).to(d.dtype)

    def add_eps(self, d, eps):
        return d + eps * self.sign(d)

    def S(self, d, stab):
        return stab(d) if callable(stab) else self.add_eps(d, stab)

    def div(self, R, d, stab, mask=None):
        q = self.S(d, stab)
        R = R.to(q.dtype)
        if mask is None:
            return R / q
        return torch.where(mask, R / torch.where(mask, q, torch.ones_like(q)), torch.zeros_like(R))

    def zero(self, P, zero):
        zero = names_of(zero)
        return OrderedDict((k, torch.zeros_like(v) if v is not None and k in zero else v) for k, v in P.items())

    def nob(self, P):
        return self.zero(P, 'bias')

    def mod(self, P, fn):
        return OrderedDict((k, v if v is None else fn(v)) for k, v in P.items())

    def two(self, c, Pp, Pn, R, stab, mask=None):
        """x+ through Pp (its bias in), x- through Pn (no bias), one denominator."""
        xp, xn = self.pos(c.x), self.neg(c.x)
        yp, bp = self.lin(c, Pp, xp)
        yn, bn = self.lin(c, self.nob(Pn), xn)
        s = self.div(R, yp + yn, stab, mask)
        return xp * bp(s) + xn * bn(s)

    # --- rules ---------------------------------------------------------------------------------------------------------------
    def relevance(self, c, rule, Rs):
        fn = getattr(self, rule.kind)
        return fn(c, Rs, **rule.opts) if rule.multi else [fn(c, Rs[0], **rule.opts)]

    def passing(self, c, Rs):
        if len(Rs) != len(c.xs) or any(r.shape != x.shape for r, x in zip(Rs, c.xs)):
            raise TypeError(f'Pass: relevance of shape {[tuple(r.shape) for r in Rs]} cannot be passed to inputs of shape {[tuple(x.shape) for x in c.xs]}')
        return Rs

    def epsilon(self, c, Rs, epsilon, zero_params=None):
        if names_of(zero_params) and (len(c.xs) > 1 or len(Rs) > 1 or not torch.is_tensor(c.arg0)):
            raise TypeError('Epsilon with zero_params takes exactly one tensor by position and gives one')
        if names_of(zero_params) or c.known:
            return [self.eps_one(c, Rs[0], self.zero(c.P, zero_params), epsilon)]
        return self.norm(c, Rs, epsilon)

    def eps_one(self, c, R, P, epsilon):
        y, back = self.lin(c, P, c.x, center=True)
        return c.x * back(self.div(R, y, epsilon))

    def norm(self, c, Rs, stabilizer):
        if c.known:
            return [self.eps_one(c, Rs[0], c.P, stabilizer)]
        d = [o if c.cg else o.detach() for o in c.outs]
        use = [i for i, o in enumerate(c.outs) if o.requires_grad]
        s = [self.div(Rs[i], d[i], stabilizer) for i in use]
        g = iter(torch.autograd.grad([c.outs[i] for i in use], [x for x in c.xs if x.requires_grad], s, create_graph=c.cg, retain_graph=True, allow_unused=True))
        gs = [next(g) if x.requires_grad else None for x in c.xs]
        return [q if q is None else x * q for x, q in zip(c.xs, gs)]

    def zplus(self, c, R, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        return self.two(c, self.mod(P, self.pos), self.mod(P, self.neg), R, stabilizer)

    def alphabeta(self, c, R, alpha, beta, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        r = alpha * self.two(c, self.mod(P, self.pos), self.mod(P, self.neg), R, stabilizer)
        if beta == 0:
            return r
        return r - beta * self.two(c, self.mod(P, self.neg), self.mod(P, self.pos), R, stabilizer)

    def gate(self, c, P):
        return c.z

    def gamma(self, c, R, gamma, stabilizer, zero_params=None):
        P = self.zero(c.P, zero_params)
        z = self.gate(c, P)
        up, dn = self.mod(P, lambda p: p + gamma * self.pos(p)), self.mod(P, lambda p: p + gamma * self.neg(p))
        return self.two(c, up, dn, R, stabilizer, ~(z <= 0)) + self.two(c, dn, up, R, stabilizer, z < 0)

    def batched(self, c):
        """Is the first dimension of x a batch?"""
        m, n = c.snap, c.x.ndim
        for k in (1, 2, 3):
            if isinstance(m, (getattr(torch.nn, f'Conv{k}d'), getattr(torch.nn, f'ConvTranspose{k}d'))):
                return n == k + 2
        return n > 1

    def bound(self, c, v, what):
        x = c.x
        if not torch.is_tensor(v):
            return torch.full_like(x.detach(), float(v))
        t, shape = v, tuple(x.shape)
        if t.ndim > x.ndim:
            raise ValueError(f'ZBox: {what} of shape {tuple(v.shape)} cannot be broadcast to an input of shape {shape}')
        t = t.reshape(tuple(t.shape) + (1,) * (x.ndim - t.ndim))
        if x.ndim and t.shape[0] > shape[0] and self.batched(c):
            t = self.cut(t, shape[0])
        try:
            return t.to(device=x.device, dtype=x.dtype).expand(shape)
        except RuntimeError:
            raise ValueError(f'ZBox: {what} of shape {tuple(v.shape)} cannot be broadcast to an input of shape {shape}') from None

    def cut(self, t, n):
        return t[:n]

    def bounds(self, c, low, high):
        l, h = self.bound(c, low, 'low'), self.bound(c, high, 'high')
        if bool((l > h).any()):
            raise ValueError('ZBox: low is greater than high somewhere; give low <= high')
        return l, h

    def zbox(self, c, R, low, high, stabilizer, zero_params=None):
        P = self.nob(self.zero(c.P, zero_params))
        l, h = self.bound(c, low, 'low'), self.bound(c, high, 'high')
        return self.box(c, R, P, l, h, stabilizer)

    def box(self, c, R, P, l, h, stab):
        y, b = self.lin(c, P, c.x)
        yl, bl = self.lin(c, self.mod(P, self.pos), l)
        yh, bh = self.lin(c, self.mod(P, self.neg), h)
        s = self.div(R, y - yl - yh, stab)
        return c.x * b(s) - l * bl(s) - h * bh(s)

    def ones(self, c):
        return torch.ones_like(c.x.detach())

    def square(self, p):
        return p * p

    def wsquare(self, c, R, stabilizer, zero_params=None):
        y, back = self.lin(c, self.mod(self.zero(c.P, zero_params), self.square), self.ones(c))
        return back(self.div(R, y, stabilizer))

    def flat(self, c, R, stabilizer, zero_params=None):
        if isinstance(c.module, torch.nn.modules.dropout._DropoutNd):
            with torch.enable_grad():
                u = torch.zeros_like(c.z).requires_grad_()
                g, = torch.autograd.grad(c.outs[0], c.x, u, create_graph=True)
                d, = torch.autograd.grad(g, u, self.ones(c))
            return torch.autograd.grad(c.outs[0], c.x, self.div(R, d, stabilizer), create_graph=c.cg, retain_graph=True)[0]
        y, back = self.lin(c, self.nob(self.mod(self.zero(c.P, zero_params), torch.ones_like)), self.ones(c))
        return back(self.div(R, y, stabilizer))

    def deconv(self, c, R):
        return R.clamp(min=0)

    def guided(self, c, R):
        g, = torch.autograd.grad(c.outs[0], c.x, R, create_graph=c.cg, retain_graph=True)
        return torch.where(R <= 0, torch.zeros_like(g), g)

    def smooth(self, c, R, beta_smooth):
        return torch.sigmoid(beta_smooth * c.x) * R

    # --- helpers -------------------------------------------------------------------------------------------------------------
    def rms(self, d, dim):
        dim = tuple(range(1, d.ndim)) if dim is None else dim
        return d.pow(2).mean(dim=dim, keepdim=True).sqrt()

    def stabilizer_call(self, d, epsilon, clip, norm_scale, dim):
        eps = epsilon * self.rms(d, dim) if norm_scale else epsilon
        if clip:
            return self.sign(d) * torch.maximum(d.abs(), torch.as_tensor(eps, dtype=d.dtype, device=d.device))
        return d + eps * self.sign(d)

    def clampfn(self, p, min, max):
        return p if min is None and max is None else p.clamp(min=min, max=max)

    def gammafn(self, p, gamma, min, max):
        return p + gamma * self.clampfn(p, min, max)

    def zero_bias(self, zero_params=None):
        z = list(names_of(zero_params))
        return z if 'bias' in z else z + ['bias']

    def modified(self, mod, module, P):
        """The parameters as a ParamMod changes them."""
        keys = list(P) if mod.param_keys is None else list(names_of(mod.param_keys))
        missing = [k for k in keys if P.get(k) is None and k not in P]
        if missing and mod.require_params:
            raise RuntimeError(f'{type(module).__name__} lacks the required parameters {missing}')
        out = OrderedDict(P)
        for k in keys:
            if P.get(k) is not None:
                p = torch.zeros_like(P[k]) if k in names_of(mod.zero_params) else P[k]
                out[k] = mod.modifier(p, k)
        return out

    @contextmanager
    def modify(self, mod, module):
        yield self.shallow(module, self.modified(mod, module, self.effective(module)))

    def basic(self, c, R, input_modifiers, param_modifiers, output_modifiers, gradient_mapper, reducer):
        ins, outs = [], []
        with torch.enable_grad():
            for fi, fp, fo in zip(input_modifiers, param_modifiers, output_modifiers):
                x = fi(c.x if c.cg else c.x.detach())
                x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                ins.append(x)
                outs.append(fo(self.run(c, self.modified(fp, c.module, c.P), x)))
        plain = outs if c.cg else [o.detach() for o in outs]
        s = gradient_mapper(R, plain)
        gs = torch.autograd.grad(outs, ins, list(s), create_graph=c.cg, retain_graph=True)
        return reducer(ins if c.cg else [i.detach() for i in ins], gs)

    # --- checks --------------------------------------------------------------------------------------------------------------
    def check_stab(self, v, what):
        if callable(v):
            return v
        if isinstance(v, bool) or not isinstance(v, Real):
            raise TypeError(f'{what} must be a number or a callable, got {type(v).__name__}')
        if not math.isfinite(v) or v < 0:
            raise ValueError(f'{what} must be finite and not negative, got {v}')
        return v

    def check_alphabeta(self, alpha, beta):
        if not (math.isfinite(alpha) and math.isfinite(beta)) or alpha < 0 or beta < 0 or abs(alpha - beta - 1) > 1e-9 * max(1, alpha):
            raise ValueError(f'alpha and beta must be finite, not negative, and alpha - beta must be 1; got {alpha} and {beta}')
        return alpha, beta

    def check_gamma(self, g):
        if not math.isfinite(g) or g < 0:
            raise ValueError(f'gamma must be finite and not negative, got {g}')
        return g

    def check_smooth(self, b):
        if not math.isfinite(b) or b <= 0:
            raise ValueError(f'beta_smooth must be finite and positive, got {b}')
        return b

    def copied(self, rule):
        return type(rule)(**rule.opts)


def space(core):
    class Hook:
        core_, multi, kind = core, False, None

        def keep(self, **opts):
            self.opts = opts
            self.__dict__.update(opts)

        def register(self, module):
            return core.register(self, module)

        def copy(self):
            return core.copied(self)

    class Stabilizer:
        def __init__(self, epsilon=1e-6, clip=False, norm_scale=False, dim=None):
            self.epsilon, self.clip, self.norm_scale, self.dim = core.check_stab(epsilon, 'epsilon'), clip, norm_scale, dim

        def __call__(self, d):
            return core.stabilizer_call(d, self.epsilon, self.clip, self.norm_scale, self.dim)

        @classmethod
        def ensure(cls, v):
            return v if callable(v) else cls(epsilon=core.check_stab(v, 'stabilizer'), **core.ensure_options)

    class ParamMod:
        def __init__(self, modifier, param_keys=None, zero_params=None, require_params=True):
            self.modifier, self.param_keys, self.zero_params, self.require_params = modifier, param_keys, zero_params, require_params

        def __call__(self, module):
            return core.modify(self, module)

        @classmethod
        def ensure(cls, m):
            return m if isinstance(m, ParamMod) else ParamMod(m)

    class ClampMod(ParamMod):
        def __init__(self, min=None, max=None, **kw):
            super().__init__(lambda p, name=None: core.clampfn(p, min, max), **kw)

    class GammaMod(ParamMod):
        def __init__(self, gamma=0.25, min=None, max=None, **kw):
            super().__init__(lambda p, name=None: core.gammafn(p, gamma, min, max), **kw)

    class NoMod(ParamMod):
        def __init__(self, **kw):
            super().__init__(lambda p, name=None: p, **kw)

    class BasicHook(Hook):
        kind = 'basic'

        def __init__(self, input_modifiers=None, param_modifiers=None, output_modifiers=None, gradient_mapper=None, reducer=None):
            n = max([1] + [len(m) for m in (input_modifiers, param_modifiers, output_modifiers) if m is not None])
            same = lambda v, name=None: v
            self.changes = param_modifiers is not None
            self.keep(input_modifiers=list(input_modifiers or [same] * n),
                      param_modifiers=[ParamMod.ensure(m) for m in param_modifiers or [same] * n],
                      output_modifiers=list(output_modifiers or [same] * n),
                      gradient_mapper=gradient_mapper or (lambda R, outs: [R] * len(outs)),
                      reducer=reducer or (lambda ins, gs: sum(gs)))

    class Epsilon(Hook):
        kind, multi = 'epsilon', True

        def __init__(self, epsilon=1e-6, zero_params=None):
            self.keep(epsilon=core.check_stab(epsilon, 'epsilon'), zero_params=zero_params)

    class Norm(Hook):
        kind, multi = 'norm', True

        def __init__(self, stabilizer=1e-6):
            self.keep(stabilizer=core.check_stab(stabilizer, 'stabilizer'))

    class ZPlus(Hook):
        kind = 'zplus'

        def __init__(self, stabilizer=1e-6, zero_params=None):
            self.keep(stabilizer=core.check_stab(stabilizer, 'stabilizer'), zero_params=zero_params)

    class WSquare(ZPlus):
        kind = 'wsquare'

    class Flat(ZPlus):
        kind = 'flat'

    class AlphaBeta(Hook):
        kind = 'alphabeta'

        def __init__(self, alpha=2., beta=1., stabilizer=1e-6, zero_params=None):
            alpha, beta = core.check_alphabeta(alpha, beta)
            self.keep(alpha=alpha, beta=beta, stabilizer=core.check_stab(stabilizer, 'stabilizer'), zero_params=zero_params)

    class Gamma(Hook):
        kind = 'gamma'

        def __init__(self, gamma=0.25, stabilizer=1e-6, zero_params=None):
            self.keep(gamma=core.check_gamma(gamma), stabilizer=core.check_stab(stabilizer, 'stabilizer'), zero_params=zero_params)

    class ZBox(Hook):
        kind = 'zbox'

        def __init__(self, low, high, stabilizer=1e-6, zero_params=None):
            self.keep(low=low, high=high, stabilizer=core.check_stab(stabilizer, 'stabilizer'), zero_params=zero_params)

    class Pass(Hook):
        kind, multi = 'passing', True

        def __init__(self):
            self.keep()

        def backward(self, module, grad_input, grad_output):
            return grad_output

    class ReLUDeconvNet(Pass):
        kind, multi = 'deconv', False

        def backward(self, module, grad_input, grad_output):
            return (grad_output[0].clamp(min=0),)

    class ReLUGuidedBackprop(Pass):
        kind, multi = 'guided', False

        def backward(self, module, grad_input, grad_output):
            return (torch.where(grad_output[0] <= 0, torch.zeros_like(grad_input[0]), grad_input[0]),)

    class ReLUBetaSmooth(Hook):
        kind = 'smooth'

        def __init__(self, beta_smooth=10.):
            self.keep(beta_smooth=core.check_smooth(beta_smooth))

        def forward(self, module, input, output):
            self.stored_tensors = {'input': input}

        def backward(self, module, grad_input, grad_output):
            return (core.smooth(SimpleNamespace(x=self.stored_tensors['input'][0]), grad_output[0], self.beta_smooth),)

    ns = SimpleNamespace(**{k: v for k, v in locals().items() if isinstance(v, type)}, zero_bias=core.zero_bias)
    ns.BetaSmooth, ns.DeconvNet, ns.GuidedBackprop, ns._core = ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop, core
    return ns
