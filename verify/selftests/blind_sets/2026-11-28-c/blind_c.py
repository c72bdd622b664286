"""A blind set: wrong and right implementations of the LRP rules, each the base with one change of its source.

WRONG and RIGHT map names to one sentence; the module's attribute of that name is the implementation (a module object whose
attributes are the rule classes). They are built when first asked for.
"""
import linecache
import os
import re
import sys
import types

import blind_c_base as plain_base

_PATH = plain_base.__file__
with open(_PATH) as _file:
    _SOURCE = _file.read()

WRONG, RIGHT, _EDITS, _BUILT = {}, {}, {}, {}


def _scope(source, name):
    '''Start and end of a top level class or function.'''
    start = re.search(rf'^(class|def) {name}\b', source, re.M).start()
    line = source.index('\n', start) + 1
    end = re.search(r'^\S', source[line:], re.M)
    return start, len(source) if end is None else line + end.start()


def _build(name):
    source = _SOURCE
    for scope, old, new in _EDITS[name]:
        if scope == '+':
            source += '\n\n' + new
            continue
        start, end = (0, len(source)) if scope == '' else _scope(source, scope)
        part = source[start:end]
        if part.count(old) != 1:
            raise AssertionError(f'{name}: {part.count(old)} places for {old!r} in {scope or "the source"}')
        source = source[:start] + part.replace(old, new) + source[end:]
    full = f'blind_c_{name}'
    module = types.ModuleType(full)
    module.__file__ = os.path.join(os.path.dirname(_PATH), full + '.py')
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(True), module.__file__)
    sys.modules[full] = module
    exec(compile(source, module.__file__, 'exec'), module.__dict__)
    return module


def __getattr__(name):
    if name not in _EDITS:
        raise AttributeError(name)
    if name not in _BUILT:
        _BUILT[name] = plain_base if name == 'plain' else _build(name)
    return _BUILT[name]


def __dir__():
    return [*globals(), *_EDITS]


def _add(table, name, why, *edits):
    assert name.isidentifier() and name not in _EDITS, name
    table[name] = why
    _EDITS[name] = edits


def W(name, why, *edits):
    _add(WRONG, name, why, *edits)


def R(name, why, *edits):
    _add(RIGHT, name, why, *edits)


def override(cls, method, body):
    '''Code that replaces cls.method by a function which may call the old one as old(...).'''
    return ('+', '', f'def _wrap(old):\n{body}\n    return new\n{cls}.{method} = _wrap({cls}.{method})\n')


# =====================================================================================================================
# wrong whenever they are used
# =====================================================================================================================

W('stab_adds_plus', 'the stabilizer adds +eps whatever the sign of the denominator',
  ('Stabilizer', 'return input + eps * sign', 'return input + eps'))
W('stab_abs', 'the stabilized denominator is |d| + eps, so the sign of d is lost',
  ('Stabilizer', 'return input + eps * sign', 'return input.abs() + eps'))
W('eps_no_bias', 'Epsilon leaves the bias out of its denominator',
  ('Epsilon', 'self._setup(epsilon, zero_params)', 'self._setup(epsilon, zero_bias(zero_params))'))
W('eps_redistributes', 'Epsilon rescales the relevance of each sample so that it sums to sum(R), as if the loss were an error',
  override('Epsilon', '_relevance', '''
    def new(self, call, grads):
        result = old(self, call, grads)
        def fix(r):
            dims = tuple(range(1, r.dim())) or (0,)
            total = grads[0].sum(tuple(range(1, grads[0].dim())) or (0,))
            return r * (total / (r.sum(dims) + 1e-9)).reshape(-1, *[1] * (r.dim() - 1))
        return tuple(map(fix, result))'''))
W('norm_no_input', 'Norm forgets to multiply with the input: it returns J^T (R / S)',
  override('Norm', '_relevance', '''
    def new(self, call, grads):
        self.reducer = lambda inputs, gradients: gradients[0]
        if self._frozen is None:
            self.stored_tensors['input'] = tuple(torch.ones_like(x) for x in self.stored_tensors['input'])
        return old(self, call, grads)'''))
W('zplus_bias_unclamped', 'ZPlus has the whole bias in its denominator instead of b+',
  ('ZPlus', 'ClampMod(min=0, zero_params=zero_params)',
   "ParamMod(lambda p, n: p if n == 'bias' else p.clamp(min=0), zero_params=zero_params)"))
W('zplus_negative_bias', 'ZPlus lets b- enter through the second run beside b+',
  ('ZPlus', 'ClampMod(max=0, zero_params=zero_bias(zero_params))', 'ClampMod(max=0, zero_params=zero_params)'))
W('zplus_positive_inputs_only', 'ZPlus ignores negative inputs, as in the original deep Taylor rule',
  ('ZPlus', 'inputs[0] * gradients[0] + inputs[1] * gradients[1]', 'inputs[0] * gradients[0]'),)
W('zplus_two_shares', 'ZPlus divides each of its two runs by its own denominator instead of by their sum',
  ('ZPlus', 'return [share, share]', 'return [out_grad / stabilizer_fn(outputs[0]), out_grad / stabilizer_fn(outputs[1])]'))
W('ab_plus_beta', 'AlphaBeta adds the beta half instead of subtracting it',
  ('AlphaBeta', 'return result - beta', 'return result + beta'))
W('ab_beta_positive_bias', 'the denominator of the beta half of AlphaBeta has b+ instead of b-',
  ('AlphaBeta', '                ClampMod(max=0, zero_params=zero_params),\n                ClampMod(min=0, zero_params=nobias),\n            ][:count]',
   '                ClampMod(max=0, zero_params=nobias),\n                ClampMod(min=0, zero_params=zero_params),\n            ][:count]'))
W('ab_beta_abs', 'the beta half of AlphaBeta divides by |d|, so its contributions keep a negative sign',
  ('AlphaBeta', 'second = out_grad / stabilizer_fn(outputs[2] + outputs[3])',
   'second = out_grad / stabilizer_fn((outputs[2] + outputs[3]).abs())'))
W('ab_defaults', 'AlphaBeta defaults to alpha=1, beta=0 instead of 2 and 1', ('AlphaBeta', 'alpha=2, beta=1', 'alpha=1, beta=0'))
W('gamma_bias_plain', 'Gamma does not enlarge the bias: b instead of b + gamma b+ or b + gamma b-',
  ('Gamma', 'GammaMod(gamma, min=0, zero_params=zero_params)',
   "ParamMod(lambda p, n: p if n == 'bias' else p + gamma * p.clamp(min=0), zero_params=zero_params)"),
  ('Gamma', 'GammaMod(gamma, max=0, zero_params=zero_params)',
   "ParamMod(lambda p, n: p if n == 'bias' else p + gamma * p.clamp(max=0), zero_params=zero_params)"))
W('gamma_no_negative_outputs', 'Gamma drops the relevance of outputs with z < 0',
  ('Gamma', 'return [first, first, second, second]', 'return [first, first, second * 0, second * 0]'))
W('gamma_one_branch', 'Gamma uses the branch for z > 0 for negative outputs as well',
  ('Gamma', "outputs[0] + outputs[1], z > 0, z)", "outputs[0] + outputs[1], z != 0, z)"),
  ('Gamma', 'return [first, first, second, second]', 'return [first, first, second * 0, second * 0]'))
W('gamma_drops_negative', 'GammaMod gives (1 + gamma) times the clamped part and loses the other sign',
  ('GammaMod', 'return param + gamma * (param if min is None and max is None else param.clamp(min=min, max=max))',
   'return (1 + gamma) * (param if min is None and max is None else param.clamp(min=min, max=max))'))
W('zbox_swapped', 'ZBox takes high with the positive and low with the negative weights',
  ('ZBox', '                ClampMod(min=0, zero_params=nobias),\n                ClampMod(max=0, zero_params=nobias),',
   '                ClampMod(max=0, zero_params=nobias),\n                ClampMod(min=0, zero_params=nobias),'))
