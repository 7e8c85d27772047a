"""Fine-tunes one shared encoder on several NLP tasks at once and leaves one ordinary Hugging Face model per task.

On the CPU, on one GPU, on all GPUs of a machine:

    accelerate launch --config_file accelerate_configs/cpu.yaml run_multitask.py --config configs/quickstart.yaml
    accelerate launch --config_file accelerate_configs/single_gpu.yaml run_multitask.py --config configs/glue_csqa.yaml
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml run_multitask.py --config configs/glue_csqa.yaml

Every key of the configuration is an option: --training.learning_rate 2e-5 --tasks.rte.weight 2"""

import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from multitask.checkpoints.manager import CheckpointManager
from multitask.checkpoints.warm_start import warm_start
from multitask.cli.arguments import Command, read_command
from multitask.cli.commands import OTHER_MODES
from multitask.cli.console import calibration_lines, plan, quiet_libraries, results_table, what_is_where
from multitask.cli.seeds import seeds_table, summarise, with_seed, write_summary
from multitask.config.load import load_config
from multitask.config.schema import TrainingConfig, to_yaml
from multitask.data.loader import StepDataset, StepLoader
from multitask.data.packing import Step
from multitask.errors import mistakes_in_one_line
from multitask.evaluation.evaluate import Evaluator
from multitask.evaluation.teachers import with_teachers
from multitask.mixture.mixture import Mixture
from multitask.mixture.sampling import Sampling
from multitask.model.hub import push_to_hub
from multitask.model.lora import freeze_or_adapt
from multitask.model.multitask import MultitaskModel, checkpoint_gradients
from multitask.model.pretrained import build_model, find_encoder, load_tokenizer
from multitask.model.segments import to_device
from multitask.tasks.base import example_losses, streams_of
from multitask.tasks.load import TaskData, load_tasks
from multitask.tracking.run_directory import check_run_folder, locked_run_folder
from multitask.tracking.run_logger import RunLogger
from multitask.tracking.window import LogWindow
from multitask.training.distributed import check_share, start_accelerator, use_deterministic_kernels, whole
from multitask.training.early_stopping import EarlyStopping, check_stopping
from multitask.training.gradient_similarity import GradientSimilarity
from multitask.training.loss_weighting import LossWeighting, build_loss_weighting
from multitask.training.optimizer import build_optimizer, check_losses, forget_gradients, layer_rates, lr_schedule
from multitask.training.signals import caught_signals
from multitask.training.state import TrainState
from multitask.training.weight_averaging import WeightAverage
from multitask.training.xla import begin_pass, end_graph, uses_static_shapes
from multitask.utils import flatten, stable_seed


class StepOutput(NamedTuple):
    """What all processes know of a step after its update.

    Args:
        loss: the weighted mean over the step's examples.
        task_losses: each task's sum of example losses.
        padded_tokens: that the encoder computed, padding included.
        grad_norm: before clipping.
        cosines: between the tasks' gradients, if they were measured.
        is_last: whether a process was sent a signal.
    """

    loss: float
    task_losses: dict[str, float]
    padded_tokens: float
    grad_norm: float
    cosines: dict[str, float]
    is_last: bool


def task_loss_sums(
    index: int,
    *,
    step: int,
    batch: Step,
    model: torch.nn.Module,
    tasks: Sequence[TaskData],
    accelerator: Accelerator,
    seed: int,
    apart: bool,
) -> dict[str, Tensor]:
    """Each task's sum of losses over the examples of one pass of this process; `apart` as of the model."""
    begin_pass(stable_seed(seed, step, accelerator.process_index, index))  # seeds dropout
    inputs, labels, _, is_row = send_to_device(batch.passes[index], accelerator.device, non_blocking=True)
    logits = model(inputs, apart)
    rows = is_row or {}
    return {
        t.name: example_losses(t.type, logits[t.name], labels[t.name], rows.get(t.name), t.loss_options).sum()
        for t in tasks
    }


