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

import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from multitask.adapters import add_adapters
from multitask.batches import StepDataset
from multitask.building import build_model, load_tokenizer
from multitask.checkpoint import checkpoints_in, load_checkpoint, read_state, save_checkpoint, take_part_in_saving
from multitask.command import Command, read_command
from multitask.config import to_yaml
from multitask.data import load_tasks
from multitask.errors import UserError
from multitask.evaluation import average, evaluate_tasks, predict
from multitask.export import export_run
from multitask.gcs import check_access
from multitask.hub import find_encoder
from multitask.mixture import Mixture, key_of, sampling_shares
from multitask.model import checkpoint_gradients
from multitask.modes import OTHER_MODES
from multitask.optim import build_optimizer, check_losses, learning_rate_schedule
from multitask.processes import check_share, from_main_process, start_accelerator
from multitask.resume import fetch_missing, find_resumable, prune, restore, step_name
from multitask.run_folder import NUMBERS, append_metrics, check_run_folder, open_run_folder, write_results
from multitask.signals import Stopped, caught_signals, leave_signals_to_parent
from multitask.static_shapes import begin_pass, end_graph, uses_static_shapes
from multitask.summary import oddities, parameters_table, results_table, tasks_table
from multitask.tasks import example_losses
from multitask.terminal import progress_bar, quiet_libraries, show
from multitask.tracking import LogWindow, evaluation_values
from multitask.uploads import Uploader, finish_uploads


