"""The base implementation: every decision is a method of Kit, so that a variant is a small override."""
import contextlib
import math
import numbers
import threading
import types
import warnings
import weakref

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

KNOWN = tuple(getattr(nn, f'{k}{n}d') for k in ('Conv', 'ConvTranspose', 'AvgPool', 'AdaptiveAvgPool') for n in (1, 2, 3)) + (nn.Linear,)
CHANGERS = ('ZPlus', 'AlphaBeta', 'Gamma', 'ZBox', 'WSquare')


def true_type(module):
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def param_names(module):
    """The effective parameters' names (weight_norm, prune, parametrizations: what the forward reads)."""
    names = [n for n, p in module._parameters.items() if p is not None]
    if parametrize.is_parametrized(module):
        names += list(module.parametrizations)
    for hook in module._forward_pre_hooks.values():
        name = getattr(hook, 'name', None) or getattr(hook, '_tensor_name', None)
        if isinstance(name, str) and isinstance(module.__dict__.get(name), torch.Tensor):
            names = [n for n in names if n not in (name + '_g', name + '_v', name + '_orig')] + [name]
    return names


def is_unbatched(module, x):
    t = true_type(module)
    if t is nn.Linear:
        return x.dim() == 1
    return t in KNOWN and x.dim() == int(t.__name__[-2]) + 1


def each(fn, g):
    return tuple(fn(v) for v in g) if isinstance(g, (tuple, list)) else fn(g)


class Call:
    """What one call of the module has to remember: input, effective parameters and settings of that call."""
    def f(self, x, P):
        return self.K.forward(self, x, P)

    def twin(self, P):
        m = object.__new__(self.cls)
        d = dict(self.state)
        d['_parameters'] = dict(d['_parameters'])
        d['_buffers'] = {k: None if v is None else v.clone() for k, v in d['_buffers'].items()}
        d['_modules'] = {k: v for k, v in d['_modules'].items() if k != 'parametrizations'}
        for k in ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks'):
            d[k] = {}
        for k, v in P.items():
            if k in d:
                d[k] = v
            else:
                d['_parameters'][k] = v
        m.__dict__.update(d)
        return m


class TokenX(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *xs):
        ctx.call = call
        ctx.set_materialize_grads(False)
        out = tuple(torch.zeros((), dtype=y.dtype, device=y.device).expand(y.shape) for y in call.ys)
        return out

    @staticmethod
    def backward(ctx, *Rs):
        if all(R is None for R in Rs):
            return (None,) * (1 + len(ctx.call.live))
        return (None,) + tuple(ctx.call.K.answer(ctx.call, Rs))


class TokenP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *ps):
        ctx.call = call
        ctx.set_materialize_grads(False)
        return tuple(torch.zeros((), dtype=y.dtype, device=y.device).expand(y.shape) for y in call.ys)

    @staticmethod
    def backward(ctx, *Rs):
        if all(R is None for R in Rs):
            return (None,) * (1 + len(ctx.call.ps))
        return (None,) + tuple(ctx.call.K.param_grads(ctx.call, Rs))


class Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tokens):
        ctx.n = len(tokens) // len(call.values)
        ctx.set_materialize_grads(False)
        return tuple(call.values)

    @staticmethod
    def backward(ctx, *Rs):
        return (None,) + Rs * ctx.n