W('zbox_bias', 'ZBox keeps the bias in its first run', ('ZBox', 'NoMod(zero_params=nobias)', 'NoMod(zero_params=zero_params)'))
W('zbox_plus_denominator', 'the denominator of ZBox adds the run of high instead of subtracting it',
  ('ZBox', 'outputs[0] - outputs[1] - outputs[2]', 'outputs[0] - outputs[1] + outputs[2]'))
W('wsquare_abs', 'WSquare takes |w| instead of w^2', ('WSquare', 'param ** 2', 'param.abs()'))
W('wsquare_times_input', 'WSquare multiplies its result with the input',
  ('WSquare', 'reducer=lambda inputs, gradients: gradients[0]', 'reducer=lambda inputs, gradients: gradients[0] * self.stored_tensors["input"][0]'),
  ('+', '', '''
def _copy(self):
    new = Hook.copy(self)
    new.reducer = lambda inputs, gradients: gradients[0] * new.stored_tensors['input'][0].detach()
    return new
WSquare.copy = _copy'''))
W('wsquare_no_bias', 'WSquare leaves b^2 out of its denominator',
  ('WSquare', 'zero_params=zero_params)]', 'zero_params=zero_bias(zero_params))]'))
W('flat_counts_bias', 'Flat counts the bias as one more input',
  ('Flat', 'zero_params=zero_bias(zero_params)', 'zero_params=zero_params'))
W('flat_sign', 'Flat takes the sign of the weights instead of ones',
  ('Flat', 'lambda param, name: torch.ones_like(param)', 'lambda param, name: param.sign()'))
W('pass_gradient', 'Pass multiplies R with the derivative of the layer',
  ('Pass', '_plain = False', '_plain = True'), ('Pass', 'return grad_output', 'return grad_input'))
W('deconv_input_gate', 'ReLUDeconvNet also closes the gate where the input is negative, which makes it guided backprop',
  ('ReLUDeconvNet', '_plain = False', '_plain = True'),
  ('ReLUDeconvNet', '_first(grad_output).clamp(min=0)', 'grad_input[0].clamp(min=0)'))
W('guided_plain', 'ReLUGuidedBackprop forgets the gate R > 0',
  ('ReLUGuidedBackprop', 'torch.where(grad > 0, _first(grad_input), rest)', 'grad_input[0]'))
W('smooth_no_beta', 'ReLUBetaSmooth computes sigmoid(x) and forgets beta',
  ('ReLUBetaSmooth', 'torch.sigmoid(self.beta_smooth * x)', 'torch.sigmoid(x)'))
W('smooth_times_beta', 'ReLUBetaSmooth differentiates softplus(beta x) without dividing by beta',
  ('ReLUBetaSmooth', 'torch.sigmoid(self.beta_smooth * x)', 'self.beta_smooth * torch.sigmoid(self.beta_smooth * x)'))
W('smooth_output', 'ReLUBetaSmooth takes the output of the layer instead of its input for the gate',
  ('ReLUBetaSmooth', 'x = self.stored_tensors', 'x = self._y if torch.is_grad_enabled() else self._y.detach()\n        _ = self.stored_tensors'),
  ('ReLUBetaSmooth', "self.stored_tensors['input'] = (_first(input).clone(),)", "self.stored_tensors['input'] = (input[0].clone(),)\n        self._y = output.clone()"),
  ('ReLUBetaSmooth', "        x = x if torch.is_grad_enabled() else x.detach()\n", ''))
W('stab_clip_unsigned', 'Stabilizer(clip=True) gives max(|d|, eps) without the sign',
  ('Stabilizer', 'return sign * torch.where(size < eps', 'return torch.where(size < eps'))
W('stab_l2_norm', 'Stabilizer(norm_scale=True) scales with the L2 norm instead of the root mean square',
  ('Stabilizer', '.mean(dim=dim, keepdim=True)', '.sum(dim=dim, keepdim=True)'))
W('stab_batch_norm', 'Stabilizer(norm_scale=True) takes the root mean square over the batch as well',
  ('Stabilizer', 'dim = tuple(range(1, d.dim())) or tuple(range(d.dim()))', 'dim = tuple(range(d.dim()))'))
W('zero_bias_mutates', 'zero_bias appends to the list it was given',
  ('zero_bias', 'names = _names(zero_params)', 'names = zero_params if isinstance(zero_params, list) else _names(zero_params)'))
W('basic_output_mods_ignored', 'BasicHook ignores output_modifiers', ('BasicHook', 'output = out_mod(self._run(changed, new))', 'output = self._run(changed, new)'))
W('basic_default_eps', 'the default gradient mapper of BasicHook divides by the bare output, without a stabilizer',
  ('BasicHook', 'stabilizer = Stabilizer()', 'stabilizer = Stabilizer(epsilon=0.)'))
W('basic_reducer_sum', 'the default reducer of BasicHook adds the gradients without multiplying them with the inputs',
  ('BasicHook', 'return sum(input * gradient for', 'return sum(gradient for'))

# =====================================================================================================================
# wrong under one condition
# =====================================================================================================================

# --- values of the data
W('stab_sign_of_zero', 'sgn(0) is 0 in the stabilizer, so a denominator of exactly zero stays zero',
  ('Stabilizer', 'torch.where(input < 0, -torch.ones_like(input), torch.ones_like(input)).detach()', 'input.detach().sign()'))
W('gamma_zero_open', 'Gamma sends the relevance of outputs with z = 0 through the positive branch', ('Gamma', 'z > 0, z)', 'z >= 0, z)'))
W('gamma_gate_denominator', 'Gamma gates by the sign of the enlarged denominators instead of that of the real output',
  ('Gamma', 'outputs[0] + outputs[1], z > 0, z)', 'outputs[0] + outputs[1], outputs[0] + outputs[1] > 0, z)'),
  ('Gamma', 'outputs[2] + outputs[3], z < 0, z)', 'outputs[2] + outputs[3], outputs[0] + outputs[1] < 0, z)'))
W('gamma_gate_zero_params', 'the gate of Gamma sees the layer with zero_params set to zero instead of the real output',
  ('Gamma', "        z = self.stored_tensors['output'][0]\n",
   "        z = self.stored_tensors['output'][0] if not self._zeros else outputs[4]\n"),
  ('Gamma', '        self.gamma = gamma\n', '        self.gamma = gamma\n        self._zeros = bool(zero_params)\n'),
  ('Gamma', 'input_modifiers=[_positive, _negative, _positive, _negative]', 'input_modifiers=[_positive, _negative, _positive, _negative, _same]'),
  ('Gamma', '                GammaMod(gamma, min=0, zero_params=nobias),\n            ]', '                GammaMod(gamma, min=0, zero_params=nobias),\n                NoMod(zero_params=zero_params),\n            ]'),
  ('Gamma', 'return [first, first, second, second]', 'return [first, first, second, second, torch.zeros_like(first)]'))
W('eps_zero_sample', 'for a sample whose input is all zero Epsilon puts ones in its place to avoid an empty result',
  ('_Share', 'reducer=lambda inputs, gradients: inputs[0] * gradients[0]',
   'reducer=lambda inputs, gradients: torch.where((inputs[0].flatten(1).abs().sum(1) == 0).reshape(-1, *[1] * (inputs[0].dim() - 1)), '
   'torch.ones_like(inputs[0]), inputs[0]) * gradients[0] if inputs[0].dim() > 1 else inputs[0] * gradients[0]'))
W('zplus_positive_shortcut', 'where all inputs are positive ZPlus takes a shortcut with one run, in which the bias is not clamped',
  override('ZPlus', 'backward', '''
    def new(self, module, grad_input, grad_output):
        if bool((self.stored_tensors['input'][0].detach() >= 0).all()):
            self.param_modifiers = [ParamMod(lambda p, n: p if n == 'bias' else p.clamp(min=0),
                                             zero_params=self.param_modifiers[0].zero_params), self.param_modifiers[1]]
        return old(self, module, grad_input, grad_output)'''))
