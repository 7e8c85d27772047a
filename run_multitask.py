"""Fine-tunes one shared encoder on several NLP tasks at once and leaves one ordinary Hugging Face model per task.

On the CPU, on one GPU, on all GPUs of a machine:

    accelerate launch --config_file accelerate_configs/cpu.yaml run_multitask.py --config configs/quickstart.yaml
    accelerate launch --config_file accelerate_configs/single_gpu.yaml run_multitask.py --config configs/glue_csqa.yaml
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml run_multitask.py --config configs/glue_csqa.yaml

Every key of the configuration is an option: --training.learning_rate 2e-5 --tasks.rte.weight 2"""

import dataclasses
import math
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

from multitask.checkpoints.format import (
    Snapshot,
    load_checkpoint,
    take_part_in_saving,
    take_snapshot,
    write_checkpoint,
)
from multitask.checkpoints.manager import Background, choose_export, find_best, open_run, prune, restore, steps_to_keep
from multitask.checkpoints.manifest import checkpoint_at
from multitask.checkpoints.uploads import Uploader, finish_uploads
from multitask.cli.arguments import Command, read_command
from multitask.cli.commands import OTHER_MODES
from multitask.cli.console import plan, quiet_libraries, results_table
from multitask.config.schema import to_yaml
from multitask.data.loader import StepDataset, StepLoader
from multitask.data.packing import Step, num_rows
from multitask.errors import mistakes_in_one_line
from multitask.evaluation.evaluate import evaluate_tasks, predict
from multitask.mixture.sampling import Sampling
from multitask.model.export import export_run
from multitask.model.lora import freeze_or_adapt
from multitask.model.multitask import checkpoint_gradients
from multitask.model.pretrained import build_model, find_encoder, load_tokenizer
from multitask.tasks.base import example_losses
from multitask.tasks.load import load_tasks
from multitask.tasks.metrics import average
from multitask.tracking.run_directory import NUMBERS, check_run_folder
from multitask.tracking.run_logger import Recorder, progress_bar, show
from multitask.tracking.window import LogWindow
from multitask.training.distributed import check_share, start_accelerator
from multitask.training.early_stopping import History, check_history
from multitask.training.gradient_similarity import Agreement
from multitask.training.loss_weighting import build_balancing
from multitask.training.optimizer import build_optimizer, check_losses, forget_gradients, lr_schedule
from multitask.training.signals import Stopped, caught_signals
from multitask.training.xla import begin_pass, end_graph, uses_static_shapes
from multitask.utils import stable_seed


