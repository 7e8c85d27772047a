"""Fine-tunes one shared encoder on several NLP tasks at once and leaves one ordinary Hugging Face model per task.

On the CPU, on one GPU, on all GPUs of a machine:

    accelerate launch --config_file accelerate_configs/cpu.yaml run_multitask.py --config configs/quickstart.yaml
    accelerate launch --config_file accelerate_configs/single_gpu.yaml run_multitask.py --config configs/glue_csqa.yaml
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml run_multitask.py --config configs/glue_csqa.yaml

Every key of the configuration is an option: --training.learning_rate 2e-5 --tasks.rte.weight 2

What has been trained is evaluated again, asked, and exported again:

    python run_multitask.py --mode evaluate --checkpoint runs/quickstart
    python run_multitask.py --mode predict --checkpoint runs/quickstart --input rows.jsonl --output predictions.jsonl
    python run_multitask.py --mode export --checkpoint runs/quickstart
"""

import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, is_torch_xla_available, send_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm

from multitask.adapters import add_adapters
from multitask.batches import StepDataset
from multitask.building import build_model, load_tokenizer
from multitask.checkpoint import read_state, save_checkpoint
from multitask.command import Command, read_command
from multitask.config import to_yaml
from multitask.data import load_tasks
from multitask.errors import UserError
from multitask.evaluation import average, evaluate_tasks, predict
from multitask.export import export_tasks
from multitask.hub import find_encoder
from multitask.mixture import Mixture, key_of, sampling_shares
from multitask.model import checkpoint_gradients
from multitask.model_card import model_cards
from multitask.modes import evaluate, export, predict_rows
from multitask.optim import build_optimizer, learning_rate_schedule
from multitask.run_folder import append_metrics, check_run_folder, open_run_folder, write_results
from multitask.summary import oddities, parameters_table, results_table, tasks_table
from multitask.tasks import example_losses
from multitask.tracking import LogWindow, evaluation_values