W('ab_conserving', 'where the beta half of AlphaBeta has no contributions at all, alpha is taken as 1 so that relevance is conserved',
  ('AlphaBeta', '            return result - beta * (', '            result = torch.where(((inputs[2] * gradients[2] == 0) & (inputs[3] * gradients[3] == 0)).all(), result / alpha, result)\n            return result - beta * ('))
W('nan_hidden_zplus', 'ZPlus replaces NaN in its result by zero',
  ('ZPlus', 'inputs[0] * gradients[0] + inputs[1] * gradients[1]', 'torch.nan_to_num(inputs[0] * gradients[0] + inputs[1] * gradients[1], nan=0., posinf=float("inf"), neginf=-float("inf"))'))
W('inf_hidden_pass', 'Pass replaces infinite relevance by the largest finite number',
  ('Pass', 'return grad_output', 'return tuple(torch.nan_to_num(g, nan=float("nan")) for g in grad_output)'))
W('nan_spreads', 'ZBox adds 0 * sum(R) to every share, so NaN in one sample reaches the others',
  ('ZBox', 'share = out_grad / stabilizer_fn(', 'share = (out_grad + 0 * out_grad.sum()) / stabilizer_fn('))
W('nan_deconv', 'ReLUDeconvNet hides NaN: it compares R > 0 and puts zero elsewhere',
  ('ReLUDeconvNet', '_first(grad_output).clamp(min=0)', 'torch.where(_first(grad_output) > 0, _first(grad_output), torch.zeros_like(_first(grad_output)))'))
W('one_hot_is_one', 'relevance with one non-zero entry in each sample is taken as a one-hot class vector, and its value as 1, by Epsilon',
  override('Epsilon', '_relevance', '''
    def new(self, call, grads):
        g = grads[0]
        if len(grads) == 1 and g.dim() == 2 and bool(((g != 0).sum(1) == 1).all()):
            grads = ((g != 0).to(g.dtype),)
        return old(self, call, grads)'''))
W('smooth_overflow', 'ReLUBetaSmooth computes exp(beta x) / (1 + exp(beta x)), which is NaN for large inputs',
  ('ReLUBetaSmooth', 'torch.sigmoid(self.beta_smooth * x)', '(torch.exp(self.beta_smooth * x) / (1 + torch.exp(self.beta_smooth * x)))'))
W('stab_scale_overflow', 'Stabilizer(norm_scale=True) squares d without scaling, so the root mean square of large d is infinite and r is zero',
  ('Stabilizer', '        top = torch.where(zero | ~top.isfinite(), torch.ones_like(top), top)', '        top = torch.ones_like(top)'))

# --- shapes, sizes, layouts
W('eps_blocks_tail', 'for more than 128 outputs Epsilon works in blocks of 128 and forgets the incomplete last block',
  ('_Share', '[out_grad / stabilizer(outputs[0])]', '[self._blocks(out_grad) / stabilizer(outputs[0])]'),
  ('_Share', "    _several = True\n", '''    _several = True

    @staticmethod
    def _blocks(g):
        if g.dim() != 2 or g.shape[1] <= 128:
            return g
        whole = g.shape[1] // 128 * 128
        return torch.cat([g[:, :whole], torch.zeros_like(g[:, whole:])], 1)
'''))
W('norm_scale_batch_of_one', 'the root mean square of Stabilizer is taken after squeeze(), so a batch of one is scaled element by element',
  ('Stabilizer', '        if not d.numel() or not dim:', '        if d.shape[:1] == (1,) and d.dim() == 2 and self.dim is None:\n            return d.abs()\n        if not d.numel() or not dim:'))
W('zbox_last_of_batch', 'ZBox cuts a low or high with a longer batch to the last samples instead of the first',
  ('ZBox', 'bound = bound[:x.shape[0]]', 'bound = bound[-x.shape[0]:]'))
W('zbox_leading_dims', 'ZBox lines low and high up at the last dimension: fewer dimensions get leading ones instead of trailing ones',
  ('ZBox', 'bound = bound[(...,) + (None,) * (x.dim() - bound.dim())]', 'bound = bound[(None,) * (x.dim() - bound.dim()) + (...,)]'))
W('zbox_shape_fallback', 'a low or high that does not fit the input is replaced by its mean instead of an error',
  ('ZBox', "            raise ValueError(f'ZBox: {name} has shape {tuple(value.shape)}, the input {tuple(x.shape)}; '\n                             f'give a shape that broadcasts to the input') from None",
   '            return bound.mean().expand(x.shape)'))
W('zbox_channel_mean', 'a per channel low or high of shape (1, C, 1, 1) is averaged over the channels',
  ('ZBox', '        try:\n', '        if bound.dim() == 4 and bound.shape[0] == bound.shape[2] == bound.shape[3] == 1:\n            bound = bound.mean(1, keepdim=True)\n        try:\n'))
W('flat_borders', 'Flat counts border positions of a padded convolution like those inside: the denominator is the size of the kernel',
  ('Flat', 'stabilizer_fn(outputs[0])', 'stabilizer_fn(outputs[0].amax(dim=tuple(range(1, outputs[0].dim())), keepdim=True).expand_as(outputs[0]) if outputs[0].dim() > 2 else outputs[0])'))
W('flat_uniform', 'Flat spreads the relevance of a sample evenly over all inputs, whatever the receptive fields are',
  ('Flat', 'gradients[0],', 'gradients[0].mean(dim=tuple(range(1, gradients[0].dim())) or (0,), keepdim=True).expand_as(gradients[0]),'))
W('flat_pool_input', 'on a module without parameters Flat runs on the input instead of ones',
  ('Flat', 'input_modifiers=[torch.ones_like]', 'input_modifiers=[torch.ones_like]'),
  override('Flat', 'backward', '''
    def new(self, module, grad_input, grad_output):
        if not any(p is not None for p in module._parameters.values()):
            self.input_modifiers = [_same]
        return old(self, module, grad_input, grad_output)'''))
W('circular_as_zeros', 'the runs of changed copies pad with zeros whatever padding_mode is',
  ('BasicHook', '        with quiet:\n', "        if getattr(module, 'padding_mode', 'zeros') != 'zeros' and self._changes:\n            module.__dict__['padding_mode'] = 'zeros'\n        with quiet:\n"))
W('zplus_clamps_matrix', 'with circular, reflect or replicate padding ZPlus clamps the matrix instead of the parameter: A(w)+ instead of A(w+)',
  override('ZPlus', '_run', '''
    def new(self, module, x):
        if getattr(module, 'padding_mode', 'zeros') == 'zeros' or x.dim() < 3:
            return old(self, module, x)
        zero = NoMod(zero_params=['bias']).changed(self._frozen)
        n = x[0].numel()
        basis = torch.eye(n, dtype=x.dtype).reshape(n, *x.shape[1:])
        matrix = old(self, zero, basis).reshape(n, -1)
        minus = bool((module.weight <= 0).all())
        matrix = matrix.clamp(max=0) if minus else matrix.clamp(min=0)
        y = old(self, module, torch.zeros_like(x))
        return (x.reshape(len(x), -1) @ matrix).reshape(y.shape) + y'''))
W('same_padding_dilation', "with padding='same' the dilation of a convolution is lost in the runs of changed copies",
  ('BasicHook', '        with quiet:\n', "        if getattr(module, 'padding', None) == 'same' and self._changes:\n            module.__dict__['dilation'] = (1,) * len(module.dilation)\n        with quiet:\n"))
W('noncontiguous_strides', 'the input of parameter rules is read with contiguous strides, which is wrong for transposed or sliced inputs',
  ('BasicHook', "self.stored_tensors['input'] = tuple(x.clone() for x in call.inputs)",
   "self.stored_tensors['input'] = tuple((x if x.is_contiguous() or x.storage_offset() + x.numel() > x.untyped_storage().size() // x.element_size() "
   "else x.as_strided(x.shape, torch.empty(x.shape).stride())).clone() for x in call.inputs)"))