class Kit:
    # ------------------------------------------------------------------ numbers and checks
    def number(K, v, what):
        if isinstance(v, bool) or not isinstance(v, numbers.Real):
            raise TypeError(f'{what} is {v!r}; expected a number: pass e.g. 1e-6')
        if not math.isfinite(v) or v < 0:
            raise ValueError(f'{what} is {v!r}; expected a finite number >= 0')
        return v

    def ensure(K, v):
        if callable(v):
            return v
        return K.ns.Stabilizer(epsilon=K.number(v, 'stabilizer'))

    def check_alpha_beta(K, a, b):
        for v in (a, b):
            if not isinstance(v, numbers.Real):
                raise TypeError(f'alpha and beta are {a!r}, {b!r}; expected numbers')
        if not (math.isfinite(a) and math.isfinite(b)) or a < 0 or b < 0 or abs(a - b - 1) > 1e-12 * max(1, a):
            raise ValueError(f'alpha={a!r}, beta={b!r}; expected finite, non-negative, alpha - beta = 1')

    def names(K, zero):
        return [] if zero is None else [zero] if isinstance(zero, str) else list(zero)

    def zero_bias(K, zero=None):
        names = K.names(zero)
        return names if 'bias' in names else names + ['bias']

    def sgn(K, d):
        one = torch.ones_like(d)
        return torch.where(d < 0, -one, one)

    def norm_dims(K, d, st):
        if st.dim is not None:
            return st.dim
        return tuple(range(1, d.dim())) or tuple(range(d.dim()))

    def rms(K, d, dims):
        return (d * d).mean(dim=dims, keepdim=True).sqrt()

    def stabilize(K, d, st):
        eps = st.epsilon
        if st.norm_scale:
            eps = eps * K.rms(d, K.norm_dims(d, st))
        if st.clip:
            mag = torch.maximum(d.abs(), eps) if torch.is_tensor(eps) else d.abs().clamp(min=eps)
            return K.sgn(d) * mag
        return d + eps * K.sgn(d)

    def S(K, call, rule, d):
        st = rule.stabilizer
        if getattr(st, 'norm_scale', False) and getattr(st, 'dim', None) is None and call.unbatched:
            return st(d[None])[0]
        return st(d)

    def divide(K, call, rule, R, d, gate=None):
        if gate is None:
            return R / K.S(call, rule, d)
        s = K.S(call, rule, d)
        return torch.where(gate, R / torch.where(gate, s, torch.ones_like(s)), torch.zeros_like(s))

    # ------------------------------------------------------------------ parameters
    def xpos(K, v):
        return v.clamp(min=0)

    def xneg(K, v):
        return v.clamp(max=0)

    def wpos(K, v):
        return v.clamp(min=0)

    def wneg(K, v):
        return v.clamp(max=0)

    def params(K, call, rule):
        zero = K.names(rule.zero_params)
        return {n: torch.zeros_like(p) if n in zero else p for n, p in call.P.items()}

    def mod(K, P, fw, fb=None):
        return {n: (torch.zeros_like(p) if fb is None else fb(p)) if n == 'bias' else fw(p) for n, p in P.items()}

    # ------------------------------------------------------------------ the layer and its transpose
    def forward(K, call, x, P):
        leaves = list(call.leaves)
        leaves[call.slot] = x
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)
        m = call.twin(P)
        if call.rng is None:
            return m.forward(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(call.rng)
            return m.forward(*args, **kwargs)

    def lin(K, call, x, P):
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            x_ = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            out = call.f(x_.clone() if call.inplace else x_, P)

        def pull(s):
            g = torch.autograd.grad(out, x_, s.to(out.dtype), create_graph=create, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(x) if g is None else g
        return (out if create else out.detach()), pull

    def half(K, call, rule, R, pairs, gate=None):
        done = [(x,) + K.lin(call, x, P) for x, P in pairs]
        s = K.divide(call, rule, R, sum(o for _, o, _ in done), gate)
        return sum(x * pull(s) for x, _, pull in done)

    # ------------------------------------------------------------------ the rules
    def epsilon(K, call, Rs, rule):
        if call.replay or K.names(rule.zero_params):
            return [K.half(call, rule, Rs[0], [(call.x, K.params(call, rule))])]
        ys, ss = [], []
        for y, R in zip(call.ys, Rs):
            if R is not None and y.requires_grad:
                ys.append(y)
                ss.append(K.divide(call, rule, R, y if torch.is_grad_enabled() else y.detach()))
        if not ys:
            return [torch.zeros_like(x) for x in call.live]
        gs = torch.autograd.grad(ys, call.edges, ss, create_graph=torch.is_grad_enabled(), retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else x * g for x, g in zip(call.live, gs)]

    def norm(K, call, Rs, rule):
        return K.epsilon(call, Rs, rule)

    def zplus(K, call, R, rule):
        P, x = K.params(call, rule), call.x
        return K.half(call, rule, R, [(K.xpos(x), K.mod(P, K.wpos, K.wpos)), (K.xneg(x), K.mod(P, K.wneg))])

    def zminus(K, call, R, rule):
        P, x = K.params(call, rule), call.x
        return K.half(call, rule, R, [(K.xpos(x), K.mod(P, K.wneg, K.wneg)), (K.xneg(x), K.mod(P, K.wpos))])

    def alphabeta(K, call, R, rule):
        r = rule.alpha * K.zplus(call, R, rule)
        return r if rule.beta == 0 else r - rule.beta * K.zminus(call, R, rule)

    def gates(K, call):
        return ~(call.z <= 0), call.z < 0

    def gamma(K, call, R, rule):
        P, x, g = K.params(call, rule), call.x, rule.gamma
        up = lambda p: p + g * K.wpos(p)
        dn = lambda p: p + g * K.wneg(p)
        pos, neg = K.gates(call)
        xp, xn = K.xpos(x), K.xneg(x)
        return (K.half(call, rule, R, [(xp, K.mod(P, up, up)), (xn, K.mod(P, dn))], pos)
                + K.half(call, rule, R, [(xp, K.mod(P, dn, dn)), (xn, K.mod(P, up))], neg))

    def bounds(K, call, rule):
        x = call.x
        out = []
        for name, v in (('low', rule.low), ('high', rule.high)):
            t = v if torch.is_tensor(v) else torch.tensor(float(v), dtype=x.dtype)
            t = t.to(device=x.device, dtype=x.dtype)
            shape = tuple(t.shape)
            if 0 < t.dim() < x.dim():
                t = t.reshape(shape + (1,) * (x.dim() - t.dim()))
            if 0 < t.dim() == x.dim() and not call.unbatched and t.shape[0] > x.shape[0] and x.shape[0] > 0:
                t = t[:x.shape[0]]
            try:
                if t.dim() > x.dim():
                    raise RuntimeError
                out.append(t.expand(x.shape).clone())
            except RuntimeError:
                raise ValueError(f'{name} of shape {shape} does not broadcast to the input of shape {tuple(x.shape)}; '
                                 'give a number, or a tensor that does') from None
        if (out[0] > out[1]).any():
            raise ValueError('low > high somewhere; expected low <= high everywhere')
        return out

    def zbox(K, call, R, rule):
        P, (l, h) = K.params(call, rule), call.bounds
        keep = lambda p: p
        (z, pz), (lo, pl), (hi, ph) = (K.lin(call, call.x, K.mod(P, keep)), K.lin(call, l, K.mod(P, K.wpos)), K.lin(call, h, K.mod(P, K.wneg)))
        s = K.divide(call, rule, R, z - lo - hi)
        return call.x * pz(s) - l * pl(s) - h * ph(s)

    def wsquare(K, call, R, rule):
        sq = lambda p: p * p
        d, pull = K.lin(call, torch.ones_like(call.x), K.mod(K.params(call, rule), sq, sq))
        return pull(K.divide(call, rule, R, d))

    def flat(K, call, R, rule):
        d, pull = K.lin(call, torch.ones_like(call.x), K.mod(call.P, torch.ones_like))
        return pull(K.divide(call, rule, R, d))

    def basic(K, call, R, rule):
        create = torch.is_grad_enabled()
        xs, os_, lv = [], [], []
        for im, pm, om in zip(rule.input_modifiers, rule.param_modifiers, rule.output_modifiers):
            P = pm.apply(call.P) if isinstance(pm, K.ns.ParamMod) else {n: pm(p, n) for n, p in call.P.items()}
            with torch.enable_grad():
                x = im(call.x)
                x_ = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                o = om(call.f(x_, P))
            xs.append(x), os_.append(o), lv.append(x_)
        ss = rule.gradient_mapper(R, [o if create else o.detach() for o in os_])
        ss = ss if isinstance(ss, (tuple, list)) else (ss,) * len(os_)
        gs = [torch.autograd.grad(o, x_, s, create_graph=create, retain_graph=True)[0] for o, x_, s in zip(os_, lv, ss)]
        return rule.reducer([x if create else x.detach() for x in xs], gs)

    def pass_(K, call, Rs, rule):
        return list(Rs)

    def deconv(K, R):
        return R.clamp(min=0)

    def guided(K, R, g):
        return torch.where(R <= 0, torch.zeros_like(g), g)

    def beta_smooth(K, x, R, beta):
        return torch.sigmoid(beta * x) * R

    def plain(K, call, R):
        if call.replay:
            return K.lin(call, call.x, call.P)[1](R)
        g, = torch.autograd.grad(call.ys, call.edges, [R], create_graph=torch.is_grad_enabled(), retain_graph=True, allow_unused=True)
        return torch.zeros_like(call.x) if g is None else g

    def answer(K, call, Rs):
        kind = call.rule.kind
        if kind in ('epsilon', 'norm', 'pass_'):
            rs = getattr(K, kind)(call, Rs, call.rule)
        elif kind == 'deconv':
            rs = [K.deconv(Rs[0])]
        elif kind == 'guided':
            rs = [K.guided(Rs[0], K.plain(call, Rs[0]))]
        elif kind == 'smooth':
            rs = [K.beta_smooth(call.x, Rs[0], call.rule.beta_smooth)]
        else:
            rs = [getattr(K, kind)(call, Rs[0], call.rule)]
        return [None if r is None else r.to(x.dtype) for r, x in zip(rs, call.live)]

    def param_grads(K, call, Rs):
        create = torch.is_grad_enabled()
        if call.replay:
            with torch.enable_grad():
                P = {n: p.view_as(p) for n, p in call.P.items()}
                out = call.f(call.x, P)
            return torch.autograd.grad(out, [P[n] for n in call.ps], Rs[0].to(out.dtype), create_graph=create, retain_graph=True, allow_unused=True)
        ys, rs = zip(*[(y, R) for y, R in zip(call.ys, Rs) if R is not None])
        return torch.autograd.grad(ys, list(call.ps.values()), rs, create_graph=create, retain_graph=True, allow_unused=True)

    # ------------------------------------------------------------------ registration
    def check_module(K, rule, module):
        if 'quantized' in type(module).__module__:
            raise TypeError(f'{rule.name} on {module}: a quantized layer has no gradient; expected a float layer')
        names = param_names(module)
        zero = K.names(getattr(rule, 'zero_params', None))
        if rule.name in CHANGERS or rule.name == 'Flat' or (rule.name == 'BasicHook' and rule.changes()):
            parts = [n for n, _ in module.named_parameters() if n not in module._parameters and not n.startswith('parametrizations.')]
            if parts:
                raise RuntimeError(f'{rule.name} on {module}: its own weight is missing, parameters sit in its parts: {parts}; register the rule on the parts')
        if rule.name in CHANGERS and not names and not hasattr(module, 'weight'):
            raise RuntimeError(f"{rule.name} on {module}: the rule needs the missing parameters 'weight', 'bias'")
        if rule.name != 'Flat':
            gone = [n for n in zero if n not in names and not hasattr(module, n)]
            if gone:
                raise RuntimeError(f'{rule.name} on {module}: zero_params names the missing parameters {gone}; it has {names}')
        for pm in getattr(rule, 'param_modifiers', ()):
            if isinstance(pm, K.ns.ParamMod):
                pm.check(module)
        bn = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if (rule.name in CHANGERS or rule.name == 'Flat') and bn and (module.training or module.running_mean is None or bool((module.running_mean != 0).any())) \
                or rule.name == 'Flat' and 'weight' in zero:
            from verify.subjects import NotOfferedError
            raise NotOfferedError(f'{rule.name} on {module}')

    def snapshot(K, t):
        return t.clone()

    def wrap(K, reg, module, frame, args, kwargs, output):
        rule = reg.rule
        leaves, spec = pytree.tree_flatten((args, kwargs))
        outs, ospec = pytree.tree_flatten(output)
        if any(torch.is_tensor(t) and (t.is_complex() or t.is_quantized) for t in leaves + outs):
            raise TypeError(f'{rule.name} on {module}: complex or quantized tensors; expected real floating point')
        isf = lambda t: torch.is_tensor(t) and t.is_floating_point() and not t.is_inference()
        slots = list({id(t): i for i, t in reversed(list(enumerate(leaves))) if isf(t)}.values())
        slots.sort()
        oslots = [i for i, t in enumerate(outs) if isf(t)]
        multi = len(slots) != 1 or len(oslots) != 1
        bykw = any(isf(t) for t in pytree.tree_flatten(kwargs)[0])
        if (multi or bykw) and slots and (rule.kind not in ('epsilon', 'norm', 'pass_') or (multi and K.names(getattr(rule, 'zero_params', None)))):
            raise TypeError(f'{rule.name} on {module}: takes one tensor by position and one output, got {len(slots)} inputs and {len(oslots)} outputs')
        if not slots or not oslots:
            return None
        if rule.kind in ('pass_', 'deconv', 'guided', 'smooth') and [leaves[i].shape for i in slots] != [outs[i].shape for i in oslots]:
            raise TypeError(f'{rule.name} on {module}: output and input differ in shape, no relevance can be handed through')
        call = Call()
        call.K, call.rule, call.spec, call.slot, call.reg, call.module = K, rule, spec, slots[0], reg, weakref.ref(module)
        call.known = true_type(module) in KNOWN
        call.rng = None if call.known else frame['rng']
        call.inplace = any(frame['seen'].get(i, (None, -1))[1] != leaves[i]._version for i in slots if id(leaves[i]) == frame['seen'].get(i, (0,))[0])
        saved = {i: frame['seen'][i][2] if call.inplace else K.snapshot(leaves[i]) for i in slots}
        call.replay = (call.known or call.inplace) and len(slots) == 1 and len(oslots) == 1
        lv = [i for i in slots if (frame['seen'][i][3] if call.inplace else leaves[i].requires_grad)]
        call.x, call.live = saved[slots[0]], [saved[i] for i in lv]
        call.unbatched = is_unbatched(module, call.x)
        call.leaves = [None if i in slots else t for i, t in enumerate(leaves)]
        call.ys = [outs[i] if call.known else outs[i].clone() for i in oslots]
        if call.known:
            call.ys = [y.detach() for y in call.ys]
        call.z = outs[oslots[0]].detach().clone() if rule.kind == 'gamma' else None
        call.values = [outs[i].detach() for i in oslots]
        eff = {}
        for n in param_names(module):
            eff[n] = frame['eff'].get(n)
            if eff[n] is None:
                eff[n] = getattr(module, n)
        call.P = {n: K.snapshot(p) for n, p in eff.items()}
        call.cls = true_type(module)
        call.state = dict(module.__dict__)
        call.state['_buffers'] = {k: None if v is None else v.clone() for k, v in module._buffers.items()}
        call.bounds = K.bounds(call, rule) if rule.kind == 'zbox' else None
        if not lv:
            return None
        if not call.replay:
            call.edges = [torch.autograd.graph.get_gradient_edge(leaves[i]) for i in lv]
        if call.replay:
            call.ps = {n: p for n, p in eff.items() if p.requires_grad}
        else:
            call.ps = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not (call.replay or all(y.requires_grad for y in call.ys)):
            call.ps = {}
        xs = [frame['seen'][i][2] if call.inplace else leaves[i] for i in lv]
        for i, v in zip(oslots, K.attach(call, xs, list(call.ps.values()))):
            outs[i] = v
        return pytree.tree_unflatten(outs, ospec)

    def attach(K, call, xs, ps):
        tokens = TokenX.apply(call, *xs)
        if ps:
            tokens += TokenP.apply(call, *ps)
        return Join.apply(call, *tokens)

    def on_pre(K, reg, module, args, kwargs):
        leaves = pytree.tree_flatten((args, kwargs))[0]
        shifty = getattr(module, 'inplace', False) or true_type(module).__module__.split('.')[0] != 'torch'
        seen = {i: (id(t), t._version, t.clone() if shifty else None, t.requires_grad) for i, t in enumerate(leaves)
                if torch.is_tensor(t) and t.is_floating_point() and not t.is_inference()}
        return {'seen': seen, 'eff': {}, 'rng': None if true_type(module) in KNOWN else torch.get_rng_state()}

    def on_remove(K, reg):
        while reg.handles:
            reg.handles.pop().remove()

    def on_register(K, rule, module):
        K.check_module(rule, module)
        if any(reg.handles for reg in K.live.get(module, ())):
            raise RuntimeError(f'{rule.name} on {module}: the module has a rule already; remove() that one first')
        reg = Registration(K, rule, module)
        K.live[module] = [reg]
        return reg

    def copy_args(K, args):
        return dict(args)


class Part:
    """A hook that does not survive copying or pickling."""
    def __init__(self, fn):
        self.fn = fn

    def __call__(self, *a):
        return self.fn(*a)

    def __deepcopy__(self, memo):
        return contextlib.nullcontext().__exit__

    def __reduce__(self):
        return getattr, (contextlib.nullcontext(), '__exit__')


class Registration:
    def __init__(self, K, rule, module):
        self.K, self.rule, self.module, self.local, self.count = K, rule, weakref.ref(module), threading.local(), 0
        self.handles = [module.register_forward_pre_hook(Part(self.pre), with_kwargs=True),
                        module.register_forward_hook(Part(self.post), with_kwargs=True, always_call=True, prepend=True)]
        if parametrize.is_parametrized(module):
            for name, plist in module.parametrizations.items():
                self.handles.append(plist.register_forward_hook(Part(lambda m, a, out, name=name: self.seen(name, out))))
        watch = torch.nn.modules.module.register_module_forward_hook(Part(self.watch))
        self.handles.append(watch)
        weakref.finalize(module, watch.remove)

    @property
    def stack(self):
        if not hasattr(self.local, 'stack'):
            self.local.stack = []
        return self.local.stack

    def pre(self, module, args, kwargs):
        if module is self.module():
            self.stack.append(None)
            self.stack[-1] = self.K.on_pre(self, module, args, kwargs)

    def seen(self, name, out):
        if self.stack and self.stack[-1] is not None:
            self.stack[-1]['eff'][name] = out

    def post(self, module, args, kwargs, output):
        if module is not self.module() or not self.stack:
            return None
        frame = self.stack.pop()
        self.count += 1
        if output is None or frame is None or not torch.is_grad_enabled():
            return None
        return self.K.wrap(self, module, frame, args, kwargs, output)

    def watch(self, module, args, output):
        target = self.module()
        if self.count == 0 and target is not None and module is not target and torch.is_grad_enabled() and any(m is target for m in module.modules()):
            self.count = -1
            warnings.warn(f'{self.rule.name} was registered on {target}, which was not called while {type(module).__name__} was: '
                          'its gradient is not a relevance', RuntimeWarning, stacklevel=2)

    def remove(self):
        self.K.on_remove(self)

    def __enter__(self):
        return self

    def __exit__(self, *a):
        self.remove()


def build(kit=None):
    K = (kit or Kit)()
    ns = types.SimpleNamespace()
    K.ns, K.live = ns, weakref.WeakKeyDictionary()

    class Hook:
        kind, zero_params = None, None

        @property
        def name(self):
            return type(self).__name__

        def __init__(self):
            self._args = {}

        def copy(self):
            return type(self)(**K.copy_args(self._args))

        def register(self, module):
            reg = K.on_register(self, module)
            self.__dict__.setdefault('_regs', []).append(reg)
            return reg

        def remove(self):
            for reg in self.__dict__.pop('_regs', []):
                reg.remove()

    class Stabilizer:
        def __init__(self, epsilon=1e-6, clip=False, norm_scale=False, dim=None):
            self.epsilon, self.clip, self.norm_scale = K.number(epsilon, 'epsilon'), clip, norm_scale
            self.dim = dim if dim is None or isinstance(dim, int) else tuple(dim)

        def __call__(self, d):
            return K.stabilize(d, self)

        @staticmethod
        def ensure(v):
            return K.ensure(v)

    class ParamMod:
        def __init__(self, modifier, param_keys=None, zero_params=None, require_params=True):
            self.modifier, self.param_keys, self.zero_params, self.require_params = modifier, param_keys, zero_params, require_params

        @classmethod
        def ensure(cls, m):
            return m if isinstance(m, ParamMod) else ParamMod(m)

        def check(self, module):
            have = param_names(module)
            gone = [n for n in K.names(self.param_keys) + K.names(self.zero_params) if n not in have and not hasattr(module, n)]
            if gone and self.require_params:
                raise RuntimeError(f'{module} lacks the parameters {gone}; it has {have}')

        def apply(self, P):
            return K.param_mod(self, P) if hasattr(K, 'param_mod') else self.apply_(P)

        def apply_(self, P):
            zero = K.names(self.zero_params)
            keys = list(P) if self.param_keys is None else K.names(self.param_keys)
            out = {}
            for n, p in P.items():
                q = torch.zeros_like(p) if n in zero else p
                out[n] = self.modifier(q, n) if n in keys else q
            return out

        def __call__(self, module):
            return K.param_context(self, module) if hasattr(K, 'param_context') else self.context(module)

        @contextlib.contextmanager
        def context(self, module):
            self.check(module)
            old = {n: getattr(module, n) for n in param_names(module)}
            new = {n: p for n, p in self.apply(old).items() if p is not old[n]}
            if parametrize.is_parametrized(module):
                call = Call()
                call.cls, call.state = true_type(module), dict(module.__dict__)
                yield call.twin({**old, **new})
                return
            had = {n: module.__dict__[n] for n in new if n in module.__dict__}
            module.__dict__.update(new)
            try:
                yield module
            finally:
                for n in new:
                    module.__dict__.pop(n, None)
                module.__dict__.update(had)

    class ClampMod(ParamMod):
        def __init__(self, min=None, max=None, **kw):
            super().__init__((lambda p, n: K.clamp(p, min, max)) if hasattr(K, 'clamp') else
                             (lambda p, n: p if min is None and max is None else p.clamp(min=min, max=max)), **kw)

    class GammaMod(ParamMod):
        def __init__(self, gamma=0.25, min=None, max=None, **kw):
            super().__init__((lambda p, n: K.gamma_mod(p, gamma, min, max)) if hasattr(K, 'gamma_mod') else
                             (lambda p, n: p + gamma * (p if min is None and max is None else p.clamp(min=min, max=max))), **kw)

    class NoMod(ParamMod):
        def __init__(self, **kw):
            super().__init__(lambda p, n: p, **kw)

    class BasicHook(Hook):
        kind = 'basic'

        def __init__(self, input_modifiers=None, param_modifiers=None, output_modifiers=None, gradient_mapper=None, reducer=None):
            self._args = dict(input_modifiers=input_modifiers, param_modifiers=param_modifiers, output_modifiers=output_modifiers,
                              gradient_mapper=gradient_mapper, reducer=reducer)
            n = max(len(m) for m in (input_modifiers, param_modifiers, output_modifiers, [None]) if m is not None)
            self.input_modifiers = input_modifiers or [lambda x: x] * n
            self.param_modifiers = param_modifiers or [NoMod()] * n
            self.output_modifiers = output_modifiers or [lambda y: y] * n
            st = Stabilizer()
            self.gradient_mapper = gradient_mapper or (lambda R, outs: tuple(R / st(o) for o in outs))
            self.reducer = reducer or (lambda xs, gs: sum(x * g for x, g in zip(xs, gs)))

        def changes(self):
            return any(not isinstance(m, NoMod) for m in self.param_modifiers)

    class Epsilon(BasicHook):
        kind = 'epsilon'
        param_modifiers = ()

        def __init__(self, epsilon=1e-6, zero_params=None):
            self._args = dict(epsilon=epsilon, zero_params=zero_params)
            self.stabilizer, self.zero_params = K.ensure(epsilon), zero_params
            self.epsilon = self.stabilizer

    class Norm(BasicHook):
        kind = 'norm'
        param_modifiers = ()

        def __init__(self, stabilizer=1e-6):
            self._args = dict(stabilizer=stabilizer)
            self.stabilizer = K.ensure(stabilizer)

    class ZPlus(BasicHook):
        kind = 'zplus'
        param_modifiers = ()

        def __init__(self, stabilizer=1e-6, zero_params=None):
            self._args = dict(stabilizer=stabilizer, zero_params=zero_params)
            self.stabilizer, self.zero_params = K.ensure(stabilizer), zero_params

    class AlphaBeta(BasicHook):
        kind = 'alphabeta'
        param_modifiers = ()

        def __init__(self, alpha=2., beta=1., stabilizer=1e-6, zero_params=None):
            K.check_alpha_beta(alpha, beta)
            self._args = dict(alpha=alpha, beta=beta, stabilizer=stabilizer, zero_params=zero_params)
            self.alpha, self.beta, self.stabilizer, self.zero_params = alpha, beta, K.ensure(stabilizer), zero_params

    class Gamma(BasicHook):
        kind = 'gamma'
        param_modifiers = ()

        def __init__(self, gamma=0.25, stabilizer=1e-6, zero_params=None):
            self._args = dict(gamma=gamma, stabilizer=stabilizer, zero_params=zero_params)
            self.gamma, self.stabilizer, self.zero_params = K.number(gamma, 'gamma'), K.ensure(stabilizer), zero_params

    class ZBox(BasicHook):
        kind = 'zbox'
        param_modifiers = ()

        def __init__(self, low, high, stabilizer=1e-6, zero_params=None):
            for v in (low, high):
                if not torch.is_tensor(v) and not isinstance(v, numbers.Real):
                    raise TypeError(f'low and high are {low!r}, {high!r}; expected numbers or tensors')
            self._args = dict(low=low, high=high, stabilizer=stabilizer, zero_params=zero_params)
            self.low, self.high, self.stabilizer, self.zero_params = low, high, K.ensure(stabilizer), zero_params

    class WSquare(ZPlus):
        kind = 'wsquare'

    class Flat(ZPlus):
        kind = 'flat'

    class Pass(Hook):
        kind = 'pass_'

        def backward(self, module, grad_input, grad_output):
            return grad_output

    class ReLUDeconvNet(Hook):
        kind = 'deconv'

        def backward(self, module, grad_input, grad_output):
            return each(K.deconv, grad_output)

    class ReLUGuidedBackprop(Hook):
        kind = 'guided'

        def backward(self, module, grad_input, grad_output):
            if isinstance(grad_output, (tuple, list)):
                return tuple(K.guided(R, g) for R, g in zip(grad_output, grad_input))
            return K.guided(grad_output, grad_input)

    class ReLUBetaSmooth(Hook):
        kind = 'smooth'

        def __init__(self, beta_smooth=10.):
            if not isinstance(beta_smooth, numbers.Real):
                raise TypeError(f'beta_smooth is {beta_smooth!r}; expected a number')
            if not math.isfinite(beta_smooth) or beta_smooth <= 0:
                raise ValueError(f'beta_smooth is {beta_smooth!r}; expected a finite number > 0')
            self._args = dict(beta_smooth=beta_smooth)
            self.beta_smooth = beta_smooth

        def forward(self, module, input, output):
            self.input = input[0] if isinstance(input, (tuple, list)) else input

        def backward(self, module, grad_input, grad_output):
            return each(lambda R: K.beta_smooth(self.input, R, self.beta_smooth), grad_output)

    def zero_bias(zero_params=None):
        return K.zero_bias(zero_params)

    for k, v in list(locals().items()):
        if isinstance(v, type) or k == 'zero_bias':
            setattr(ns, k, v)
    ns.kit = K
    return ns
