"""Make small mistakes in numpy_ref, one at a time, and check that the fast tests detect each of them.

    python scripts/mutate_numpy_ref.py
    python scripts/mutate_numpy_ref.py --only attention --only "QK-norm"

A test that passes on correct code proves little unless it fails on wrong code. Each mistake (a *mutant*) is made in a
temporary copy of the code. The tests with finite differences run first; if they pass, the comparison with the PyTorch model
runs. If this passes, too, the mutant survives, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

PROJECT = Path(__file__).parent.parent
TESTS = (  # the fastest first
    "tests/numpy_ref/test_numpy_gradcheck.py",
    "tests/numpy_ref/test_numpy_commands.py::test_numpy_cached_logits_equal_uncached_ones_at_every_length",
    "tests/numpy_ref/test_parity.py",
)
OWN_TESTS = {  # what the model does not use is tested by one file each
    "preference": ("tests/numpy_ref/test_numpy_preference.py",),
    "policy_gradient": ("tests/numpy_ref/test_numpy_policy_gradient.py",),
    "enumeration": ("tests/numpy_ref/test_numpy_policy_gradient.py",),
    "distillation": ("tests/numpy_ref/test_numpy_distillation.py",),
}

Mutant = tuple[str, str, str, str]

# (file, right, wrong, what is wrong about it); `right` occurs exactly once in the file
MUTANTS: list[Mutant] = [
    ("linear", "rows @ weight  #", "-rows @ weight  #", "dx: a sign"),
    ("linear", "rows.T @ x.reshape(-1, x.shape[-1])", "rows.T @ x.reshape(-1, x.shape[-1]) * 0.5", "dW: a factor"),
    ("linear", "rows.sum(axis=0)", "rows.mean(axis=0)", "db: mean instead of sum"),
    ("linear", "        y += bias\n", "        y -= bias\n", "bias: a sign"),
    ("activation", 'casting="unsafe")', 'casting="unsafe")\n    slope *= 2', "relu: a factor of two"),
    ("activation", "    slope *= 2\n", "", "relu2: the forgotten 2"),
    (
        "activation",
        "np.multiply(f, 1 - sigmoid, out=slope)",
        "np.multiply(f, sigmoid, out=slope)",
        "swish: s for 1 - s",
    ),
    ("activation", "    slope += sigmoid\n", "", "swish: a dropped term"),
    ("activation", "square *= 3 * _CUBIC * _GELU", "square *= _CUBIC * _GELU", "gelu: the 3 of the cube"),
    ("activation", "np.subtract(1, slope, out=slope)", "np.add(1, slope, out=slope)", "gelu: 1 + t^2"),
    ("activation", "    slope += normal\n", "", "exact gelu: a dropped term"),
    ("activation", "x * x * -0.5", "x * x * -1.0", "exact gelu: the density's exponent"),
    (
        "norm",
        "    along = row_dot(dx, h) / C\n",
        "    along = row_dot(dy, h) / C\n",
        "layernorm: the weight forgotten once",
    ),
    ("norm", "    dx -= dx.mean(axis=-1, keepdims=True)\n", "", "layernorm: mean(g) dropped"),
    ("norm", "    dx -= h * along\n", "", "layernorm: the variance's term dropped"),
    ("norm", "    dx -= h * along\n    dx *= r\n", "    dx -= h * along\n", "layernorm: 1 / sigma forgotten"),
    ("norm", 'dx = dy * cache["weight"]  # g', "dx = dy.copy()  # g", "layernorm: the weight forgotten"),
    ("norm", "(row_dot(g, h) / C)", "row_dot(g, h)", "rmsnorm: 1 / C forgotten"),
    ("norm", "g = dy if weight is None else dy * weight", "g = dy", "rmsnorm: the weight forgotten"),
    ("norm", "EPS = 1e-5", "EPS = 1e-6", "another epsilon"),
    (
        "embedding",
        "np.add.reduceat(dy.reshape(-1, dy.shape[-1])[order], first, axis=0)",
        "dy.reshape(-1, dy.shape[-1])[order][first]",
        "embedding: repeated tokens overwrite",
    ),
    (
        "embedding",
        'dtable[cache["rows"]] = dy.sum(axis=0)',
        'dtable[cache["rows"]] = dy[0]',
        "positions: one row of the batch",
    ),
    (
        "embedding",
        "np.concatenate((np.sin(angle), np.cos(angle))",
        "np.concatenate((np.cos(angle), np.sin(angle))",
        "sinusoidal: halves swapped",
    ),
    (
        "embedding",
        'dx[:, :-1] += cache["weight"] * dy[:, 1:]',
        'dx[:, 1:] += cache["weight"] * dy[:, :-1]',
        "smear: the gradient goes to the token after",
    ),
    (
        "embedding",
        '(dy * cache["before"]).sum',
        "(dy * dy).sum",
        "smear: the weight's gradient without what came before",
    ),
    ("embedding", "first is None else first[:, None]", "True else first", "smear: the cache's last token forgotten"),
    ("loss", "(p * (dp - (dp * p).sum(axis=-1, keepdims=True)),)", "(p * dp,)", "softmax: diagonal only"),
    ("loss", "dz[scored, y[scored]] -= scale", "dz[scored, y[scored]] += scale", "cross-entropy: a sign"),
    ("loss", "p * (scored * scale)[:, None]", "p * scale", "cross-entropy: -100 gets a gradient"),
    ("loss", "losses.sum() / count", "losses.mean()", "cross-entropy: mean over all places"),
    ("loss", 'dloss / cache["count"]', "dloss / len(y)", "cross-entropy: backward divides by all places"),
    ("rope", '-cache["sin"]', 'cache["sin"]', "rope: turned the wrong way back"),
    ("rope", "out[..., :half] -= b * sin", "out[..., :half] += b * sin", "rope: no rotation"),
    ("rope", "-np.arange(0, d_head, 2) / d_head", "-np.arange(0, d_head, 2) / (2 * d_head)", "rope: other frequencies"),
    ("dropout", "mask *= 1 / (1 - p)", "mask *= 1 / p", "dropout: the wrong scale"),
    ("dropout", 'dy if cache["mask"] is None else dy * cache["mask"]', "dy", "dropout: no mask backward"),
    (
        "attention",
        "np.triu(np.full((n, n), -np.inf, dtype=dtype), 1)",
        "np.triu(np.full((n, n), -np.inf, dtype=dtype), 2)",
        "the mask lets one token of the future through",
    ),
    (
        "attention",
        "scores[..., S - T + start :]",
        "scores[..., start : start + rows.stop - start]",
        "the mask ignores the past",
    ),
    ("attention", "(behind < window)", "(behind <= window)", "window: one token too many"),
    ("attention", "np.arange(S - T, S)[:, None]", "np.arange(T)[:, None]", "window: places counted without the past"),
    ("attention", "        ds -= dots[..., rows, :]\n", "", "attention: softmax's second term dropped"),
    ("attention", "        ds *= weights\n", "", "attention: P forgotten in dS"),
    ("attention", "    dq *= 1 / math.sqrt(D)\n", "", "attention: dq without 1 / sqrt(D)"),
    (
        "attention",
        "(ds.swapaxes(-1, -2) @ q[..., rows, :]).sum(axis=2)",
        "(ds.swapaxes(-1, -2) @ q[..., rows, :])[:, :, 0]",
        "grouped heads: only the first one's dk",
    ),
    (
        "attention",
        "(used.swapaxes(-1, -2) @ do).sum(axis=2)",
        "(used.swapaxes(-1, -2) @ do).mean(axis=2)",
        "grouped heads: mean instead of sum in dv",
    ),
    ("attention", "(q * (1 / math.sqrt(D)))", "(q * (1 / D))", "scores divided by D"),
    ("attention", 'weights * drop["mask"]', "weights", "attention: dv without dropout's mask"),
    (
        "multihead",
        "dx += named_linear_backward(_merge(dheads[name])",
        "dx = named_linear_backward(_merge(dheads[name])",
        "x used three times, gradients not added",
    ),
    (
        "multihead",
        'dheads[name], _ = rmsnorm_backward(dheads[name], cache[f"norm_{name}"])',
        "pass",
        "QK-norm: no backward",
    ),
    ("multihead", "scale, config.norm_eps)", "scale)", "QK-norm with a scale: another eps"),
    ("multihead", "eps=config.norm_eps)", ")", "QK-norm: another eps"),
    (
        "multihead",
        'grads[f"{name}_norm.weight"] = dscale',
        'grads[f"{name}_norm.weight"] = 0 * dscale',
        "QK-norm: no gradient of the scale",
    ),
    ("gpt", "config.d_head, config.rope_base)", "config.d_head)", "rope: another base"),
    ("block", 'params["weight"], config.norm_eps)', 'params["weight"])', "RMSNorm: another eps"),
    ("block", 'params.get("bias"), config.norm_eps)', 'params.get("bias"))', "LayerNorm: another eps"),
    ("mlp", 'dh * cache["product"]["u"]', 'dh * cache["product"]["a"]', "swiglu: the wrong factor for the gate"),
    (
        "mlp",
        "    dx += named_linear_backward(dgate",
        "    dx = named_linear_backward(dgate",
        "swiglu: up's gradient dropped",
    ),
    ("block", "    dmiddle += dy\n", "", "block: the second residual's gradient dropped"),
    ("block", "    dx += dmiddle\n", "    dx += dy\n", "block: the first residual takes the wrong gradient"),
    ("block", "    return middle + h, cache", "    return x + h, cache", "block: attention's branch lost"),
    ("gpt", "        dwte += dhead\n", "        dwte = dhead\n", "tied embeddings: only the head's gradient"),
    ("gpt", 'grads["lm_head.weight"] = dhead', 'grads["lm_head.weight"] = dhead * 2', "head: a factor of two"),
    ("gpt", "rope = cos[start:], sin[start:]", "rope = cos[start:], -sin[start:]", "rope: angles negated"),
    ("optimizers", "            m += (1 - b1) * g\n", "            m += g\n", "AdamW: m without 1 - b1"),
    (
        "optimizers",
        'correct1, correct2 = 1 - b1 ** state["step"], 1 - b2 ** state["step"]',
        "correct1, correct2 = 1.0, 1.0",
        "AdamW: no bias correction",
    ),
    ("optimizers", "            square += eps\n", "", "AdamW: no epsilon"),
    (
        "optimizers",
        "1 - lr * weight_decay if p.ndim >= 2 else 1.0",
        "1 - lr * weight_decay",
        "AdamW: vectors decay, too",
    ),
    ("optimizers", "            w *= keep\n", "            w *= keep * keep\n", "AdamW: twice the decay"),
    ("optimizers", "square *= 1 - b2", "square *= 1 - b1", "AdamW: v with b1"),
    ("optimizers", "m += (1 - momentum) * g", "m += g", "Muon: m without 1 - momentum"),
    ("optimizers", "orthogonalize(momentum * m + (1 - momentum) * g)", "orthogonalize(m)", "Muon: no look ahead"),
    ("optimizers", "math.sqrt(max(w.shape))", "math.sqrt(min(w.shape))", "Muon: the shorter side's root"),
    ("optimizers", "w *= 1 - lr * weight_decay", "w *= 1 - weight_decay", "Muon: decay without the learning rate"),
    ("optimizers", "c * (gram @ gram)", "c * gram", "Muon: no fifth power"),
    (
        "optimizers",
        "orthogonalize(x.T, iterations).T",
        "orthogonalize(x.T, iterations - 1).T",
        "Muon: tall ones get less",
    ),
    ("optimizers", 'name.startswith("blocks.")', "True", "Muon: embeddings are orthogonalised, too"),
    ("optimizers", "            u += g\n", "            u += (1 - momentum) * g\n", "SGD: damped momentum"),
    ("optimizers", "s += (1 - smoothing) * (g * g)", "s += (1 - smoothing) * g", "RMSprop: no square"),
    ("optimizers", "g *= max_norm / (norm + 1e-6)", "g *= max_norm", "clipping: not divided by the norm"),
    (
        "optimizers",
        "    return norm\n\n\ndef adamw_init",
        "    return max_norm\n\n\ndef adamw_init",
        "clipping: tells the wrong norm",
    ),
    (
        "optimizers",
        "return peak * step / warmup_steps",
        "return peak * (step - 1) / warmup_steps",
        "warmup: off by one",
    ),
    (
        "optimizers",
        "(1 - math.cos(math.pi * _progress(step, warmup_steps, horizon))) / 2",
        "math.sin(_progress(step, warmup_steps, horizon))",
        "cosine: another curve",
    ),
    ("optimizers", "step = orthogonalize(momentum * m", "step = orthogonalize(0.95 * m", "Muon: the default momentum"),
    ("optimizers", "embedding_ratio * lr, betas", "lr, betas", "Muon: embeddings at the matrices' rate"),
    ("optimizers", "(1 - decay_share) * horizon", "decay_share * horizon", "trapezoid: falls too early"),
    (
        "optimizers",
        "min(1, max(1 / tau, 1 / n))",
        "min(1, 1 / tau)",
        "mean of the weights: its first steps count too much",
    ),
    ("optimizers", "min(1, max(1 / tau, 1 / n))", "1 / n", "mean of the weights: old steps count as much as new ones"),
    ("optimizers", "round(4 * tau)", "round(tau)", "mean of the weights: it begins too late"),
    ("sampling", "np.where(z > 0, z / penalty, z * penalty)", "z / penalty", "penalty: negative logits get likelier"),
    ("sampling", "out[order[before >= p]]", "out[order[before > 1.01 * p]]", "top-p: one token too many"),
    ("preference", "place < end[:, None]", "place < end[:, None] - 1", "pairs: the end token has no loss"),
    (
        "preference",
        "place >= begin[:, None]",
        "place >= begin[:, None] - 1",
        "pairs: the prompt's last token has a loss",
    ),
    ("preference", "(place >= begin[:, None]) & ", "", "pairs: the whole prompt has a loss"),
    ("preference", "(tokens.sum(axis=1) / counts)", "tokens.sum(axis=1)", "pairs: sum instead of mean"),
    ("preference", "if mean else np.ones(", "if True else np.ones(", "pairs: mean instead of sum"),
    ("preference", '(drows / cache["counts"])', "drows", "pairs: backward of the mean without the number of tokens"),
    ("preference", "dlogits = -p * scale", "dlogits = p * scale", "pairs: a sign in the backward of log-probabilities"),
    (
        "preference",
        "forward(params, config, tokens)\n",
        "forward(params, config, tokens, np.random.default_rng(0))\n",
        "pairs: the reference in training mode, with dropout",
    ),
    (
        "preference",
        "h = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))",
        "h = beta * ((rejected - reference_rejected) - (chosen - reference_chosen))",
        "dpo: swapped sides",
    ),
    (
        "preference",
        "h = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))",
        "h = beta * (chosen - rejected)",
        "dpo: the reference forgotten",
    ),
    (
        "preference",
        "np.logaddexp(0, -h) + label_smoothing * h",
        "np.logaddexp(0, -h)",
        "dpo: label smoothing dropped from the loss",
    ),
    (
        "preference",
        '(cache["label_smoothing"] - sigmoid(-cache["h"]))',
        '-sigmoid(-cache["h"])',
        "dpo: label smoothing dropped from the gradient",
    ),
    (
        "preference",
        'return cache["beta"] * dh, -cache["beta"] * dh, None, None',
        "return dh, -dh, None, None",
        "dpo: beta forgotten in the gradient",
    ),
    ("preference", "error = h - 1 / (2 * tau)", "error = h - 1 / tau", "ipo: twice the target"),
    ("preference", "* 2 * cache", "* cache", "ipo: the forgotten 2"),
    (
        "preference",
        "beta * (chosen - rejected) - gamma",
        "beta * (chosen - rejected - gamma)",
        "simpo: gamma times beta",
    ),
    ("preference", "-np.expm1(chosen)", "1", "orpo: a probability instead of odds"),
    ("preference", "dh / unlikely_chosen - scale", "dh - scale", "orpo: the slope of the log odds forgotten"),
    ("preference", "dh / unlikely_chosen - scale", "dh / unlikely_chosen", "orpo: no gradient of the cross-entropy"),
    ("preference", "max(1, len(losses)) if denominator is None else denominator", "len(losses)", "a mean of means"),
    (
        "policy_gradient",
        "(d.sum(axis=1, keepdims=True) - d) / (rewards.shape[1] - 1)",
        "d.sum(axis=1, keepdims=True) / (rewards.shape[1] - 1)",
        "rloo: the baseline includes the answer itself",
    ),
    (
        "policy_gradient",
        "(d.sum(axis=1, keepdims=True) - d) / (rewards.shape[1] - 1)",
        "(d.sum(axis=1, keepdims=True) - d) / rewards.shape[1]",
        "rloo: K instead of K - 1",
    ),
    (
        "policy_gradient",
        "(d.sum(axis=1, keepdims=True) - d) / (rewards.shape[1] - 1)",
        "(d.sum(keepdims=True) - d) / (rewards.size - 1)",
        "rloo: a baseline of the batch instead of the group",
    ),
    ("policy_gradient", "d - d.mean(axis=1, keepdims=True)", "d - d.mean()", "Dr. GRPO: a mean of the batch"),
    (
        "policy_gradient",
        "advantages: Array = d - d.mean(axis=1, keepdims=True)",
        "advantages: Array = rewards - rewards.mean(axis=1, keepdims=True)",
        "Dr. GRPO: equal rewards leave rounding errors",
    ),
    (
        "policy_gradient",
        "advantages: Array = d - d.mean(axis=1, keepdims=True)",
        "advantages: Array = (d - d.mean(axis=1, keepdims=True)) / (d.std(axis=1, keepdims=True) + 1e-4)",
        "Dr. GRPO: divided by sigma",
    ),
    ("policy_gradient", "= centred / (sigma + eps)", "= centred", "GRPO: sigma forgotten"),
    (
        "policy_gradient",
        "/ (rewards.shape[1] - 1))  # (B, 1)",
        "/ rewards.shape[1])  # (B, 1)",
        "GRPO: sigma with K degrees of freedom",
    ),
    (
        "policy_gradient",
        "log_probs_forward(logits, targets, own_length)",
        "log_probs_forward(logits, targets, True)",
        "policy gradient: divided by the own length",
    ),
    (
        "policy_gradient",
        "log_probs_forward(logits, targets, own_length)",
        "log_probs_forward(logits, np.where(targets == 0, IGNORE, targets), own_length)",
        "policy gradient: the end token is masked",
    ),
    (
        "policy_gradient",
        "-(advantages * rows).sum() / denominator",
        "-(advantages * rows).mean()",
        "policy gradient: mean over the micro-batch",
    ),
    ("policy_gradient", "(-dloss / cache", "(dloss / cache", "policy gradient: a sign"),
    (
        "policy_gradient",
        '-dloss / cache["denominator"] * cache["advantages"]',
        '-dloss / cache["denominator"] * np.abs(cache["advantages"])',
        "policy gradient: bad answers are reinforced, too",
    ),
    ("policy_gradient", "p, d = np.exp(log_p)", "p, d = np.exp(log_q)", "kl: weighted with the reference"),
    ("policy_gradient", "np.exp(log_p), log_p - log_q", "np.exp(log_q), log_q - log_p", "kl: the other direction"),
    (
        "policy_gradient",
        '(cache["d"] - cache["kl"][..., None])',
        'cache["d"]',
        "kl: the mean dropped from the gradient",
    ),
    ("policy_gradient", ".sum(axis=-1) * (targets != IGNORE)", ".sum(axis=-1)", "kl: prompt and padding are counted"),
    (
        "policy_gradient",
        'scale = cache["p"], cache["scored"] *',
        'scale = cache["p"], np.ones_like(cache["scored"]) *',
        "kl: padding has a gradient",
    ),
    ("policy_gradient", "estimate, slope = d**2 / 2, d", "estimate, slope = d**2, 2 * d", "k2: the forgotten half"),
    (
        "policy_gradient",
        "np.expm1(-d) + d, -np.expm1(-d)",
        "np.expm1(d) - d, np.expm1(d)",
        "k3: the ratio upside down",
    ),
    ("enumeration", "* rewards  # (N,)", "* rewards / len(rewards)  # (N,)", "expected reward: a mean over answers"),
    ("enumeration", "repeat=max_tokens))", "repeat=max_tokens))[:-1]", "enumeration: an answer is missing"),
    (
        "enumeration",
        "np.exp(log_probs[groups].sum(axis=1))",
        "np.full(len(groups), 1 / len(groups))",
        "enumeration: all groups are equally likely",
    ),
    ("distillation", "alpha * temperature**2 * kl", "alpha * temperature * kl", "distillation: T for T^2 in the loss"),
    (
        "distillation",
        "alpha * temperature / cache",
        "alpha * temperature**2 / cache",
        "distillation: T^2 for T in the gradient",
    ),
    (
        "distillation",
        "(teacher * (log_q - log_s))",
        "(np.exp(log_s) * (log_s - log_q))",
        "distillation: KL the other way",
    ),
    (
        "distillation",
        "sum(softmax(z / temperature) for z in logits) / len(logits)",
        "softmax(sum(z / temperature for z in logits) / len(logits))",
        "distillation: teachers averaged in logits",
    ),
    (
        "distillation",
        "softmax(z / temperature) for z",
        "softmax(z.copy()) for z",
        "distillation: the teachers have no temperature",
    ),
    ("distillation", "(1 - alpha) * ce + alpha *", "alpha * ce + (1 - alpha) *", "distillation: a swapped in the loss"),
    ("distillation", "((1 - alpha) * dloss,", "(dloss,", "distillation: the whole gradient of the cross-entropy"),
    (
        "distillation",
        "(softmax(z) - teacher) * scored",
        "(softmax(z) - teacher)",
        "distillation: padding has a gradient",
    ),
    # branches of `match` and their likes: a value that is treated as another one
    (
        "config",
        'case "learned":\n                return True\n            case "sinusoidal" | "rope":',
        'case "learned" | "rope":\n                return True\n            case "sinusoidal":',
        "rope treated as learned positions",
    ),
    (
        "config",
        'case "learned":\n                return True\n            case "sinusoidal" | "rope":',
        'case "learned" | "sinusoidal":\n                return True\n            case "rope":',
        "sinusoidal positions treated as learned ones",
    ),
    (
        "config",
        'case "swiglu":\n                return True\n            case "gelu" | "relu" | "swish" | "relu2":',
        'case "swiglu" | "swish":\n                return True\n            case "gelu" | "relu" | "relu2":',
        "swish treated as gated",
    ),
    (
        "config",
        'case "layernorm":\n                return self.bias',
        'case "layernorm":\n                return True',
        "LayerNorm: a bias without bias=True",
    ),
    (
        "config",
        'case "rmsnorm":\n                return False',
        'case "rmsnorm":\n                return self.bias',
        "RMSNorm: a bias with bias=True",
    ),
    ("config", "if self.d_head % 2:", "if self.d_model % 2:", "rope: an odd head dimension accepted"),
    (
        "config",
        "if self.is_gated else 4 * self.d_model",
        "if not self.is_gated else 4 * self.d_model",
        "swapped widths",
    ),
    (
        "gpt",
        'case "learned":\n            x, cache["wpe"]',
        'case "rope":\n            x, cache["wpe"]',
        "learned positions not added",
    ),
    (
        "gpt",
        'x, cache["wpe"] = position_forward(x, params["wpe.weight"], start)',
        'x, cache["wpe"] = position_forward(x, params["wpe.weight"])',
        "learned positions counted without the past",
    ),
    (
        "gpt",
        "position_forward(x, table, start)",
        "position_forward(x, table)",
        "sinusoidal positions counted without the past",
    ),
    (
        "gpt",
        "rope = cos[start:], sin[start:]",
        "rope = cos[: end - start], sin[: end - start]",
        "rope: positions counted without the past",
    ),
    (
        "gpt",
        "sinusoidal_table(config.context_length, config.d_model)",
        "sinusoidal_table(config.context_length, config.d_model)[::-1]",
        "sinusoidal positions counted from the end",
    ),
    (
        "block",
        'return rmsnorm_forward(x, params["weight"], config.norm_eps)',
        'return layernorm_forward(x, params["weight"], None, config.norm_eps)',
        "RMSNorm treated as LayerNorm",
    ),
    (
        "block",
        'return layernorm_forward(x, params["weight"], params.get("bias"), config.norm_eps)',
        'return rmsnorm_forward(x, params["weight"], config.norm_eps)',
        "LayerNorm treated as RMSNorm",
    ),
    (
        "block",
        'if "bias" not in cache:',
        'if cache.get("bias") is None:',
        "LayerNorm without bias: RMSNorm's backward",
    ),
    ("mlp", 'activation_forward(gate, "swish")', 'activation_forward(gate, "gelu")', "swiglu: gated by gelu"),
    ("mlp", "activation_forward(h, activation)", 'activation_forward(h, "gelu")', "every plain activation is gelu"),
    ("mlp", "            h = a * h\n", "            h = a\n", "swiglu treated as a plain activation of the gate"),
    ("activation", '"gelu": _gelu,', '"gelu": _gelu_exact,', "gelu treated as its exact form"),
    ("multihead", "if config.qk_norm and not config.qk_scale:", "if config.qk_norm:", "QK-norm with a scale: twice"),
    (
        "multihead",
        "        if config.qk_scale:\n            scale",
        "        if config.qk_norm and not config.qk_scale:\n            scale",
        "QK-norm: with and without a scale swapped",
    ),
    (
        "optimizers",
        'case "linear":\n            decayed = _progress(step, warmup_steps, horizon)',
        'case "linear":\n            decayed = (1 - math.cos(math.pi * _progress(step, warmup_steps, horizon))) / 2',
        "linear treated as cosine",
    ),
    (
        "optimizers",
        'case "constant":\n            decayed = 0.0',
        'case "constant":\n            decayed = _progress(step, warmup_steps, horizon)',
        "constant treated as linear",
    ),
    (
        "optimizers",
        "decayed = _progress(step, begin, horizon)",
        "decayed = _progress(step, warmup_steps, horizon)",
        "trapezoid treated as linear",
    ),
    ("optimizers", "max(warmup_steps, min(horizon", "max(0, min(horizon", "trapezoid: falls before the warmup ends"),
]


def copy(folder: Path) -> Path:
    """Copy the files that the tests need into `folder`, and return `folder`."""
    for name in ("numpy_ref", "positron", "tests", "conf"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", folder)
    return folder


def first_failure(folder: Path, file_tests: tuple[str, ...]) -> str | None:
    """Return the name of the first test of `file_tests` that fails in `folder`, or None if all pass."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(folder)  # takes precedence over an installed Positron
    for tests in file_tests:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "0",
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            tests,
        ]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
        if run.returncode:
            failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return failed[0].split(" - ")[0].split("::")[-1] if failed else "the tests do not run"
    return None