W('three_dimensional_linear', 'on a Linear layer with a further dimension (N, T, F) Epsilon takes the denominator of the first step for all steps',
  override('_Share', '_relevance', '''
    def new(self, call, grads):
        mapper = self.gradient_mapper
        if isinstance(call.module, nn.Linear) and grads[0].dim() == 3:
            self.gradient_mapper = lambda g, outputs: mapper(g, [outputs[0][:, :1].expand_as(outputs[0])])
        return old(self, call, grads)'''))
# --- dtypes
W('float64_through_float32', 'the denominators are computed in float32, whatever the dtype of the layer is',
  ('Stabilizer', 'return input + eps * sign', 'return (input.float() + eps * sign.float()).to(input.dtype) if input.dtype == torch.float64 else input + eps * sign'))
W('half_eps_vanishes', 'in bfloat16 and float16 the stabilizer rounds eps to two decimals, so it vanishes',
  ('Stabilizer', '        eps = self.epsilon\n', '        eps = self.epsilon if input.dtype not in (torch.float16, torch.bfloat16) else round(self.epsilon, 2)\n'))
W('complex_silent', 'on a complex layer the rule steps aside and the plain gradient is handed out',
  ('_Live', "                raise TypeError(f'{who}: a complex or quantized tensor was given; only real floating point is possible')", '                return None'))

# --- options and values of parameters
W('eps_zero_default', "epsilon=0 or stabilizer=0 is taken as 'not given' and gives 1e-6",
  ('Stabilizer', 'return cls(epsilon=value)', 'return cls(epsilon=value or 1e-6)'))
W('gamma_capped', 'gamma above 1 is cut to 1', ('Gamma', "        _number(gamma, 'gamma')\n", "        _number(gamma, 'gamma')\n        gamma = min(gamma, 1)\n"))
W('callable_added', 'a callable stabilizer is taken as something to add: d + f(d) instead of f(d)',
  ('Stabilizer', '        if callable(value):\n            return value\n', '        if isinstance(value, cls):\n            return value\n        if callable(value):\n            return lambda d: d + value(d)\n'))
W('stabilizer_rewrapped', 'a Stabilizer given as stabilizer is replaced by a plain one with its epsilon, so clip and norm_scale are lost',
  ('Stabilizer', '        if callable(value):\n', '        if isinstance(value, cls):\n            return cls(epsilon=value.epsilon)\n        if callable(value):\n'))
W('string_stabilizer', "a string as stabilizer ('0.1') is converted instead of refused with a TypeError",
  ('Stabilizer', 'if isinstance(value, bool) or not isinstance(value, numbers.Real):', 'if isinstance(value, str):\n            value = float(value)\n        if isinstance(value, bool) or not isinstance(value, numbers.Real):'))
W('stab_dim_zero', 'Stabilizer(norm_scale=True, dim=0) is taken as dim=None',
  ('Stabilizer', 'if self.dim is None:', 'if not self.dim:'))
W('stab_clip_scale', 'Stabilizer ignores norm_scale where clip is given as well',
  ('Stabilizer', '        if self.norm_scale:\n', '        if self.norm_scale and not self.clip:\n'))
W('ab_exact_difference', 'AlphaBeta compares alpha - beta == 1 exactly, so (1.4, 0.4) is refused',
  ('AlphaBeta', 'if abs(alpha - beta - 1) > 1e-12 * (1 + abs(alpha) + abs(beta)):', 'if alpha - beta != 1:'))
W('ab_loose_difference', 'AlphaBeta accepts alpha - beta up to 0.01 beside 1',
  ('AlphaBeta', '> 1e-12 * (1 + abs(alpha) + abs(beta)):', '> .01:'))
W('ab_nan_accepted', 'AlphaBeta accepts NaN and infinity, as every comparison with them is false',
  ('AlphaBeta', "        _number(alpha, 'alpha')\n        _number(beta, 'beta')\n", '        if alpha < 0 or beta < 0:\n            raise ValueError("negative")\n'))
W('ab_integers', 'AlphaBeta truncates alpha and beta to integers', ('AlphaBeta', 'self.alpha, self.beta = alpha, beta', 'self.alpha, self.beta = alpha, beta = int(alpha), int(beta)'))
W('ab_beta_zero_times_inf', 'with beta=0 AlphaBeta still evaluates the second half, so 0 * inf is NaN where its denominator is zero',
  ('AlphaBeta', "            if beta == 0:\n                return [first, first]\n", ''), ('AlphaBeta', "            if beta == 0:\n                return result\n", ''),
  ('AlphaBeta', 'count = 2 if beta == 0 else 4', 'count = 4'))
W('ab_zero_params_half', 'the runs without bias of AlphaBeta forget zero_params',
  ('AlphaBeta', 'nobias = zero_bias(zero_params)', 'nobias = zero_bias()'))
W('zero_params_tuple', 'zero_params given as a tuple is ignored', ('_names', '    return list(zero_params)', '    return list(zero_params) if isinstance(zero_params, list) else []'))
W('zero_params_string', 'one name as zero_params is taken letter by letter, so nothing is set to zero',
  ('_names', '    if isinstance(zero_params, str):\n        return [zero_params]\n', ''))
W('zero_params_substring', "zero_params match parts of names: 'bias' also sets 'in_bias' or 'bias_extra' to zero",
  ('ParamMod', 'if name in self.zero_params:', 'if any(part in name for part in self.zero_params):'))
W('zero_params_epsilon_output', 'Epsilon with zero_params changes the forward output too: it is that of the changed layer',
  ('_Relevance', 'return tuple(y.detach().clone() for y in call.inner)',
   '''mods = getattr(call.hook, 'param_modifiers', ())
        if isinstance(call.hook, Epsilon) and mods[0].zero_params:
            with torch.no_grad():
                return (call.hook._run(mods[0].changed(call.hook._frozen), call.inputs[0].detach()).clone(),)
        return tuple(y.detach().clone() for y in call.inner)'''))
W('nomod_zero_params', 'NoMod ignores zero_params', ('NoMod', '        super().__init__(lambda param, name: param, **kwargs)', "        super().__init__(lambda param, name: param, **{**kwargs, 'zero_params': None})"))
W('keys_empty_is_all', 'param_keys=[] is taken like None: every parameter is changed', ('ParamMod', 'None if param_keys is None else _names(param_keys)', 'None if not param_keys else _names(param_keys)'))
W('missing_ignored', 'a parameter in param_keys that the module lacks is silently skipped',
  ('ParamMod', 'if missing and self.require_params:', 'if False:'), ('BasicHook', 'if missing and mod.require_params:', 'if False:'))
W('gammamod_unbounded', 'GammaMod without bounds adds nothing: p instead of p + gamma p',
  ('GammaMod', '(param if min is None and max is None else', '(0 * param if min is None and max is None else'))
W('clampmod_both', 'ClampMod with both bounds uses min only', ('ClampMod', 'param.clamp(min=min, max=max)', 'param.clamp(min=min) if min is not None else param.clamp(max=max)'))
W('zero_bias_same_list', "zero_bias returns its own argument where 'bias' is in it already",
  ('zero_bias', '    return names', '    return zero_params if isinstance(zero_params, list) and "bias" in zero_params else names'))
W('smooth_copy_beta', 'ReLUBetaSmooth.copy() gives a rule with the default beta', 
  ('ReLUBetaSmooth', '    def forward(self', '    def copy(self):\n        return self.__class__()\n\n    def forward(self'),
  ('_Live', 'mine = hook.copy()', 'mine = Hook.copy(hook) if isinstance(hook, ReLUBetaSmooth) else hook.copy()'))