def train_step(
    step: int,
    batch: Step,
    model: torch.nn.Module,
    optimizer: Any,
    weighting: LossWeighting,
    similarity: GradientSimilarity,
    tasks: Sequence[TaskData],
    accelerator: Accelerator,
    training: TrainingConfig,
    stop_signal: Callable[[], int],
) -> StepOutput:
    """One update, the same on any number of passes and processes.

    loss = sum over the step's examples of weight * factor * example loss / batch size
    """
    plain_model: MultitaskModel = accelerator.unwrap_model(model)
    is_measured = similarity.is_due(step)  # tasks are computed apart, gradients exchanged after all passes
    loss_sums = partial(
        task_loss_sums,
        step=step,
        batch=batch,
        model=model,
        tasks=tasks,
        accelerator=accelerator,
        seed=training.seed,
        apart=is_measured,
    )
    weighting.begin(batch.examples, len(batch.passes), loss_sums)
    totals, tokens_before = torch.zeros(len(tasks), device=accelerator.device), plain_model.computed_tokens
    for index, micro_batch in enumerate(batch.passes):
        # Gradients are exchanged in the last pass, where they are averaged over the processes.
        is_exchanged = index == len(batch.passes) - 1 and not is_measured
        with nullcontext() if is_exchanged else accelerator.no_sync(model):
            sums = loss_sums(index)
            terms = weighting.terms(sums, micro_batch.num_rows)
            if is_measured:
                similarity.backward(terms)
            else:
                accelerator.backward(sum(terms) * accelerator.num_processes)
        totals += torch.stack(list(sums.values())).detach()
    end_graph()

    cosines = similarity.finish(batch.examples) if is_measured else {}
    idle = [task for task, examples in batch.examples.items() if not examples]
    forget_gradients(plain_model.parameters_only_of(idle))  # None: no weight decay and no momentum either
    norm = whole(accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm or math.inf))

    # What all processes must know travels together: losses, tokens, and whether one has been sent a signal. It is the
    # one place in a step where the host waits for the device.
    others = to_device([float(plain_model.computed_tokens - tokens_before), float(stop_signal())], totals.device)
    shared = accelerator.reduce(torch.cat([totals, others]))
    *losses, padded_tokens, signals, grad_norm = torch.cat([shared, norm.to(shared).view(1)]).tolist()
    task_losses = {task.name: loss for task, loss in zip(tasks, losses, strict=True)}
    weighted = {task.name: task.weight * task_losses[task.name] for task in tasks}
    check_losses(step, weighted, optimizer.param_groups[0]["lr"])
    if not math.isfinite(grad_norm) and accelerator.scaler is None:  # fp16's scaler skips such a step by itself
        raise FloatingPointError(f"step {step}: the gradient is {grad_norm}; this step was not applied")
    optimizer.step()
    optimizer.zero_grad()
    end_graph()  # before its weights are read
    weighting.end()
    loss = sum(weighted.values()) / training.batch_size
    return StepOutput(loss, task_losses, padded_tokens, grad_norm, cosines, bool(signals))


def evaluate(
    state: TrainState,
    evaluator: Evaluator,
    steps: StepLoader,
    mixture_without: Callable[[Mapping[str, int]], Mixture],
    log: RunLogger,
) -> bool:
    """Evaluates, and stops tasks that no longer improve; False if a signal came and nothing has changed."""
    with state.average.applied():
        found = evaluator.run()
    if found is None:
        return False
    state.results, state.calibrations = found.results, found.calibrations
    if state.step < steps.last and (newly := state.stopping.add(state.step, state.results)):
        mixture = mixture_without(state.stopping.stopped)
        # This step is the last one, if no task is left.
        steps.use(mixture, mixture.last_step, state.stopping.stopped)
        log.print(f"step {state.step}: stopped, as it does not improve any more: {', '.join(newly)}")
    log.evaluation(state.step, found)
    return True


def log_window(
    state: TrainState, window: LogWindow, steps: StepLoader, learning_rate: Callable[[int], float], log: RunLogger
) -> None:
    """Logs the means over the steps since the last time, and begins a new window."""
    rate = {"train/learning_rate": learning_rate(state.step)}
    times = {
        "train/elapsed_seconds": state.elapsed(),
        "train/remaining_seconds": (steps.last - state.step) * window.seconds / window.steps,
    }
    log.training(state.step, window.values() | rate | times | state.weighting.values() | steps.examples(state.step))
    window.clear()