def train(command: Command, accelerator: Accelerator, stop_signal: Callable[[], int] = lambda: 0) -> int:
    """Trains, evaluates, saves and exports; returns the exit status. `stop_signal` gives the number of one, or 0."""
    config, training = command.config, command.config.training
    folder = Path(training.output_dir)
    log = partial(append_metrics, folder)
    check_run_folder(folder, config)
    check_share(training.batch_size, accelerator.num_processes)

    # -- data: every task's rows, tokenised once; the other processes read what the first one cached ------------------

    encoder = find_encoder(config.model.encoder, config.model_root)
    tokenizer = load_tokenizer(encoder, config.model.max_length)
    max_length, pad = config.model.max_length, tokenizer.pad_token_id
    tasks = load_tasks(config.tasks, tokenizer, max_length, config.data_root, config.num_proc, accelerator)

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
    static = uses_static_shapes(training.static_shapes, accelerator)
    for note in oddities(tasks, num_examples, training.max_tokens_per_pass, static):
        accelerator.print(f"note: {note}")
    if command.dry_run:
        accelerator.print(f"\n{to_yaml(config)}")
        return 0
    num_rows = {task.name: task.num_rows() for task in tasks}
    remote = config.checkpoints.remote

    def open_run() -> Path | None:
        if remote:
            check_access(remote)
        choice = training.resume_from_checkpoint
        found = find_resumable(folder, choice, remote, config, num_rows, accelerator.print)
        open_run_folder(folder, config, found)
        return found

    checkpoint = from_main_process(accelerator, open_run)
    if checkpoint and accelerator.is_local_main_process:
        fetch_missing(checkpoint, remote)
    accelerator.wait_for_everyone()

    plain_model.to(accelerator.device)
    plain_optimizer = build_optimizer(plain_model, training.learning_rate, training.weight_decay)
    model, optimizer = accelerator.prepare(plain_model, plain_optimizer)
    state = restore(checkpoint, plain_model, plain_optimizer) if checkpoint else {"step": 0}
    if state.get("scaler"):
        accelerator.scaler.load_state_dict(state["scaler"])
    # Not prepared by Accelerate, which would step it once per process: it is a function of the step.
    learning_rate = learning_rate_schedule(
        training.lr_scheduler_type, training.learning_rate, training.warmup_ratio, max_steps
    )
    heads = {task.name: plain_model.head_parameters(task.name) for task in tasks}
    weights = torch.tensor([task.weight for task in tasks], device=accelerator.device)

    # -- batches, prepared in the background --------------------------------------------------------------------------

    share = {"num_devices": accelerator.num_processes, "device": accelerator.process_index}
    steps = StepDataset(mixture, splits, pad, training.max_tokens_per_pass, **share, static_shapes=static)
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(state["step"], max_steps),
        num_workers=training.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def is_due(step: int, every: int | None) -> bool:
        return step == max_steps or bool(every and step % every == 0)

    def ends_now() -> bool:
        """Whether any process has been sent a signal; all agree."""
        return bool(accelerator.reduce(torch.tensor(stop_signal(), device=accelerator.device)))

    def logits_of(task, split):
        if ends_now():
            raise Stopped
        return predict(plain_model, task.name, split, accelerator, pad, training.max_tokens_per_pass, static)

    def evaluate_now(step: int) -> dict | None:
        progress.set_description("evaluating")
        model.eval()
        try:
            results = evaluate_tasks(tasks, logits_of)
        except Stopped:  # after going on, this evaluation comes first
            return None
        model.train()
        progress.set_description("training")
        if accelerator.is_main_process:
            log(step, evaluation_values(results))
            write_results(folder / "metrics.json", step, results, average(results))
        return results

    def save(step: int, results: dict | None) -> None:
        if not accelerator.is_main_process:
            return take_part_in_saving(plain_model, plain_optimizer)
        started = time.perf_counter()
        if results and average(results) > best["average"]:
            best.update(step=step, average=average(results))
        state = {
            "step": step,
            "command": command.line,
            "labels": {task.name: task.labels for task in tasks},
            "rows": num_rows,
            "results": results,
            "best": best,
            "window": dataclasses.asdict(window),
            "scaler": accelerator.scaler and accelerator.scaler.state_dict(),
        }
        numbers = [folder / name for name in NUMBERS if (folder / name).exists()]
        path = folder / "checkpoints" / step_name(step)
        save_checkpoint(path, plain_model, plain_optimizer, tokenizer, to_yaml(config), state, numbers)
        log(step, {"checkpoint/seconds": time.perf_counter() - started})
        if uploads:
            uploads.submit(path)
            uploads.report(log)
        prune(folder, training.save_total_limit, best["step"], uploads.busy() if uploads else set())

    def end_at_signal(step: int) -> int:
        progress.close()
        accelerator.print(f"stopped by a signal; step {step} of {max_steps} is saved in {folder / 'checkpoints'}")
        if uploads and not finish_uploads(uploads, remote, [], accelerator.print, log):
            return 1
        return 128 + (stop_signal() or signal.SIGTERM)

    # -- the loop: batch -> losses -> backward -> update -> log / evaluate --------------------------------------------

    model.train()
    window = LogWindow(**state.get("window", {}))
    progress = progress_bar(max_steps, state["step"], is_shown=accelerator.is_main_process)
    best = state.get("best", {"step": None, "average": -math.inf})
    uploads = None
    if remote and accelerator.is_main_process:
        kept = training.save_total_limit or 0  # -0 is the whole list
        uploads = Uploader(remote, lambda steps: {*steps[-kept:], best["step"]}, progress.write)
    results = state.get("results")
    if state["step"] and results is None and is_due(state["step"], training.eval_steps):
        if (results := evaluate_now(state["step"])) is None:
            return end_at_signal(state["step"])
        save(state["step"], results)
    started = time.perf_counter()
    for step, batch in enumerate(loader, start=state["step"] + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1)

        # The loss is a sum over examples divided by the batch size, so how they are spread over passes and devices
        # makes no difference. Gradients are exchanged in the last pass, where they are averaged over the processes.
        task_losses = torch.zeros(len(tasks), device=accelerator.device)
        for index, part in enumerate(batch.passes):
            begin_pass(key_of(training.seed, step, accelerator.process_index, index))
            part = send_to_device(part, accelerator.device, non_blocking=True)
            is_last = index == len(batch.passes) - 1
            with nullcontext() if is_last else accelerator.no_sync(model):
                logits = model({name: of_task["inputs"] for name, of_task in part.items()})
                sums = torch.stack([example_losses(t.type, logits[t.name], part[t.name]).sum() for t in tasks])
                loss = (weights * sums).sum() / training.batch_size
                accelerator.backward(loss * accelerator.num_processes)
            task_losses += sums.detach()
        end_graph()

        # What all processes must know travels together: the losses, and whether one has been sent a signal.
        *losses, ends = accelerator.reduce(torch.cat([task_losses, task_losses.new_tensor([stop_signal()])])).tolist()
        of_task = dict(zip(sizes, losses, strict=True))
        check_losses(step, {task.name: task.weight * of_task[task.name] for task in tasks}, learning_rate(step - 1))
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
            show(progress, values)
            if accelerator.is_main_process:
                log(step, values)
            window = LogWindow()
        results = None
        if is_due(step, training.eval_steps) and not ends:
            results = evaluate_now(step)
            ends = results is None
        if ends or is_due(step, training.save_steps):
            save(step, results)
        if ends:
            return end_at_signal(step)
        started = time.perf_counter()
    progress.close()

    # -- what remains: a table, and one ordinary model per task -------------------------------------------------------

    accelerator.print(f"\n{results_table(results, tasks)}")
    if accelerator.is_main_process:
        newest = checkpoints_in(folder)[0]
        known, (trained, *_) = read_state(newest), load_checkpoint(newest, config)
        export_run(trained, tasks, tokenizer, config, known, folder / "export", not lora or lora.merge)
        print(f"\nOne model per task in {folder / 'export'}; the numbers in {folder / 'metrics.json'}")
    return 0 if not uploads or finish_uploads(uploads, remote, [folder / "export"], print, log) else 1


def main() -> None:
    """Called by this name in each process on a TPU."""
    arguments = sys.argv[1:]
    try:
        command = read_command(arguments, __doc__.split("\n\n")[0])
        quiet_libraries()
        accelerator = start_accelerator()
        if command.mode == "train":
            with caught_signals() as stop_signal:
                status = train(command, accelerator, stop_signal)
        else:
            OTHER_MODES[command.mode](command, accelerator)
            status = 0
        accelerator.end_training()
        sys.exit(status)
    except UserError as error:
        if "--debug" in arguments:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        else:  # all processes find the same mistake, and the launcher ends all with the first: let rank 0 speak
            time.sleep(5)
        sys.exit(2)


if __name__ == "__main__":
    main()