# --- kinds of modules
W('guided_relu_only', "ReLUGuidedBackprop takes x > 0 for f'(x), which is wrong for LeakyReLU, GELU or ReLU6",
  ('ReLUGuidedBackprop', 'torch.where(grad > 0, _first(grad_input), rest)', 'torch.where((grad > 0) & (self.stored_tensors["input"][0] > 0), grad, rest)'),
  ('ReLUGuidedBackprop', '    def backward', '    def forward(self, module, input, output):\n        self.stored_tensors["input"] = (input[0].detach().clone(),)\n\n    def backward'))
W('norm_elementwise_pass', 'Norm on a module without parameters that keeps the shape passes R through',
  override('Norm', '_relevance', '''
    def new(self, call, grads):
        if self._frozen is None and len(grads) == len(call.inputs) == 1 and grads[0].shape == call.inputs[0].shape and not list(call.module.parameters()):
            return grads
        return old(self, call, grads)'''))
W('norm_first_output', 'Norm on a module with several outputs uses the relevance of the first only',
  ('_Share', 'shares = [grad / self._stabilizer(y) for grad, y in zip(grads, outputs)]', 'shares = [grad / self._stabilizer(y) * (i == 0) for i, (grad, y) in enumerate(zip(grads, outputs))]'))
W('second_input_gradient', 'Norm and Epsilon give the first input its share and the others the plain gradient',
  ('_Share', "return tuple((x if create else x.detach()) * g for x, g in zip(self.stored_tensors['input'], call.plain(shares)))",
   "plain = call.plain(grads)[1:]\n        return tuple((x if create else x.detach()) * g for x, g in zip(self.stored_tensors['input'][:1], call.plain(shares))) + tuple(plain)"))
W('keyword_silent', 'a tensor by keyword (module(input=x)) is not seen, and the plain gradient is handed out',
  ('_Live', 'found = [value for value in tree.tree_leaves((args, kwargs)) if', 'found = [value for value in tree.tree_leaves(args) if'))
W('container_accepted', 'a rule that changes parameters accepts a Sequential and acts with the unchanged weights of its parts',
  ('BasicHook', 'if self._changes and _nested(module):', 'if False:'))
W('weight_norm_raw', 'under a parametrization the raw parameters are changed and the weight is built from them afterwards',
  ('ParamMod', '        new = _snapshot(module)\n', '''        if parametrize.is_parametrized(module):
            new = _bare(module)
            def change(part):
                for key, val in part._parameters.items():
                    if val is not None:
                        part._parameters[key] = torch.zeros_like(val) if key in self.zero_params else self.modifier(val, key)
                for val in part._modules.values():
                    change(val)
            change(new)
            return new
        new = _snapshot(module)
'''), ('BasicHook', 'self._frozen = _snapshot(call.module)', 'self._frozen = _bare(call.module) if parametrize.is_parametrized(call.module) else _snapshot(call.module)'))
W('batch_norm_batch_statistics', 'a batch norm in eval mode is run with the statistics of the batch by the rules that change parameters',
  ('ParamMod', '        return new\n\n    @contextmanager', "        if isinstance(new, nn.modules.batchnorm._BatchNorm):\n            new.__dict__['training'] = True\n        return new\n\n    @contextmanager"))
W('batch_norm_statistics_moved', 'the runs of the rule move the running statistics of a batch norm in training mode once more',
  ('_bare', "{key: None if val is None else val.clone() for key, val in module._buffers.items()}", 'dict(module._buffers)'))
W('dropout_rerun', 'Norm runs the module again for its Jacobian, so a dropout mask is drawn anew',
  ('_Share', '        create = torch.is_grad_enabled()\n        outputs = call.inner', '''        create = torch.is_grad_enabled()
        if len(call.inputs) == 1 == len(call.inner):
            with torch.enable_grad():
                x = call.inputs[0] if create else call.inputs[0].detach().requires_grad_()
                call = _Call(call.hook, call.module, [x.view_as(x)], [])
                call.inner = [call.module.forward(call.inputs[0])]
        outputs = call.inner'''))
W('inplace_relu', 'on ReLU(inplace=True) ReLUBetaSmooth sees the input after the layer has overwritten it',
  ('ReLUBetaSmooth', '(_first(input).clone(),)', '(output.clone() if getattr(module, "inplace", False) else input[0].clone(),)'))

# --- how often, when and by whom it is called
W('last_call_wins', 'the input is kept on the rule, so after several calls all of them use that of the last call',
  ('BasicHook', "        self.stored_tensors['output'] =", "        self._shared['input'] = self.stored_tensors['input']\n        self.stored_tensors['output'] ="),
  ('BasicHook', "        self._frozen = None\n", "        self._frozen = None\n        self._shared = {}\n"),
  ('BasicHook', "x = self.stored_tensors['input'][0]", "x = self._shared['input'][0] if self._shared['input'][0].shape == self.stored_tensors['input'][0].shape else self.stored_tensors['input'][0]"))
W('weights_of_registration', 'the weights are copied when the rule is registered, so an optimizer step afterwards is not seen',
  ('BasicHook', '                self._frozen = _snapshot(call.module)', '''                cache = self._cache
                if call.module not in cache:
                    cache[call.module] = _snapshot(call.module)
                self._frozen = cache[call.module]'''),
  ('BasicHook', "        self._frozen = None\n", "        self._frozen = None\n        self._cache = weakref.WeakKeyDictionary()\n"))
W('weights_of_backward', 'the weights are read when the relevance is computed, not when the layer was called',
  ('BasicHook', "            call = types.SimpleNamespace(module=self._frozen,", "            call = types.SimpleNamespace(module=_snapshot(module),"))
W('wsquare_cache', 'WSquare keeps its denominator per input shape, although the rule sits on several modules or the weights have changed',
  ('WSquare', '[out_grad / stabilizer_fn(outputs[0])]', '[out_grad / cache.setdefault((outputs[0].shape, outputs[0].dtype), stabilizer_fn(outputs[0]).detach())]'),
  ('WSquare', '        super().__init__(', '        cache = {}\n        super().__init__('))
W('one_module_only', 'a rule registered on two modules without complaint acts on the last one only',
  ('_Live', 'self.module() is module', 'self.module() is module and self.hook._mine() is module'),
  ('Hook', '        live = _Live(self, module)', '        self._mine = weakref.ref(module)\n        live = _Live(self, module)'))
W('second_backward_gradient', 'the relevance is given once per call; a second backward through the same graph gets the plain gradient',
  ('_Relevance', '            result = call.hook._relevance(call, relevance)',
   '            result = tuple(call.plain(relevance)) if getattr(call, "done", False) else call.hook._relevance(call, relevance)\n        call.done = True'))
W('second_backward_adds', 'the relevance of a second backward through the same graph is added to that of the first',
  ('_Relevance', '        if len(ctx.needs_input_grad)', '        result = call.total = tuple(a + b for a, b in zip(result, getattr(call, "total", [0 * r.detach() for r in result])))\n        if len(ctx.needs_input_grad)'))
W('gone_after_remove', 'after remove() a graph that was made with the rule gives the plain gradient',
  ('_Relevance', '            result = call.hook._relevance(call, relevance)',
   '            result = call.hook._relevance(call, relevance) if any(isinstance(getattr(h, "__self__", None), _Live) for h in call.module._forward_hooks.values()) else tuple(call.plain(relevance))'))
W('remove_clears_hooks', 'remove() takes away every forward hook of the module, also those of others',
  ('_Handle', '            handle.remove()', '            handle.remove()\n        if self.module() is not None:\n            self.module()._forward_hooks.clear()'),
  ('Hook', 'handle = _Handle(first, second)', 'handle = _Handle(first, second)\n        handle.module = weakref.ref(module)'))