def train(command: Command, accelerator: Accelerator, stop_signal: Callable[[], int] = lambda: 0) -> int:
    """Trains, evaluates, saves and exports; returns the exit status. `stop_signal` gives the number of one, or 0."""
    config, training = command.config, command.config.training
    folder = Path(training.output_dir)
    if not command.dry_run:
        check_run_folder(folder, config)
    check_share(training.batch_size, accelerator.num_processes)
    if training.full_determinism:
        use_deterministic_kernels()

    # -- data: every task's rows, tokenised once; the other processes read what the first one cached ------------------

    encoder = find_encoder(config.model.encoder, config.model_root)
    tokenizer = load_tokenizer(encoder, config.model.max_length)
    max_length, pad = config.model.max_length, tokenizer.pad_token_id
    tasks = load_tasks(config.tasks, tokenizer, max_length, config.data_root, config.num_proc, accelerator)

    static = uses_static_shapes(training.static_shapes, accelerator)
    limits = training.max_tokens_per_pass, static
    tasks = with_teachers(tasks, config.tasks, tokenizer, accelerator, *limits, config.model_root, command.dry_run)

    # -- mixture: which rows make up step s, a function of s alone ----------------------------------------------------

    splits, streams = {task.name: task.train for task in tasks}, streams_of(tasks)
    sizes = {stream: len(splits[names[0]]) for stream, names in streams.items()}
    max_steps = training.max_steps or math.ceil(training.num_train_epochs * sum(sizes.values()) / training.batch_size)
    sampling = Sampling(sizes, training.batch_size, max_steps, **dataclasses.asdict(config.mixture))
    lengths = {stream: splits[names[0]].length for stream, names in streams.items()}
    # {task: step after which it was stopped} -> mixture
    mixture_without = partial(sampling.mixture, training.seed, lengths, streams=streams)
    whole_mixture = mixture_without({})
    shares = whole_mixture.shares(max_steps)
    patience = {name: task.patience for name, task in config.tasks.items() if task.patience}
    measured = {task.name: task.metrics for task in tasks if task.validation}
    check_stopping(training.metric_for_best_model, patience, training.load_best_model_at_end, measured)

    # -- model --------------------------------------------------------------------------------------------------------

    plain_model = build_model(encoder, tasks, config.model.dropout, training.seed)
    fingerprints = {task.name: task.train.fingerprint() for task in tasks}
    fingerprints |= {"encoder": plain_model.encoder_fingerprint()}
    fingerprints |= {f"teacher of {t.name}": t.train.targets.fingerprint for t in tasks if t.train.targets}
    lora, start = config.adapters, {name: task.adapter for name, task in config.tasks.items() if task.adapter}
    freeze_or_adapt(plain_model, config.model.freeze_encoder, lora, start, training.seed)
    method = training.loss_balancing
    weighting = build_loss_weighting(method, plain_model, tasks, training.batch_size, accelerator.reduce)
    if training.gradient_checkpointing:
        checkpoint_gradients(plain_model)
    accelerator.print(plan(tasks, plain_model, whole_mixture, max_steps, training, static))
    if command.dry_run:
        accelerator.print(f"\n{to_yaml(config)}")
        return 0

    # -- state: all that a checkpoint holds ---------------------------------------------------------------------------

    plain_model.to(accelerator.device)
    own_rates = layer_rates(plain_model.encoder, training.learning_rate, training.layerwise_lr_decay)
    own_rates += [
        (plain_model.head_parameters(n), t.learning_rate) for n, t in config.tasks.items() if t.learning_rate
    ]
    plain_optimizer = build_optimizer(plain_model, training.learning_rate, training.weight_decay, own_rates)
    model, optimizer = accelerator.prepare(plain_model, plain_optimizer)
    window = LogWindow()
    state = TrainState(
        model=plain_model,
        optimizer=plain_optimizer,
        weighting=weighting,
        stopping=EarlyStopping(training.metric_for_best_model, patience),
        window=window,
        average=WeightAverage(plain_model, training.weight_averaging, max_steps),
        scaler=accelerator.scaler,
        max_steps=max_steps,
        command=command.line,
        labels={task.name: task.labels for task in tasks},
        rows={task.name: task.num_rows() for task in tasks},
        fingerprints=fingerprints,
    )
    checkpoints = CheckpointManager(config, state, tasks, tokenizer, accelerator)
    checkpoints.restore()
    if training.init_from_checkpoint and not state.step:
        accelerator.print(warm_start(plain_model, tasks, training.init_from_checkpoint, config))

    # Not prepared by Accelerate, which would step it once per process: it is a function of the step.
    learning_rate = lr_schedule(training.lr_scheduler_type, training.learning_rate, training.warmup_ratio, max_steps)
    log = RunLogger(folder, config, {task.name: shares[task.stream] for task in tasks}, state, accelerator)
    log.length()
    max_tokens = training.max_tokens_per_pass
    evaluator = Evaluator(plain_model, tasks, pad, accelerator, max_tokens, static, stop_signal, log.look)
    similarity = GradientSimilarity(plain_model, accelerator, training.agreement_steps, max_steps)
    mixture = mixture_without(state.stopping.stopped)
    share = {"num_devices": accelerator.num_processes, "device": accelerator.process_index}
    dataset = StepDataset(
        mixture, splits, pad, max_tokens, **share, static_shapes=static, streams=streams, num_steps=max_steps
    )
    dataset.leave_out(state.stopping.stopped)
    workers, device = training.dataloader_num_workers, accelerator.device.type
    steps = StepLoader(dataset, state.step, mixture.last_step, workers, device)

    # -- the loop: batch -> losses -> backward -> update -> evaluate / log / save -------------------------------------

    model.train()
    is_stopped = False
    if state.step and state.results is None and steps.is_due(state.step, training.eval_steps):
        is_stopped = not evaluate(state, evaluator, steps, mixture_without, log)  # a signal came during the last one
        if not is_stopped:
            if state.step == steps.last and window.steps:
                log_window(state, window, steps, learning_rate, log)
            checkpoints.save(log.log)
    started = time.perf_counter()
    for step, batch in () if is_stopped else steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1) * group["scale"]
        output = train_step(
            step, batch, model, optimizer, weighting, similarity, tasks, accelerator, training, stop_signal
        )
        state.advance(step)
        seconds = time.perf_counter() - started
        window.add(batch, output.loss, output.task_losses, output.padded_tokens, output.grad_norm, seconds)
        is_stopped = output.is_last
        log.bar.update()
        log.log(step, output.cosines)
        if steps.is_due(step, training.logging_steps):
            log_window(state, window, steps, learning_rate, log)
        if steps.is_due(step, training.eval_steps) and not is_stopped:
            is_stopped = not evaluate(state, evaluator, steps, mixture_without, log)
        if step == steps.last and window.steps:  # the evaluation has made this the last step
            log_window(state, window, steps, learning_rate, log)
        is_best = training.load_best_model_at_end and state.stopping.is_best(state.results)
        if is_stopped or is_best or steps.is_due(step, training.save_steps):
            checkpoints.save(log.log)
        if state.results:
            log.report()
        if is_stopped:
            break
        started = time.perf_counter()
    log.close()
    if is_stopped:
        log.report()  # also of a run that was not evaluated yet
        checkpoints.wait()
        accelerator.print(
            f"stopped by a signal; step {state.step} of {max_steps} is saved in {folder / 'checkpoints'}"
        )
        return checkpoints.close(128 + (stop_signal() or signal.SIGTERM), log.log)

    # -- what remains: a table, and one ordinary model per task -------------------------------------------------------

    accelerator.print(f"\n{results_table(state.results or {}, tasks)}")
    for line in calibration_lines(state.calibrations):
        accelerator.print(line)
    log.report()
    checkpoints.export(folder / "export")
    status = checkpoints.close(0, log.log, folder / "export", folder / "report")
    if accelerator.is_main_process:
        print(f"\n{what_is_where(folder, None if status else config.checkpoints.remote)}")
    if command.push_to_hub and accelerator.is_main_process:
        print("On the hub:", *push_to_hub(folder / "export", command.push_to_hub, config.tasks))
    return status


