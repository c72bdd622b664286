"""Registers, layers and data for blind_a: decorators and the small functions that show a mistake."""
import copy
import torch
from blind_a_base import Core, space, names_of

D = torch.float64
B = space(Core())
RIGHT, WRONG, SHOWS, CORES, _made = {}, {}, {}, {}, {}


def batched_tensor(t):
    return torch._C._functorch.is_batchedtensor(t) or torch._C._functorch.is_legacy_batchedtensor(t)


def get(name):
    if name not in CORES:
        raise AttributeError(name)
    if name not in _made:
        _made[name] = space(CORES[name]())
    return _made[name]


def right(doc):
    def deco(cls):
        RIGHT[cls.__name__], CORES[cls.__name__] = doc, cls
        return cls
    return deco


def wrong(doc, show):
    def deco(cls):
        name = cls.__name__
        assert name not in CORES, name
        WRONG[name], CORES[name], SHOWS[name] = doc, cls, (lambda: bool(show(space(cls()))))
        return cls
    return deco


def gen(seed):
    return torch.Generator().manual_seed(seed)


def T(*shape, seed=1, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=D).to(dtype).requires_grad_()


def fill(m, seed=5):
    g = gen(seed)
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=D))
    return m


def L(i=4, o=3, bias=True, seed=5, dtype=D):
    return fill(torch.nn.Linear(i, o, bias=bias, dtype=dtype), seed)


def C(i=2, o=4, k=3, seed=5, dtype=D, **kw):
    return fill(torch.nn.Conv2d(i, o, k, dtype=dtype, **kw), seed)


def CT(i=2, o=4, k=3, **kw):
    return fill(torch.nn.ConvTranspose2d(i, o, k, dtype=D, **kw))


def set_(m, w, b=None):
    with torch.no_grad():
        m.weight.copy_(torch.as_tensor(w, dtype=m.weight.dtype))
        if b is not None:
            m.bias.copy_(torch.as_tensor(b, dtype=m.bias.dtype))
    return m


def rel(rule, m, x, R=None, **kw):
    h = rule.register(m)
    try:
        y = m(x)
        R = torch.randn(y.shape, generator=gen(3), dtype=D).to(y.dtype) if R is None else R
        return torch.autograd.grad(y, x, R, **kw)[0]
    finally:
        h.remove()


def same(a, b, tol=1e-6):
    if a is None or b is None:
        return a is b
    return torch.allclose(a, b, rtol=tol, atol=tol * float(b.detach().nan_to_num(0, 0, 0).abs().max() if b.numel() else 1) + 1e-300, equal_nan=True)


def differs(rule, m=L, x=lambda: T(3, 4), R=None, tol=1e-4, **opts):
    """A show function: the rule on a fresh layer gives another number than the base."""
    def show(W):
        mk = lambda ns: rel(getattr(ns, rule)(**opts), m(), x(), R() if callable(R) else R)
        return not same(mk(W), mk(B), tol)
    return show


def second(rule, wrt='x', m=L, **opts):
    """The second derivative differs."""
    def one(ns):
        mod, x = m(), T(3, 4)
        R = T(3, mod.weight.shape[0], seed=5)
        r = rel(getattr(ns, rule)(**opts), mod, x, R, create_graph=True)
        r = r if r.requires_grad else r + 0 * (x.sum() + R.sum() + mod.weight.sum())
        return torch.autograd.grad((r * T(3, 4, seed=6).detach()).sum(), {'x': x, 'R': R, 'w': mod.weight}[wrt], allow_unused=True)[0]
    return lambda W: not same(one(W), one(B), 1e-4)


def refused(exc, f):
    """The base refuses with exc, the subject does not."""
    def tried(ns):
        try:
            f(ns)
        except exc:
            return True
        return False
    return lambda W: tried(B) and not tried(W)