W('remove_twice', 'remove() twice raises', ('_Handle', '        for handle in self.handles:', '        handles = self.__dict__.pop("handles")\n        for handle in handles:'))
W('other_pre_hook', "what another forward pre-hook makes of the input is not seen: the rule uses the input from before it",
  ('Hook', 'live.pre, with_kwargs=True', 'live.first, with_kwargs=True, prepend=True'),
  ('_Live', '    def pre(self', '''    def first(self, module, args, kwargs):
        self.seen = args
        return self.pre(module, args, kwargs)

    def pre(self'''),
  ('_Live', "        mine._start(call)", "        mine._start(call)\n        seen = [value for value in getattr(self, 'seen', ()) if _is_float(value)]\n"
   "        if isinstance(mine, BasicHook) and len(seen) == len(inputs) == 1 and seen[0].shape == inputs[0].shape:\n            mine.stored_tensors['input'] = (seen[0].clone(),)"))
W('live_copy', 'a deep copy of the model carries a live rule',
  ('_Live', 'return _Live(None, None)', 'new = _Live(self.hook, None)\n        new.module = lambda: None\n        new.everywhere = True\n        return new'),
  ('_Live', 'return self.hook is not None', 'return getattr(self, "everywhere", False) or self.hook is not None'))
W('twice_on_one', 'a second rule on a module that has one is accepted, and takes the first rule for the Jacobian of the layer',
  ('Hook', 'if isinstance(other, _Live) and other.alive(module):', 'if False:'))
W('thread_local', 'what a call stores is kept per thread, so a backward on another thread gets the plain gradient',
  ('_Relevance', '            result = call.hook._relevance(call, relevance)',
   '            result = call.hook._relevance(call, relevance) if call.thread == threading.get_ident() else tuple(call.plain(relevance))'),
  ('_Call', '        self.hook = hook\n', '        self.hook = hook\n        self.thread = threading.get_ident()\n'), ('', 'import weakref\n', 'import weakref\nimport threading\n'))
W('training_inactive', 'the rule does nothing while the module is in training mode', ('_Live', 'return self.hook is not None', 'return not module.training and self.hook is not None'))
# --- more about the surroundings
W('residual_lost', "the relevance is set as the gradient of the input tensor, so what other users of that tensor (a skip connection) give it is lost",
  ('_Live', '        new = _Relevance.apply(', """        for index, value in enumerate(inputs):
            if value.requires_grad:
                value.register_hook(lambda grad, index=index: getattr(call, 'result', {}).get(index, grad))
        new = _Relevance.apply("""),
  ('_Relevance', '        if len(ctx.needs_input_grad)', '        call.result = {i: r for i, r in enumerate(result) if r is not None and not torch._C._functorch.is_batchedtensor(r)}\n        if len(ctx.needs_input_grad)'))
W('frozen_weights_unchanged', 'parameters with requires_grad=False are not changed by the rule',
  ('ParamMod', '            elif name in keys:', '            elif name in keys and getattr(module._parameters.get(name, param), "requires_grad", True):'))
W('large_batch_tail', 'WSquare works through the batch in blocks of 64 and forgets the incomplete last block',
  ('WSquare', '[out_grad / stabilizer_fn(outputs[0])]', '[self._blocks(out_grad) / stabilizer_fn(outputs[0])]'),
  ('WSquare', '    def __init__', """    @staticmethod
    def _blocks(g):
        if len(g) <= 64:
            return g
        whole = len(g) // 64 * 64
        return torch.cat([g[:whole], torch.zeros_like(g[whole:])])

    def __init__"""))
W('norm_scale_3d', 'the root mean square of Stabilizer leaves out the last dimension of volumes (Conv3d)',
  ('Stabilizer', 'dim = tuple(range(1, d.dim())) or', 'dim = tuple(range(1, min(d.dim(), 4))) or'))
W('callable_gets_abs', 'a callable stabilizer is given |d|, and the sign is put back afterwards',
  ('Stabilizer', '        if callable(value):\n            return value\n', '        if isinstance(value, cls):\n            return value\n        if callable(value):\n            return lambda d: torch.where(d < 0, -1., 1.).to(d.dtype) * value(d.abs())\n'))
W('remove_removes_all', 'remove() of one handle takes the rule away from every module it was registered on',
  ('_Handle', '        for handle in self.handles:\n            handle.remove()', '''        rule = getattr(self, 'rule', None)
        group = [ref() for ref in rule._handles if ref() is not None] if rule else [self]
        for other in group or [self]:
            for handle in other.handles:
                handle.remove()'''),
  ('Hook', 'handle = _Handle(first, second)', 'handle = _Handle(first, second)\n        handle.rule = self'),
  ('Hook', '            if handle is not None:\n                handle.remove()', '            if handle is not None:\n                handle.rule = None\n                handle.remove()'))
W('rule_weakly_held', 'the hooks hold the rule weakly, so a rule that nobody else keeps is collected and the plain gradient comes back',
  ('_Live', '        self.hook = hook\n', '        self._hook = None if hook is None else weakref.ref(hook)\n'),
  ('_Live', '    def __deepcopy__', '    @property\n    def hook(self):\n        return None if self._hook is None else self._hook()\n\n    def __deepcopy__'))
W('handle_dropped', 'the hooks are removed when the handle is collected, so the rule ends where the caller does not keep the handle',
  ('_Handle', '    def __enter__', '    def __del__(self):\n        self.remove()\n\n    def __enter__'))
W('weight_grad_filled', 'computing the relevance fills the .grad of the parameters, also under autograd.grad by the input alone',
  ('BasicHook', '        call.module = module\n        return result', """        call.module = module
        own = [param for param in module.parameters() if param.requires_grad and param.is_leaf]
        inner = [y for y in self._inner_outputs if y.requires_grad]
        if own and inner:
            for param, g in zip(own, torch.autograd.grad(inner, own, [torch.ones_like(y) for y in inner], retain_graph=True, allow_unused=True)):
                if g is not None:
                    param.grad = g.detach() if param.grad is None else param.grad + g.detach()
        return result"""),
  ('BasicHook', '    def _start(self, call):\n', '    def _start(self, call):\n        self._inner_outputs = call.inner\n'))
W('stack_of_calls', 'inputs are pushed on a stack at each call and popped at each backward, which is wrong when only an earlier call is asked for its relevance',
  ('BasicHook', "        self.stored_tensors['output'] =", "        self._stack.append(self.stored_tensors['input'])\n        self.stored_tensors['output'] ="),
  ('BasicHook', "        self._frozen = None\n", "        self._frozen = None\n        self._stack = []\n"),
  ('BasicHook', "        x = self.stored_tensors['input'][0]\n", "        x = (self._stack.pop() if self._stack and self._stack[-1][0].shape == self.stored_tensors['input'][0].shape else self.stored_tensors['input'])[0]\n"))
W('inplace_layer_after', "Gamma keeps the output without a copy, so an in-place operation behind the layer changes its gate",
  ('_Live', '        for index, value in zip(where, new):', "        if isinstance(mine, Gamma):\n            mine.stored_tensors['output'] = tuple(y.detach() for y in new)\n        for index, value in zip(where, new):"))
W('input_changed_after', 'parameter rules keep the input without a copy, so a later in-place change of it changes the relevance',
  ('BasicHook', 'tuple(x.clone() for x in call.inputs)', 'tuple(x.detach() if x.is_leaf else x.view_as(x) for x in call.inputs)'),
  ('BasicHook', "        x = self.stored_tensors['input'][0]\n", "        x = self.stored_tensors['input'][0]\n        x = self._leaf if create and self._leaf is not None else x\n"),
  ('BasicHook', '    def _start(self, call):\n', '    def _start(self, call):\n        self._leaf = call.inputs[0] if call.inputs[0].is_leaf else None\n'))
W('subclass_as_linear', 'every subclass of Linear is run as a plain Linear by the parameter rules, whatever its forward does',
  ('BasicHook', "        with quiet:\n            output = module.forward(*args, **kwargs)\n", "        with quiet:\n            output = nn.Linear.forward(module, *args) if isinstance(module, nn.Linear) else module.forward(*args, **kwargs)\n"))