def train(command: Command, accelerator: Accelerator) -> None:
    config, training = command.config, command.config.training
    folder = Path(training.output_dir)
    check_run_folder(folder, config)
    if training.batch_size < accelerator.num_processes:
        raise UserError(
            f"training.batch_size: {training.batch_size} examples a step cannot be shared by "
            f"{accelerator.num_processes} processes"
        )

    # -- data: every task's rows, tokenised once; the other processes read what the first one cached ------------------

    encoder = find_encoder(config.model.encoder, config.model_root)
    tokenizer = load_tokenizer(encoder, config.model.max_length)
    tasks = load_tasks(
        config.tasks, tokenizer, config.model.max_length, config.data_root, config.num_proc, accelerator
    )

    # -- mixture: which rows make up step s, a function of s alone ----------------------------------------------------

    splits = {task.name: task.train for task in tasks}
    sizes = {name: len(split) for name, split in splits.items()}
    lengths = {name: split.length for name, split in splits.items()}
    shares = sampling_shares(config.mixture.sampling, sizes, config.mixture.temperature, config.mixture.weights)
    mixture = Mixture(sizes, shares, training.batch_size, training.seed, lengths)
    max_steps = training.max_steps or math.ceil(training.num_train_epochs * sum(sizes.values()) / training.batch_size)

    # -- model --------------------------------------------------------------------------------------------------------

    plain_model = build_model(encoder, tasks, config.model.dropout, training.seed)
    if config.model.freeze_encoder:
        plain_model.encoder.requires_grad_(False)
    if lora := config.adapters:
        start = {name: task.adapter for name, task in config.tasks.items() if task.adapter is not None}
        add_adapters(
            plain_model, lora.rank, lora.alpha, lora.dropout, lora.target_modules, lora.scope, start, training.seed
        )
    if training.gradient_checkpointing:
        checkpoint_gradients(plain_model)
    accelerator.print(tasks_table(tasks, shares, training.batch_size, max_steps), end="\n\n")
    accelerator.print(parameters_table(plain_model), end="\n\n")
    num_examples = {name: mixture.given(name, max_steps) for name in sizes}
    for note in oddities(tasks, num_examples, training.max_tokens_per_pass):
        accelerator.print(f"note: {note}")
    if command.dry_run:
        accelerator.print(f"\n{to_yaml(config)}")
        return
    mistakes = [None]  # the main process writes, and tells the others if it cannot
    if accelerator.is_main_process:
        try:
            open_run_folder(folder, config)
        except UserError as error:
            mistakes = [str(error)]
    if mistake := broadcast_object_list(mistakes)[0]:
        raise UserError(mistake)

    optimizer = build_optimizer(plain_model.to(accelerator.device), training.learning_rate, training.weight_decay)
    model, optimizer = accelerator.prepare(plain_model, optimizer)
    # Not prepared by Accelerate, which would step it once per process: it is a function of the step.
    learning_rate = learning_rate_schedule(
        training.lr_scheduler_type, training.learning_rate, training.warmup_ratio, max_steps
    )
    heads = {task.name: plain_model.head_parameters(task.name) for task in tasks}
    weights = torch.tensor([task.weight for task in tasks], device=accelerator.device)

    # -- batches, prepared in the background --------------------------------------------------------------------------

    steps = StepDataset(
        mixture,
        splits,
        tokenizer.pad_token_id,
        training.max_tokens_per_pass,
        num_devices=accelerator.num_processes,
        device=accelerator.process_index,
    )
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(max_steps),
        num_workers=training.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def logits_of(task, split):
        return predict(
            plain_model, task.name, split, accelerator, tokenizer.pad_token_id, training.max_tokens_per_pass
        )

    def evaluate_now(step: int) -> dict:
        progress.set_description("evaluating")
        model.eval()
        results = evaluate_tasks(tasks, logits_of)
        model.train()
        progress.set_description("training")
        if accelerator.is_main_process:
            append_metrics(folder, step, evaluation_values(results))
            write_results(folder / "metrics.json", step, results, average(results))
        return results

    # -- the loop: batch -> losses -> backward -> update -> log / evaluate --------------------------------------------

    model.train()
    window = LogWindow()
    progress = tqdm(
        total=max_steps,
        desc="training",
        unit="step",
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    started = time.perf_counter()
    for step, batch in enumerate(loader, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1)

        # The loss is a sum over examples divided by the batch size, so how they are spread over passes and devices
        # makes no difference. Gradients are exchanged in the last pass, where they are averaged over the processes.
        task_losses = torch.zeros(len(tasks), device=accelerator.device)
        for index, part in enumerate(batch.passes):
            torch.manual_seed(key_of(training.seed, step, accelerator.process_index, index))
            part = send_to_device(part, accelerator.device, non_blocking=True)
            is_last = index == len(batch.passes) - 1
            with nullcontext() if is_last else accelerator.no_sync(model):
                logits = model({name: of_task["inputs"] for name, of_task in part.items()})
                sums = torch.stack(
                    [example_losses(task.type, logits[task.name], part[task.name]["labels"]).sum() for task in tasks]
                )
                loss = (weights * sums).sum() / training.batch_size
                accelerator.backward(loss * accelerator.num_processes)
            task_losses += sums.detach()

        of_task = dict(zip(sizes, accelerator.reduce(task_losses).tolist(), strict=True))
        for task in tasks:
            if not math.isfinite(task.weight * of_task[task.name]):
                raise FloatingPointError(
                    f"step {step}: the loss of task {task.name} is {of_task[task.name]}; this step was not applied. "
                    f"A lower training.learning_rate (it stood at {learning_rate(step - 1):.3g}) often helps"
                )
        for name, parameters in heads.items():
            if not batch.examples[name]:  # no gradient at all, so that weight decay and momentum leave it alone
                for parameter in parameters:
                    parameter.grad = None
        grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm or math.inf))
        if not math.isfinite(grad_norm) and accelerator.scaler is None:  # fp16's scaler skips such a step by itself
            raise FloatingPointError(f"step {step}: the gradient is {grad_norm}; this step was not applied")
        optimizer.step()
        optimizer.zero_grad()

        step_loss = sum(task.weight * of_task[task.name] for task in tasks) / training.batch_size
        window.add(batch, step_loss, of_task, time.perf_counter() - started)
        progress.update()
        if step % training.logging_steps == 0 or step == max_steps:
            values = window.values() | {
                "train/learning_rate": learning_rate(step),
                "train/grad_norm": grad_norm,
                **{f"train/{name}/examples": mixture.given(name, step) for name in sizes},
            }
            progress.set_postfix_str(
                f"loss {values['train/loss']:.4f}, lr {values['train/learning_rate']:.2e}, "
                f"{values['train/tokens_per_second']:,.0f} tokens/s",
                refresh=False,  # shown with the next step; a log file is spared a line
            )
            if accelerator.is_main_process:
                append_metrics(folder, step, values)
            window = LogWindow()
        if step == max_steps or (training.eval_steps and step % training.eval_steps == 0):
            results = evaluate_now(step)
        started = time.perf_counter()
    progress.close()

    # -- what remains: a table, and one ordinary model per task -------------------------------------------------------

    accelerator.print(f"\n{results_table(results, tasks)}")
    if accelerator.is_main_process:
        state = {
            "step": max_steps,
            "command": command.line,
            "labels": {task.name: task.labels for task in tasks},
            "rows": {task.name: task.num_rows() for task in tasks},
            "results": results,
        }
        checkpoint = folder / "checkpoints" / f"step-{max_steps:08}"
        save_checkpoint(checkpoint, plain_model, tokenizer, to_yaml(config), state)
        cards = model_cards(tasks, config.tasks, config.model.encoder, read_state(checkpoint))
        export_tasks(plain_model, tokenizer, folder / "export", config.model.encoder, not lora or lora.merge, cards)
        print(f"\nOne model per task in {folder / 'export'}; the numbers in {folder / 'metrics.json'}")


MODES = {"train": train, "evaluate": evaluate, "predict": predict_rows, "export": export}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    try:
        command = read_command(arguments, __doc__.split("\n\n")[0])
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs of an error is in our own line
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        # Without `cpu`, Accelerate would take several processes on CPUs for as many runs of one process each.
        no_accelerator = not torch.accelerator.is_available() and not is_torch_xla_available()
        accelerator = Accelerator(cpu=no_accelerator)
        MODES[command.mode](command, accelerator)
        accelerator.end_training()
    except UserError as error:
        if "--debug" in arguments:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        else:  # all processes find the same mistake, and the launcher ends all with the first: let rank 0 speak
            time.sleep(5)
        sys.exit(2)