def train_in_folder(command: Command, accelerator: Accelerator, stop_signal: Callable[[], int]) -> int:
    """Trains in a folder that no other process uses; returns the exit status."""
    with locked_run_folder(Path(command.config.training.output_dir), accelerator):
        return train(command, accelerator, stop_signal)


def train_seeds(command: Command, accelerator: Accelerator, stop_signal: Callable[[], int]) -> int:
    """Trains with one seed after the other and prints their mean results; returns the exit status."""
    folder, statuses = Path(command.config.training.output_dir), []
    for seed in command.seeds:
        one = with_seed(command, seed)
        accelerator.print(f"\nseed {seed}: {one.config.training.output_dir}")
        statuses.append(train_in_folder(one, accelerator, stop_signal))
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.free_memory()  # the model and optimizer of this seed
        if statuses[-1] > 128:  # a signal
            return statuses[-1]
    if accelerator.is_main_process:
        summary = summarise(folder, command.seeds)
        print(f"\n{seeds_table(summary)}\n\nThe results of all seeds are in {write_summary(folder, summary)}")
    return max(statuses)


def run(config: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`multitask.train`: trains from Python and returns the content of metrics.json."""
    command = Command(load_config(config, flatten(dict(settings))), line=f"multitask.train({str(config)!r})")
    accelerator = start_accelerator()
    folder = Path(command.config.training.output_dir)
    with caught_signals() as stop_signal:
        status = train_in_folder(command, accelerator, stop_signal)
    accelerator.end_training()
    if status:
        raise KeyboardInterrupt(f"the run in {folder} was stopped; the same call resumes it")
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def main() -> None:
    """Called by this name in each process on a TPU."""
    for stream in (sys.stdout, sys.stderr):  # a locale such as C has no letter beyond ASCII
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with mistakes_in_one_line(is_debugged="--debug" in sys.argv):
        command = read_command(sys.argv[1:], __doc__.split("\n\n")[0])
        quiet_libraries()
        accelerator = start_accelerator()
        if command.mode == "train":
            start = train if command.dry_run else train_seeds if command.seeds else train_in_folder
            with caught_signals() as stop_signal:
                status = start(command, accelerator, stop_signal)
        else:
            OTHER_MODES[command.mode](command, accelerator)
            status = 0
        accelerator.end_training()
        sys.exit(status)


if __name__ == "__main__":
    main()