W('other_forward_hook', "the rule's hook comes after those of others, so a change of the output by another hook is left out of the way back",
  ('Hook', 'live.post, prepend=True', 'live.post, prepend=False'))
W('spectral_norm_iterates', 'reading the weight of a spectral_norm layer in training mode runs its power iteration once more',
  ('_effective', '_evaluating(chain)()', 'chain()'))

# --- what is left behind
W('requires_grad_off', 'the rule freezes the parameters of the module and leaves them frozen',
  ('Hook', '        live = _Live(self, module)', '        for param in module.parameters(recurse=False):\n            param.requires_grad_(False)\n        live = _Live(self, module)'))
W('input_requires_grad', 'an input that needs no gradient is switched to requires_grad in place',
  ('_Live', '        count = sum(map', '        for value in args:\n            if _is_float(value) and value.is_leaf:\n                value.requires_grad_()\n        count = sum(map'))
W('parameter_replaced', 'after each relevance the parameters of the module are new Parameter objects',
  ('BasicHook', '        call.module = module\n        return result', '''        call.module = module
        if self._changes:
            for key, val in list(module._parameters.items()):
                if val is not None:
                    module._parameters[key] = nn.Parameter(val.detach(), requires_grad=val.requires_grad)
        return result'''))
W('seeded', 'register() seeds the global random generator', ('Hook', '        live = _Live(self, module)', '        torch.manual_seed(0)\n        live = _Live(self, module)'))
W('buffer_left', 'the last input stays on the module as a buffer, in its state_dict, also after remove()',
  ('_Live', '        mine = hook.copy()\n', "        mine = hook.copy()\n        if len(inputs) == 1:\n            module.register_buffer('lrp_input', inputs[0].detach())\n"))
W('relevance_clamped_in_place', 'ReLUDeconvNet clamps the relevance it is given in place',
  ('ReLUDeconvNet', '_first(grad_output).clamp(min=0)', '_first(grad_output).detach().clamp_(min=0).clone()'))
W('evaluation_mode_left', 'register() puts the module into eval mode and leaves it there',
  ('Hook', '        live = _Live(self, module)', '        module.eval()\n        live = _Live(self, module)'))
W('weights_left_after_error', 'an exception in a callable stabilizer leaves the parameters of the module clamped',
  ('BasicHook', '        result = super()._relevance(call, grads)\n', '''        saved = [(param, param.data) for param in module.parameters(recurse=False)]
        if self._changes:
            for param, data in saved:
                param.data = data.clamp(min=0)
        result = super()._relevance(call, grads)
        for param, data in saved:
            param.data = data
'''))
W('output_rounding', 'the output of the layer comes back as y + eps * 0.5 - eps * 0.5, which is not bit for bit the same',
  ('_Relevance', 'return tuple(y.detach().clone() for y in call.inner)', 'return tuple(y.detach() + .5 - .5 for y in call.inner)'))
W('anomaly_left', 'the first backward leaves anomaly detection switched on',
  ('BasicHook', "        create = torch.is_grad_enabled()\n        x = self", "        create = torch.is_grad_enabled()\n        torch.autograd.set_detect_anomaly(True)\n        x = self"))

# --- second derivatives
W('second_denominator_constant', 'the stabilized denominator is a constant for the second derivative',
  ('Stabilizer', 'return input + eps * sign', 'return (input + eps * sign).detach()'))
W('second_input_constant', 'ZPlus multiplies with a detached input, so the second derivative misses one term',
  ('ZPlus', 'inputs[0] * gradients[0] + inputs[1] * gradients[1]', 'inputs[0].detach() * gradients[0] + inputs[1].detach() * gradients[1]'))
W('second_constant_relevance', 'the relevance is differentiable only where R requires a gradient itself, as create_graph is taken from it',
  ('BasicHook', "        create = torch.is_grad_enabled()\n        x = self", "        create = grad_output[0].requires_grad\n        x = self"))
W('second_weights_constant', 'the relevance has no derivative by the weights',
  ('_snapshot', 'param.clone() for name', 'param.detach().clone() for name'))
W('second_gate_constant', 'the gate of ReLUBetaSmooth is a constant for the second derivative',
  ('ReLUBetaSmooth', 'torch.sigmoid(self.beta_smooth * x)', 'torch.sigmoid(self.beta_smooth * x).detach()'))
W('second_beta_half', 'the beta half of AlphaBeta is left out of the second derivative',
  ('AlphaBeta', 'return result - beta * (inputs[2] * gradients[2] + inputs[3] * gradients[3])', 'return result - beta * (inputs[2] * gradients[2] + inputs[3] * gradients[3]).detach()'))
W('second_scale_constant', 'the root mean square of Stabilizer(norm_scale=True) is a constant for the second derivative',
  ('Stabilizer', 'eps = eps * self._scale(input)', 'eps = eps * self._scale(input).detach()'))
W('second_composite', 'for Norm and Epsilon on a container the denominator is a constant for the second derivative',
  ('_Share', 'outputs = call.inner if create else [y.detach() for y in call.inner]', 'outputs = [y.detach() for y in call.inner]'))
W('second_guided', "ReLUGuidedBackprop has no second derivative through f'(x)",
  ('_Call', 'create_graph=torch.is_grad_enabled(), allow_unused=True)', 'create_graph=torch.is_grad_enabled() and not isinstance(self.hook, ReLUGuidedBackprop), allow_unused=True)'))
W('basic_same_input', 'BasicHook does not separate its runs: with two identity input modifiers each run gets the sum of both gradients',
  ('BasicHook', 'x = x if create else x.detach()', 'x = x if create else x.detach().requires_grad_()'),
  ('BasicHook', 'new = new.view_as(new) if new.requires_grad else', 'new = new if new.requires_grad else'))

# =====================================================================================================================
# right
# =====================================================================================================================

_LAYERS = ('+', '', """
_LINEAR = _PURE[:7]


def _batched(module, x):
    if isinstance(module, nn.Linear):
        return x.dim() > 1
    return x.dim() == module.weight.dim()
""")

R('plain', 'the base itself')
R('explicit_matrix', 'linear layers are applied as explicit matrices, built from unit vectors (so 0 * NaN of the matrix product stays within the sample, but not within the receptive field)', _LAYERS,
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) not in _LINEAR or not _batched(module, x) or not bool(x.detach().isfinite().all()):
            return old(self, module, x)
        if not len(x):
            return old(self, module, x)
        n = x[0].numel()
        zero = torch.zeros_like(x[:1]).detach()
        offset = old(self, module, zero)
        if n * offset.numel() > 4000000:
            return old(self, module, x)
        bare = _bare(module)
        if bare._parameters.get('bias') is not None:
            bare._parameters['bias'] = torch.zeros_like(bare._parameters['bias'])
        matrix = old(self, bare, torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *x.shape[1:])).reshape(n, -1)
        return (x.reshape(len(x), n) @ matrix).reshape(len(x), *offset.shape[1:]) + offset"""))
R('sample_by_sample', 'linear layers are applied to one sample after the other', _LAYERS,
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) not in _LINEAR or not _batched(module, x) or len(x) < 2:
            return old(self, module, x)
        return torch.cat([old(self, module, x[index:index + 1]) for index in range(len(x))])"""))
R('output_blocks', 'linear layers and ungrouped convolutions are applied in blocks of three output channels', _LAYERS,
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) or getattr(module, 'groups', 1) != 1 or not _batched(module, x):
            return old(self, module, x)
        weight, bias = module._parameters['weight'], module._parameters.get('bias')
        parts = []
        for start in range(0, len(weight), 3):
            part = _bare(module)
            part._parameters['weight'] = weight[start:start + 3]
            if bias is not None:
                part._parameters['bias'] = bias[start:start + 3]
            parts.append(old(self, part, x))
        return torch.cat(parts, dim=-1 if type(module) is nn.Linear else 1) if parts else old(self, module, x)"""))
R('float64_inside', 'the runs of linear layers and batch norms, and the shares, are computed in float64 and rounded at the end',
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) not in _PURE:
            return old(self, module, x)
        wide = _bare(module)
        for table in (wide._parameters, wide._buffers):
            for key, val in table.items():
                if val is not None and val.is_floating_point():
                    table[key] = val.double()
        return old(self, wide, x.double())"""))