def try_mutant(folders: Queue[Path], mutant: Mutant) -> tuple[Mutant, str | None]:
    """Make the mutant in one of `folders`; return it with the test that detects it, or None if it survives."""
    file, right, wrong, _ = mutant
    folder = folders.get()
    path = folder / "numpy_ref" / f"{file}.py"
    original = path.read_text(encoding="utf-8")
    try:
        path.write_text(original.replace(right, wrong), encoding="utf-8", newline="\n")
        return mutant, first_failure(folder, OWN_TESTS.get(file, TESTS))
    finally:
        path.write_text(original, encoding="utf-8", newline="\n")
        folders.put(folder)


def selected(names: list[str]) -> list[Mutant]:
    """Return the mutants whose file is one of `names` or whose description contains one of them; all if `names` is empty."""
    for name in names:
        if not any(name == file or name in description for file, _, _, description in MUTANTS):
            sys.exit(f"no mutant has the file or description {name}: --list shows all")
    return [m for m in MUTANTS if not names or any(name == m[0] or name in m[3] for name in names)]


def main() -> None:
    """Try the mutants that the command line selects."""
    parser = argparse.ArgumentParser(
        description="Make small mistakes in numpy_ref, one at a time, and check that the fast tests detect each of them.",
        epilog="Takes a few seconds for most mutants and about a minute for those that only the torch model detects.",
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="a file of numpy_ref, such as attention, or a part of a description; may be given more than once",
    )
    parser.add_argument("--list", action="store_true", help="print the mutants, and run no test")
    options = parser.parse_args()
    mutants = selected(options.only)
    if options.list:
        for file, _, _, description in mutants:
            print(f"{file:<10}  {description}")
        return
    for file, right, _, description in mutants:
        places = (PROJECT / "numpy_ref" / f"{file}.py").read_text(encoding="utf-8").count(right)
        if places != 1:
            sys.exit(
                f"the text to replace for the mutant '{description}' occurs {places} times in {file}.py, not once: {right!r}"
            )
    began, workers = time.perf_counter(), os.cpu_count() or 1
    survivors = []
    with tempfile.TemporaryDirectory() as root:
        folders: Queue[Path] = Queue()
        for worker in range(workers):
            folders.put(copy(Path(root) / str(worker)))
        first = folders.get()
        for file_tests in dict.fromkeys(OWN_TESTS.get(file, TESTS) for file, *_ in mutants):
            if failed := first_failure(first, file_tests):
                sys.exit(f"the tests fail without a mutant: {failed}")
        folders.put(first)
        with ThreadPoolExecutor(workers) as pool:
            for (file, _, _, description), test in pool.map(lambda mutant: try_mutant(folders, mutant), mutants):
                print(f"{'detected' if test else 'SURVIVED'}  {file:<10}  {description:<52}  {test or ''}", flush=True)
                if test is None:
                    survivors.append(description)
    detected = len(mutants) - len(survivors)
    print(f"\n{detected} of {len(mutants)} detected in {time.perf_counter() - began:.0f} s")
    if survivors:
        sys.exit(1)


if __name__ == "__main__":
    main()