def train(command: Command, accelerator: Accelerator, stop_signal: Callable[[], int] = lambda: 0) -> int:
    """Trains, evaluates, saves and exports; returns the exit status. `stop_signal` gives the number of one, or 0."""
    config, training = command.config, command.config.training
    folder = Path(training.output_dir)
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
    max_steps = training.max_steps or math.ceil(training.num_train_epochs * sum(sizes.values()) / training.batch_size)
    sampling = Sampling(sizes, training.batch_size, max_steps, **dataclasses.asdict(config.mixture))
    mixture = sampling.mixture(training.seed, lengths)
    patience = {name: task.patience for name, task in config.tasks.items() if task.patience}
    measured = {task.name: task.metrics for task in tasks if task.validation}
    check_history(training.metric_for_best_model, patience, training.load_best_model_at_end, measured)

    # -- model --------------------------------------------------------------------------------------------------------

    plain_model = build_model(encoder, tasks, config.model.dropout, training.seed)
    lora, start = config.adapters, {name: task.adapter for name, task in config.tasks.items() if task.adapter}
    freeze_or_adapt(plain_model, config.model.freeze_encoder, lora, start, training.seed)
    balancing = build_balancing(training.loss_balancing, plain_model, tasks, training.batch_size, accelerator.reduce)
    if training.gradient_checkpointing:
        checkpoint_gradients(plain_model)
    static = uses_static_shapes(training.static_shapes, accelerator)
    accelerator.print(plan(tasks, plain_model, mixture, max_steps, training.max_tokens_per_pass, static))
    if command.dry_run:
        accelerator.print(f"\n{to_yaml(config)}")
        return 0

    # -- the state: what a checkpoint holds, or a beginning -----------------------------------------------------------

    rows = {task.name: task.num_rows() for task in tasks}
    checkpoint = open_run(folder, config, rows, accelerator)
    plain_model.to(accelerator.device)
    own_rates = [(plain_model.head_parameters(n), t.learning_rate) for n, t in config.tasks.items() if t.learning_rate]
    plain_optimizer = build_optimizer(plain_model, training.learning_rate, training.weight_decay, own_rates)
    model, optimizer = accelerator.prepare(plain_model, plain_optimizer)
    state = restore(checkpoint, plain_model, plain_optimizer) if checkpoint else {"step": 0}
    history = History.of(training.metric_for_best_model, patience, state)
    if checkpoint and training.load_best_model_at_end and accelerator.is_main_process:
        find_best(history, checkpoint, folder, config, accelerator.print)
    recorder = Recorder(folder, config, mixture.shares(max_steps), state.get("run_id"), accelerator)
    if state.get("scaler"):
        accelerator.scaler.load_state_dict(state["scaler"])
    # Not prepared by Accelerate, which would step it once per process: it is a function of the step.
    learning_rate = lr_schedule(training.lr_scheduler_type, training.learning_rate, training.warmup_ratio, max_steps)
    heads = {task.name: plain_model.head_parameters(task.name) for task in tasks}
    balancing.load_state(state.get("balancing", {}))
    agreement = Agreement(plain_model, accelerator, training.agreement_steps, max_steps)

    # -- batches ------------------------------------------------------------------------------------------------------

    share = {"num_devices": accelerator.num_processes, "device": accelerator.process_index}
    mixture, last = sampling.mixture(training.seed, lengths, history.stopped), sampling.last_step(history.stopped)
    dataset = StepDataset(mixture, splits, pad, training.max_tokens_per_pass, **share, static_shapes=static)
    workers, device = training.dataloader_num_workers, accelerator.device.type
    steps = StepLoader(dataset, state["step"], last, workers, device)

    def pass_losses(step: int, batch: Step, index: int) -> dict[str, torch.Tensor]:
        """Each task's sum of losses over the examples of one pass of this process."""
        begin_pass(stable_seed(training.seed, step, accelerator.process_index, index))
        part = send_to_device(batch.passes[index], accelerator.device, non_blocking=True)
        most = None if static or agreement.is_due(step) else training.max_tokens_per_pass  # else tasks stay apart
        logits = model({name: of_task["inputs"] for name, of_task in part.items()}, most)
        return {t.name: example_losses(t.type, logits[t.name], part[t.name]).sum() for t in tasks}

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def is_due(step: int, every: int | None) -> bool:
        return step == steps.last or bool(every and step % every == 0)

    def ends_now() -> bool:
        """Whether any process has been sent a signal; all agree."""
        return bool(accelerator.reduce(torch.tensor(stop_signal(), device=accelerator.device)))

    def logits_of(task, split):
        if ends_now():
            raise Stopped
        logits = predict(plain_model, task.name, split, accelerator, pad, training.max_tokens_per_pass, static)
        recorder.look(task, logits, tokenizer)
        return logits

    def evaluate_now(step: int) -> dict | None:
        progress.set_description("evaluating")
        model.eval()
        try:
            results = evaluate_tasks(tasks, logits_of)
        except Stopped:  # after going on, this evaluation comes first
            return None
        model.train()
        progress.set_description("training")
        if step < steps.last and (newly := history.add(step, results)):
            steps.use(sampling.mixture(training.seed, lengths, history.stopped), sampling.last_step(history.stopped))
            accelerator.print(f"step {step}: stopped, as it does not improve any more: {', '.join(newly)}")
        recorder.evaluated(step, results)
        return results

    def save(step: int, results: dict | None) -> None:
        started = time.perf_counter()
        background.wait()  # for the checkpoint before, or its error
        history.saved(step, results)
        if not accelerator.is_main_process:
            return take_part_in_saving(plain_model, plain_optimizer)
        state = {
            "step": step,
            "run_id": recorder.run_id,
            "command": command.line,
            "labels": {task.name: task.labels for task in tasks},
            "rows": rows,
            "results": results,
            "average": average(results) if results else None,
            **history.state(),
            "balancing": balancing.state(),
            "window": dataclasses.asdict(window),
            "scaler": accelerator.scaler and accelerator.scaler.state_dict(),
        }
        numbers = [folder / name for name in NUMBERS if (folder / name).exists()]
        snapshot = take_snapshot(plain_model, plain_optimizer, tokenizer, to_yaml(config), state, numbers)
        background.start(partial(write, checkpoint_at(folder, step), snapshot))
        recorder.log(step, {"checkpoint/seconds": time.perf_counter() - started})  # that training waited
        if uploads:
            uploads.report(recorder.log)

    def write(path: Path, snapshot: Snapshot) -> None:
        write_checkpoint(path, snapshot)
        if uploads:
            uploads.submit(path)
        prune(folder, training.save_total_limit, history.best["step"], uploads.busy() if uploads else set())

    def end_at_signal(step: int) -> int:
        progress.close()
        background.wait()
        accelerator.print(f"stopped by a signal; step {step} of {max_steps} is saved in {folder / 'checkpoints'}")
        return when_copied(128 + (stop_signal() or signal.SIGTERM))

    def when_copied(status: int, *folders: Path) -> int:
        best = checkpoint_at(folder, history.best["step"])
        return status if not uploads or finish_uploads(uploads, folders, print, recorder.log, best) else 1

    # -- the loop: batch -> losses -> backward -> update -> log / evaluate --------------------------------------------

    model.train()
    window = LogWindow(**state.get("window", {}))
    progress = progress_bar(max_steps, state["step"], is_shown=accelerator.is_main_process)
    background, keep = Background(), partial(steps_to_keep, training.save_total_limit, history)
    remote = config.checkpoints.remote if accelerator.is_main_process else None
    uploads = Uploader(remote, keep, progress.write) if remote else None
    results = state.get("results")
    if state["step"] and results is None and is_due(state["step"], training.eval_steps):
        if (results := evaluate_now(state["step"])) is None:
            return end_at_signal(state["step"])
        save(state["step"], results)
    started = time.perf_counter()
    for step, batch in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1) * group["scale"]
        balancing.begin(batch.examples, len(batch.passes), partial(pass_losses, step, batch))

        # The loss is a sum over examples divided by the batch size, so how they are spread over passes and devices
        # makes no difference. Gradients are exchanged in the last pass, where they are averaged over the processes, or
        # after all of them where the tasks' agreement is measured.
        task_losses, before = torch.zeros(len(tasks), device=accelerator.device), plain_model.computed_tokens
        for index, part in enumerate(batch.passes):
            is_last = index == len(batch.passes) - 1
            with nullcontext() if is_last and not agreement.is_due(step) else accelerator.no_sync(model):
                sums = pass_losses(step, batch, index)
                terms = balancing.terms(sums, {name: num_rows(of_task) for name, of_task in part.items()})
                if agreement.is_due(step):
                    agreement.backward(terms)
                else:
                    accelerator.backward(sum(terms) * accelerator.num_processes)
            task_losses += torch.stack(list(sums.values())).detach()
        end_graph()

        # What all processes must know travels together: losses, tokens, and whether one has been sent a signal.
        numbers = task_losses.new_tensor([plain_model.computed_tokens - before, stop_signal()])
        *losses, computed, ends = accelerator.reduce(torch.cat([task_losses, numbers])).tolist()
        of_task = dict(zip(sizes, losses, strict=True))
        check_losses(step, {task.name: task.weight * of_task[task.name] for task in tasks}, learning_rate(step - 1))
        if agreement.is_due(step):
            recorder.log(step, agreement.finish(batch.examples))
        for name in (name for name, number in batch.examples.items() if not number):
            forget_gradients(heads[name])  # no gradient at all, so that weight decay and momentum leave it alone
        grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm or math.inf))
        if not math.isfinite(grad_norm) and accelerator.scaler is None:  # fp16's scaler skips such a step by itself
            raise FloatingPointError(f"step {step}: the gradient is {grad_norm}; this step was not applied")
        optimizer.step()
        optimizer.zero_grad()
        end_graph()  # before its weights are read
        balancing.end()

        step_loss = sum(task.weight * of_task[task.name] for task in tasks) / training.batch_size
        window.add(batch, step_loss, of_task, computed, time.perf_counter() - started)
        progress.update()
        if step % training.logging_steps == 0 or step == max_steps:
            values = window.values() | {
                "train/learning_rate": learning_rate(step),
                "train/grad_norm": grad_norm,
                **balancing.values(),
                **{f"train/{name}/examples": steps.dataset.mixture.given(name, step) for name in sizes},
            }
            show(progress, values)
            recorder.log(step, values)
            window = LogWindow()
        results = None
        if is_due(step, training.eval_steps) and not ends:
            results = evaluate_now(step)
            ends = results is None
        if ends or is_due(step, training.save_steps) or (training.load_best_model_at_end and history.is_best(results)):
            save(step, results)
        if results:
            recorder.report()
        if ends:
            return end_at_signal(step)
        started = time.perf_counter()
    progress.close()

    # -- what remains: a table, and one ordinary model per task -------------------------------------------------------

    accelerator.print(f"\n{results_table(results, tasks)}")
    recorder.report()
    if accelerator.is_main_process:
        background.wait()
        chosen, known = choose_export(folder, history, training.load_best_model_at_end, print)
        trained, *_ = load_checkpoint(chosen, config)
        export_run(trained, tasks, tokenizer, config, known, folder / "export", not lora or lora.merge)
        print(f"\nOne model per task in {folder / 'export'}; the numbers in {folder / 'metrics.json'}")
    return when_copied(0, folder / "export", folder / "report")


def main() -> None:
    """Called by this name in each process on a TPU."""
    with mistakes_in_one_line(is_debugged="--debug" in sys.argv):
        command = read_command(sys.argv[1:], __doc__.split("\n\n")[0])
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


if __name__ == "__main__":
    main()