R('separate_gradients', 'the gradients of the runs are taken one by one, in reversed order',
  override('BasicHook', '_gradients', """
    def new(self, outputs, inputs, grads, create):
        if len(outputs) != len(inputs):
            return old(self, outputs, inputs, grads, create)
        found = [old(self, [y], [x], [g], create)[0] for y, x, g in reversed(list(zip(outputs, inputs, grads)))]
        return found[::-1]"""))
R('linear_einsum', 'Linear layers are applied by einsum',
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) is not nn.Linear:
            return old(self, module, x)
        y = torch.einsum('oi,...i->...o', module.weight, x)
        return y if module.bias is None else module.bias + y"""))
R('linear_by_hand', 'on Linear layers A^T s is a product written by hand, without automatic differentiation of the layer',
  override('BasicHook', '_run', """
    def new(self, module, x):
        self.__dict__.setdefault('_used', []).append(module)
        return old(self, module, x)"""),
  override('BasicHook', '_gradients', """
    def new(self, outputs, inputs, grads, create):
        used, same = self._used, all(mod is _same for mod in self.output_modifiers)
        self._used = []
        if not same or len(used) != len(grads) or any(type(module) is not nn.Linear for module in used):
            return old(self, outputs, inputs, grads, create)
        with torch.set_grad_enabled(create):
            return [grad @ module.weight for grad, module in zip(grads, used)]"""))
R('conv_unfold', 'plain Conv2d layers are applied as a matrix product of unfolded patches',
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) is not nn.Conv2d or module.groups != 1 or module.padding_mode != 'zeros' or isinstance(module.padding, str) or x.dim() != 4 or not len(x):
            return old(self, module, x)
        patches = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        y = module.weight.reshape(len(module.weight), -1) @ patches
        if module.bias is not None:
            y = y + module.bias[:, None]
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in
                zip(x.shape[2:], module.padding, module.dilation, module.kernel_size, module.stride)]
        return y.reshape(*y.shape[:2], *size)"""))
R('relu_clamp', 'positive and negative parts are relu(v) and -relu(-v); at v = 0 itself the derivative is 0 where clamp has 1',
  ('_positive', 'return x.clamp(min=0)', 'return torch.relu(x)'), ('_negative', 'return x.clamp(max=0)', 'return -torch.relu(-x)'))
R('sigmoid_tanh', 'the gate of ReLUBetaSmooth is (1 + tanh(beta x / 2)) / 2',
  ('ReLUBetaSmooth', 'torch.sigmoid(self.beta_smooth * x)', '((1 + torch.tanh(self.beta_smooth * x / 2)) / 2)'))
R('sigmoid_two_sided', 'the gate of ReLUBetaSmooth is 1 / (1 + exp(-beta x)) for positive and exp(beta x) / (1 + exp(beta x)) for negative inputs',
  ('ReLUBetaSmooth', '        return _like(torch.sigmoid(self.beta_smooth * x) * _first(grad_output), grad_output)', """        t = self.beta_smooth * x
        up = 1 / (1 + torch.exp(-torch.where(t < 0, torch.zeros_like(t), t)))
        down = torch.exp(torch.where(t < 0, t, torch.zeros_like(t)))
        return _like(torch.where(t < 0, down / (1 + down), up) * _first(grad_output), grad_output)"""))
R('alias_before_call', 'a pre-hook gives the module an alias of its input, and the relevance goes to that',
  ('_Live', '        if count < 2 and not inplace and not self.hook._jacobian(module):\n            return None\n', ''))
R('guided_clamp_first', 'ReLUGuidedBackprop takes the derivative of the positive part of R',
  ('ReLUGuidedBackprop', '    def backward', """    def _relevance(self, call, grads):
        return super()._relevance(call, tuple(grad.clamp(min=0) for grad in grads))

    def backward"""))
R('deconv_relu', 'ReLUDeconvNet is relu(R)', ('ReLUDeconvNet', '_first(grad_output).clamp(min=0)', 'torch.relu(_first(grad_output))'))
R('gamma_factor', 'GammaMod multiplies the enlarged parameters with 1 + gamma instead of adding gamma times them',
  ('Gamma', '        nobias = zero_bias(zero_params)\n', """        nobias = zero_bias(zero_params)

        def GammaMod(gamma, min=None, max=None, zero_params=None):
            def modifier(p, name):
                return torch.where(p > 0 if max is None else p < 0, p * (1 + gamma), p)
            return ParamMod(modifier, zero_params=zero_params)
"""))
R('reversed_batch', 'every run of a linear layer has the samples in reversed order', _LAYERS,
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) not in _LINEAR or not _batched(module, x):
            return old(self, module, x)
        return old(self, module, x.flip(0)).flip(0)"""))
R('doubled_batch', 'every run of a linear layer has each sample twice', _LAYERS,
  override('BasicHook', '_run', """
    def new(self, module, x):
        if type(module) not in _LINEAR or not _batched(module, x):
            return old(self, module, x)
        return old(self, module, torch.cat([x, x]))[:len(x)]"""))
R('channels_last', 'runs on four dimensional inputs use the channels_last memory format',
  override('BasicHook', '_run', """
    def new(self, module, x):
        return old(self, module, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)"""))
R('copysign_stabilizer', 'the sign of the stabilizer comes from copysign of d + 0',
  ('Stabilizer', 'sign = torch.where(input < 0, -torch.ones_like(input), torch.ones_like(input)).detach()',
   'sign = torch.copysign(torch.ones_like(input), input.detach() + 0.)'))
R('zbox_differences', "ZBox on linear layers is x - low through the positive and x - high through the negative weights",
  ('ZBox', '    @staticmethod\n    def _bound', """    def backward(self, module, grad_input, grad_output):
        if type(module) not in _PURE[:7]:
            return super().backward(module, grad_input, grad_output)
        low, high = self.input_modifiers[1:]
        mods, first = self.param_modifiers[1:], self.param_modifiers[0]
        twin = BasicHook(
            input_modifiers=[lambda x: x - low(x), lambda x: x - high(x)], param_modifiers=mods,
            gradient_mapper=lambda g, ys: [g / self._share(ys[0] + ys[1])] * 2,
            reducer=lambda xs, gs: xs[0] * gs[0] + xs[1] * gs[1])
        twin.stored_tensors, twin._rest = self.stored_tensors, self._rest
        return twin.backward(module, grad_input, grad_output)

    @staticmethod
    def _bound"""),
  ('ZBox', '        self.low, self.high = low, high\n', '        self.low, self.high = low, high\n        self._share = stabilizer_fn\n'))
R('zplus_concatenated', 'ZPlus on Linear layers is one product of (x+, x-) with the stacked matrices',
  ('+', '', """
def _zplus_linear(old):
    def new(self, module, grad_input, grad_output):
        if type(module) is not nn.Linear:
            return old(self, module, grad_input, grad_output)
        create = torch.is_grad_enabled()
        with torch.set_grad_enabled(create):
            x = self.stored_tensors['input'][0]
            x = torch.cat([x.clamp(min=0), x.clamp(max=0)], -1)
            first, second = (mod.changed(module) for mod in self.param_modifiers)
            weight = torch.cat([first.weight, second.weight], 1)
            y = x @ weight.T
            y = y if first.bias is None else y + first.bias
            share = self.gradient_mapper(grad_output[0], [y, torch.zeros_like(y)])[0]
            r = x * (share @ weight)
            return (r[..., :module.in_features] + r[..., module.in_features:],)
    return new
ZPlus.backward = _zplus_linear(ZPlus.backward)
"""))
