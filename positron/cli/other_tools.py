"""Translate option names of other training tools: nanoGPT, nanochat, litgpt, the transformers Trainer, trl, verl, OpenRLHF.

This module needs only the standard library.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from positron.config import OptimizerConfig
from positron.settings import is_possible
from positron.system.commands import command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from positron.settings import Recipe

# The names that other tools give to each key. They are compared without dashes and underscores. A name without a dot also
# stands for every name that ends in a dot and this name.
_OTHER_NAMES = {
    "train.max_steps": "max_iters max_iter maxiters iters num_iterations num_iters steps num_steps total_steps n_steps "
    "train_steps max_train_steps num_train_steps",
    "sft.epochs": "epochs num_epochs num_train_epochs n_epochs epoch",
    "optimizer.lr": "lr learning_rate max_lr base_lr peak_lr learningrate matrix_lr",
    "schedule.final_ratio": "min_lr final_lr_frac final_lr min_learning_rate lr_min lr_decay_ratio",
    "schedule.average_share": "ema ema_decay use_ema ema_weights swa swa_lrs weight_averaging",
    "schedule.warmup_steps": "warmup warmup_iters lr_warmup_steps warmup_ratio num_warmup_steps lr_warmup_fraction",
    "schedule": "lr_scheduler lr_scheduler_type decay_lr lr_schedule scheduler lr_decay_iters lr_decay_style",
    "train.batch_tokens": "batch_size total_batch_size global_batch_size train_batch_size bs batchsize "
    "gradient_accumulation_steps grad_accum accumulate_grad_batches gradient_accumulation_iters "
    "accum_steps",
    "train.micro_batch_size": "device_batch_size per_device_train_batch_size per_device_batch_size mbs microbatch_size "
    "micro_batch per_device_eval_batch_size",
    "train.grad_clip": "max_grad_norm clip_grad gradient_clip_val grad_clip_norm max_norm gradient_clip clip",
    "train.val_every": "eval.interval eval_interval eval_steps eval_every val_check_interval eval_freq val_interval",
    "train.val_tokens": "eval.max_iters eval_iters eval_tokens eval_max_iters limit_val_batches",
    "train.log_every": "log_interval logging_steps log_every_n_steps log_freq print_every",
    "train.save_every": "save_steps save_interval checkpoint_every ckpt_interval always_save_checkpoint",
    "train.keep_last": "save_total_limit",
    "train.sample_every": "sample_interval generate_every",
    "train.max_time": "time_limit max_minutes max_hours",
    "budget": "time_budget target_time",
    "model.n_layer": "num_layers n_layers layers depth num_hidden_layers nlayer",
    "model.n_head": "num_heads n_heads heads num_attention_heads nhead nheads",
    "model.n_kv_head": "num_key_value_heads n_query_groups kv_heads n_kv_heads",
    "model.d_model": "n_embd embd hidden_size dim d_embed embed_dim width model_dim hidden_dim emb_dim dmodel",
    "model.d_ff": "intermediate_size ffn_dim mlp_hidden_size ff_dim",
    "model.context_length": "block_size seq_len max_seq_len max_seq_length sequence_length context context_size "
    "max_position_embeddings n_ctx ctx_len max_length seqlen",
    "model.window": "sliding_window window_size window_pattern",
    "model.tie_embeddings": "tie_word_embeddings tie_weights weight_tying",
    "model.dropout": "resid_pdrop attn_pdrop hidden_dropout_prob attention_dropout dropout_rate",
    "optimizer.weight_decay": "wd weightdecay",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "adam_epsilon epsilon adam_eps",
    "optimizer": "optim optimiser opt",
    "precision": "dtype fp16 bf16 amp mixed_precision fp32",
    "device.accelerator": "accelerator",
    "device": "no_cuda use_cpu cuda gpu gpus cpu",
    "device.devices": "num_devices n_gpus nproc_per_node ngpu num_gpus",
    "device.num_nodes": "nnodes nodes",
    "device.compile": "torch_compile compile_model",
    "device.checkpoint_activations": "gradient_checkpointing activation_checkpointing grad_checkpointing",
    "model": "model_name model_name_or_path arch architecture model_type base_model",
    "data": "dataset dataset_name data_module",
    "data.path": "data_path data_dir train_data_dir train_file input text_file train_data corpus input_file data_file "
    "file",
    "data.val_fraction": "val_split val_split_fraction validation_split_percentage test_split",
    "tokenizer": "tokenizer_name tokenizer_dir",
    "tokenizer.vocab_size": "vocabulary_size n_vocab",
    "name": "out_dir output_dir run_name run out exp_name experiment_name outdir run_id",
    "seed": "random_seed manual_seed rng_seed data_seed",
    "init_from": "resume_from pretrained finetune_from checkpoint_dir pretrained_model",
    "ckpt_path": "resume_from_checkpoint load_checkpoint ckpt checkpoint",
    "logger": "wandb wandb_log report_to logger_name use_wandb tensorboard log_to",
    "logger.wandb.project": "wandb_project wandb_project_name",
    "logger.wandb.name": "wandb_run_name wandb_name",
    "experiment": "config config_file conf recipe cfg_file",
    "sft.lora.rank": "lora_r lora_rank r use_peft lora",
    "sft.patience": "early_stopping early_stopping_patience early_stop",
    "sft.packing": "pack",
}
# Names that only one command has, or that have another meaning there.
_BASE_NAMES = {"init_from": "model model_name model_name_or_path base_model model_path"}
_OTHER_NAMES_OF: dict[Recipe, dict[str, str]] = {
    "train": {},
    "sft": _BASE_NAMES,
    "prefer": {
        **_BASE_NAMES,
        "preference.loss": "loss_type",
        "preference.beta": "beta dpo_beta tau",
        "preference.label_smoothing": "label_smoothing",
        "preference.gamma": "simpo_gamma gamma_beta_ratio",
        "preference.weight": "orpo_alpha",
        "preference.epochs": _OTHER_NAMES["sft.epochs"],
        "preference.lora.rank": _OTHER_NAMES["sft.lora.rank"],
    },
    "reinforce": {
        **_BASE_NAMES,
        "reinforce.prompts": "train_batch_size rollout_batch_size examples_per_step prompts_per_step batch_size",
        "reinforce.samples": "num_generations group_size rloo_k n_samples_per_prompt num_samples rollout_n n",
        "reinforce.max_tokens": "max_completion_length max_new_tokens response_length max_response_length generate_max_len "
        "max_tokens",
        "reinforce.temperature": "temperature sampling_temperature",
        "reinforce.kl": "beta kl_coef init_kl_coef kl_loss_coef kl_beta kl_penalty_coef kl_weight",
        "reinforce.advantage": "advantage_estimator adv_estimator loss_type scale_rewards",
        "reinforce.mask_truncated": "mask_truncated_completions overlong_filtering",
        "reinforce.max_ratio": "vllm_importance_sampling_cap tis_imp_ratio_cap truncated_importance_sampling_cap",
        "reinforce.lora.rank": _OTHER_NAMES["sft.lora.rank"],
        "reward": "reward_funcs reward_func reward_fn reward_model reward_function rewards",
        "reward.function": "custom_reward_function",
        "reward.terms": "reward_weights",
    },
    "distill": {
        "distill.teachers": "teacher teacher_model teacher_model_name_or_path teacher_path teacher_checkpoint",
        "distill.alpha": "alpha alpha_kd kd_alpha kd_ratio kd_weight distillation_weight",
        "distill.temperature": "temperature kd_temperature distillation_temperature",
    },
}


# Reasons why an option needs no setting here, and the names that other tools give to such options.
_WITHOUT_COUNTERPART = {
    "every command uses the checkpoint with the lowest validation loss": "load_best_model_at_end metric_for_best_model",
    "the factor of the LoRA matrices is 2 for every rank": "lora_alpha",
    "LoRA has no dropout here": "lora_dropout",
    "LoRA is added to all matrices of the blocks": "target_modules lora_target_modules lora_targets",
    f"{command('evaluate', '--run', 'NAME')} evaluates a run": "eval_only",
}
_WITHOUT_COUNTERPART_OF: dict[Recipe, dict[str, str]] = {
    "train": {},
    "sft": {},
    "prefer": {
        "the log-probabilities of the reference are always computed once and stored": "precompute_ref_log_probs ref_model",
    },
    "reinforce": {
        "each batch of answers is used for one optimizer step, so that no ratio of probabilities is clipped": "epsilon "
        "epsilon_high num_iterations num_ppo_epochs ppo_epochs clip_ratio clip_range cliprange eps_clip",
        "answers are sampled from all tokens": "top_p top_k min_p",
    },
    "distill": {},
}


def _by_name(names_of: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", ""): key for key, names in names_of.items() for name in names.split()}


_KEY_OF = _by_name(_OTHER_NAMES)
_KEY_OF_RECIPE = {recipe: _by_name(names_of) for recipe, names_of in _OTHER_NAMES_OF.items()}
_REASON_OF = _by_name(_WITHOUT_COUNTERPART)
_REASON_OF_RECIPE = {recipe: _by_name(names_of) for recipe, names_of in _WITHOUT_COUNTERPART_OF.items()}

# Notes on keys whose value has another meaning or form than in the other tools.
_NOTES = {
    "train.batch_tokens": "tokens per optimizer step: the batch size times the context length",
    "schedule.final_ratio": "the last learning rate as a multiple of the peak, optimizer.lr",
    "schedule.average_share": "the time constant of a mean of the weights, as a share of the steps",
    "train.val_tokens": "the number of tokens used for validation",
    "sft.epochs": f"read by {command('sft')} only; for pretraining, give the number of optimizer steps as train.max_steps=",
    "optimizer.betas": "both numbers as a list, such as [0.9,0.95]",
    "precision": "bf16, fp16, fp32 or auto",
    "device": "auto, cpu, cuda or mps",
    "optimizer": "adamw, muon or muon_embeddings",
    "schedule": "cosine, linear, constant or trapezoid",
    "experiment": "a recipe by its name, such as experiment=quickstart",
    "logger": "files, wandb or tensorboard",
    "name": "the run is the folder outputs/NAME",
    "data.path": "together with data=text",
    "schedule.warmup_steps": "in optimizer steps",
    "data": "data=text data.path=FILE for text of your own",
    "sft.lora.rank": f"read by {command('sft')}",
    "sft.patience": f"read by {command('sft')}; pretraining runs all its steps and keeps its best checkpoint",
    "sft.packing": f"read by {command('sft')}",
    "preference.loss": f"read by {command('prefer')}: dpo, ipo, simpo or orpo",
    "preference.beta": f"read by {command('prefer')}",
    "preference.label_smoothing": f"read by {command('prefer')}",
    "preference.gamma": f"read by {command('prefer')}",
    "preference.weight": f"read by {command('prefer')}",
    "preference.epochs": f"read by {command('prefer')}",
    "preference.lora.rank": f"read by {command('prefer')}",
    "reinforce.prompts": "prompts per optimizer step, each with reinforce.samples= answers",
    "reinforce.samples": f"read by {command('reinforce')}: answers to each prompt",
    "reinforce.max_tokens": f"read by {command('reinforce')}",
    "reinforce.kl": f"read by {command('reinforce')}: weight of the exact KL divergence",
    "reinforce.advantage": "rloo or dr_grpo; neither divides by the standard deviation of the rewards",
    "reinforce.mask_truncated": "true or false",
    "reinforce.max_ratio": f"read by {command('reinforce')}",
    "reinforce.lora.rank": f"read by {command('reinforce')}",
    "distill.teachers": f"read by {command('distill')}: one run, or several as teachers=RUN,RUN",
    "distill.alpha": f"read by {command('distill')}: weight of the teachers; the text has the weight 1 - alpha",
    "distill.temperature": f"read by {command('distill')}; the divergence is multiplied by the square of the temperature",
    "reward": "reward=custom reward.function=my_module.my_reward for a function of your own",
    "reward.function": "my_module.my_reward, together with reward=custom",
    "reward.terms": "together with reward=sum",
    "init_from": "the run that is trained further",
    "resume": "give the same command again to continue a run; resume=must refuses to start a new one",
    "device.compile": "true or false",
    "device.checkpoint_activations": "true or false",
}
_KEYS_WITH_SAME_VALUE = {  # keys whose value can be taken over as it is
    "train.max_steps",
    "optimizer.lr",
    "train.grad_clip",
    "train.val_every",
    "train.log_every",
    "train.save_every",
    "train.keep_last",
    "model.n_layer",
    "model.n_head",
    "model.n_kv_head",
    "model.d_model",
    "model.d_ff",
    "model.context_length",
    "optimizer.weight_decay",
    "optimizer.eps",
    "seed",
    "train.micro_batch_size",
    "tokenizer.vocab_size",
    "model.dropout",
    "device.devices",
    "train.sample_every",
    "preference.beta",
    "preference.label_smoothing",
    "reinforce.samples",
    "reinforce.max_tokens",
    "reinforce.temperature",
    "reinforce.kl",
    "reinforce.mask_truncated",
    "reinforce.max_ratio",
}


def same_option(name: str, recipe: Recipe) -> str | None:
    """Return Positron's key for an option that another tool calls `name`, or None if no tool has such an option.

    If the name has several meanings, the meaning for the command `recipe` is preferred.
    """
    others = (keys for other, keys in _KEY_OF_RECIPE.items() if other != recipe)
    return _found(name, (_KEY_OF_RECIPE[recipe], _KEY_OF, *others))


def why_not_needed(name: str, recipe: Recipe) -> str | None:
    """Return the reason why `recipe` needs no setting for an option of another tool, or None if there is no such option."""
    return _found(name, (_REASON_OF_RECIPE[recipe], _REASON_OF))


def _found(name: str, tables: Iterable[dict[str, str]]) -> str | None:
    """Return the entry for the name of an option in the first table that has one: for the whole name, or for its last word."""
    whole = name.strip("-").replace("-", "").replace("_", "").lower()
    words = (whole, whole.rpartition(".")[2])
    return next((table[word] for table in tables for word in words if word in table), None)


def how_to_choose(file: Path) -> str:
    """Say how the user chooses the settings in a YAML file of their own as an experiment."""
    if file.parent.name == "experiment":
        return f"a file of your own is chosen by --config-dir {file.parent.parent} experiment={file.stem}"
    place = file.parent / "experiment" / file.name
    return f"move it to {place}, and add --config-dir {file.parent} experiment={file.stem}"


def with_other_beta(name: str, value: str | None) -> str | None:
    """Return the setting for an option beta1 or beta2 of another tool, such as `optimizer.betas=[0.9,0.99]`.

    The other of the two numbers keeps its default. Returns None for another option, and if the value is not a number.
    """
    place = {"beta1": 0, "beta2": 1}.get(name.rpartition(".")[2].removeprefix("adam_"))
    if place is None or value is None or not re.fullmatch(r"[\d.]+", value):
        return None
    betas = list(map(str, OptimizerConfig().betas))
    betas[place] = value
    return f"optimizer.betas=[{','.join(betas)}]"


def advice(key: str, value: str | None) -> str:
    """Return the setting that the user should type instead of an option of another training tool.

    `key` is Positron's key for the option, and `value` is the value that the user gave to the option (None: no value). The
    result is `key=value` if the value has the same meaning in Positron. Otherwise, it is `key=`, with a note about the key if
    there is one.
    """
    if value and key in _KEYS_WITH_SAME_VALUE and is_possible(key, value):
        return f"{key}={value}"
    note = _NOTES.get(key)
    return f"{key}=" + (f" ({note})" if note else "")


def question(key: str, value: str | None, spelling: Callable[[str], str] = str) -> str:
    """Return a question that suggests a setting in place of an option of another training tool.

    An example is `did you mean seed? (seed=1)`. `key` is Positron's key for the option, and `value` is the value that the user
    gave to the option (None: no value). The setting stands in parentheses if its value has the same meaning in Positron.
    Otherwise, a note about the key stands there, if there is one.

    `spelling` converts a key to the form in which the user gives it, such as an argument of a Python function. It is used only
    if no setting stands in parentheses.
    """
    if value and key in _KEYS_WITH_SAME_VALUE and is_possible(key, value):
        return f"did you mean {key}? ({key}={value})"
    note = _NOTES.get(key)
    return f"did you mean {spelling(key)}?" + (f" ({note})" if note else "")
