"""Measure the tokens per second of generation: Positron, Hugging Face `generate`, and a loop without a cache.

One sequence is generated on a CPU. All programs use the same weights, those of an untrained TinyGPT. The script first checks
that they generate the same tokens in fp32 at temperature 0. They are measured in turns (A B C A B C ...) in one process; the
table shows medians over the rounds. The last line is a limit: the speed at which every weight is read once per token from
memory, at the rate of a large product of a matrix and a vector. --run RUN measures this run instead, in fp32, bf16 and int8,
and also its bits per byte; --draft DRAFT measures the run also with a draft model. Needs: pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from positron.config import GPTConfig
from positron.inference.engine import Engine
from positron.inference.packed_linear import Linear
from positron.inference.sampling import BALANCED, Sampling
from positron.model.gpt import GPT
from positron.system.log import screen_log
from positron.text.char_word import CharTokenizer

TINYGPT = GPTConfig(vocab_size=16_000, context_length=512, d_model=320, n_layer=8, n_head=8)
GREEDY = Sampling(temperature=0)


def hugging_face(model: GPT) -> Any:
    """Return a GPT2LMHeadModel of transformers with the weights of `model`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    build: Any = GPT2LMHeadModel
    other = build(
        GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.context_length,
            n_embd=c.d_model,
            n_layer=c.n_layer,
            n_head=c.n_head,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    weights, zeros = model.state_dict(), {k: torch.zeros_like(v) for k, v in other.state_dict().items() if "bias" in k}
    state = {**other.state_dict(), **zeros}
    state["transformer.wte.weight"] = state["lm_head.weight"] = weights["wte.weight"]
    state["transformer.wpe.weight"] = weights["wpe.weight"]
    state["transformer.ln_f.weight"] = weights["norm_f.weight"]
    for i in range(c.n_layer):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        state[theirs + "ln_1.weight"] = weights[ours + "norm1.weight"]
        state[theirs + "ln_2.weight"] = weights[ours + "norm2.weight"]
        qkv = torch.cat([weights[f"{ours}attn.{x}.weight"] for x in "qkv"])
        state[theirs + "attn.c_attn.weight"] = qkv.T.contiguous()  # the weight of a Conv1D is (in, out)
        for theirs_name, name in (("attn.c_proj", "attn.out"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down")):
            state[f"{theirs}{theirs_name}.weight"] = weights[f"{ours}{name}.weight"].T.contiguous()
    other.load_state_dict(state)
    return other


def without_cache(model: GPT, ids: list[int], count: int) -> list[int]:
    """Generate `count` tokens as nanoGPT does: the model reads the whole text again for each token."""
    seen = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            hidden = model.hidden(torch.tensor([seen]))[:, -1]
            seen.append(int(model.logits(hidden).argmax()))
    return seen[len(ids) :]


def with_engine(engine: Engine, ids: list[int], count: int) -> list[int]:
    return [row[0] or 0 for row in engine.ids([ids], GREEDY, max_tokens=count, stop_ids=(), seed=0)]


def with_hugging_face(model: Any, ids: list[int], count: int) -> list[int]:
    idx = torch.tensor([ids])
    out = model.generate(
        idx, attention_mask=torch.ones_like(idx), max_new_tokens=count, min_new_tokens=count, do_sample=False
    )
    new: list[int] = out[0, len(ids) :].tolist()
    return new


def read_rate() -> float:
    """Return the bytes per second at which the product of a packed 256 MB matrix and a vector reads the matrix."""
    matrix, vector = torch.randn(8192, 8192), torch.randn(1, 8192)
    product, times = Linear(matrix), []
    with torch.inference_mode():
        for _ in range(7):
            began = time.perf_counter()
            product(vector)
            times.append(time.perf_counter() - began)
    return matrix.nbytes / min(times)


def in_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Call the variants in turns; return the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, write in variants.items():
            began = time.perf_counter()
            write()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


@screen_log()
def bench_run(options: argparse.Namespace) -> None:
    """Measure the run `--run` with each number format, with and without a draft model.

    Tokens are sampled with the preset `balanced`, because the speed with a draft depends on how often its tokens are
    accepted. Generation does not stop at the end of a text.
    """
    from positron.evaluation.eval_texts import texts_of_run
    from positron.evaluation.scoring import score_documents, total
    from positron.inference.int8 import round_weights
    from positron.inference.text_model import DTYPES, Writer
    from positron.run.find import find_run
    from positron.run.load import load_draft, load_model

    run = find_run(options.run)
    model, tokenizer, _ = load_model(run)
    draft = load_draft(options.draft, tokenizer)
    texts = texts_of_run(run, "val", 50_000)
    bpb, variants = {}, {}
    for weights, dtype in DTYPES.items():
        bpb[weights] = total(score_documents(round_weights(model, dtype), tokenizer, texts)).bpb
        for name, helper in ((weights, None), (f"{weights}, draft", draft)):
            if name == weights or helper is not None:
                variants[name] = Writer(model, tokenizer, weights=weights, draft=helper).engine()
    seeds = itertools.count()

    def write(engine: Engine) -> None:
        for _ in engine.ids([[0]], BALANCED, max_tokens=options.tokens, stop_ids=(), seed=next(seeds) // len(variants)):
            pass

    took = in_turns({name: partial(write, engine) for name, engine in variants.items()}, options.rounds)
    print(f"{model.config.n_params() / 1e6:.1f}M parameters, {torch.get_num_threads()} threads\n")
    print(f"{'weights':<20}{'tokens/s':>10}{'ratio':>8}{'bits per byte':>16}")
    for name, seconds in took.items():
        print(f"{name:<20}{options.tokens / seconds:>10.0f}{took['fp32'] / seconds:>8.2f}{bpb[name[:4]]:>16.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="number of tokens to generate (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=16, help="length of the prompt in tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--run", help="measure this run instead, with its bits per byte")
    parser.add_argument("--draft", help="run that is used as the draft model of --run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run:
        bench_run(options)
        return
    model = GPT(TINYGPT, seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():  # without noise, the model would repeat a single token, which is a weak check
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    tokenizer = CharTokenizer("")
    prompt = torch.randint(1, 16_000, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    other = hugging_face(model)
    engines = {
        "Positron, fp32": Engine(model, tokenizer),
        "Positron, bf16 weights": Engine(model, tokenizer, dtype=torch.bfloat16),
        "Positron, int8 weights": Engine(model, tokenizer, dtype=torch.int8),
    }
    variants: dict[str, Callable[[int], list[int]]] = {
        "Hugging Face generate, fp32": lambda n: with_hugging_face(other, prompt, n),
        "no cache (nanoGPT), fp32": lambda n: without_cache(model, prompt, n),
        **{name: partial(with_engine, engine, prompt) for name, engine in engines.items()},
    }
    ids = with_hugging_face(other, prompt, options.tokens)
    same = [a == b for a, b in zip(ids, with_engine(engines["Positron, fp32"], prompt, options.tokens), strict=True)]
    print(f"tokens equal to Hugging Face's at temperature 0: {sum(same)} of {len(same)} ({len(set(ids))} distinct)")
    took = in_turns({name: partial(write, options.tokens) for name, write in variants.items()}, options.rounds)
    speed = {name: options.tokens / seconds for name, seconds in took.items()}
    reference = speed["Hugging Face generate, fp32"]
    floor = read_rate() / (4 * TINYGPT.matmul_params())
    print(f"{options.tokens} tokens after a prompt of {options.prompt}, {torch.get_num_threads()} threads\n")
    print(f"{'':<30}{'tokens/s':>10}{'ratio':>8}{'of the limit':>14}")
    for name, rate in speed.items():
        share = rate / (floor * (4 if "int8" in name else 2 if "bf16" in name else 1))
        print(f"{name:<30}{rate:>10.0f}{rate / reference:>8.2f}{share:>14.0%}")
    print(f"{'limit: reading all weights':<30}{floor:>10.0f}{floor / reference:>8.2f}")


if __name__ == "__main__":
    main()
