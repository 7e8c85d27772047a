import dataclasses

import pytest
import yaml
from helpers.lanes import every_third
from helpers.paths import ROOT

from multitask.cli.arguments import read_command
from multitask.config.schema import METRIC_NAMES, TASK_RULES, AdapterConfig, Config, TaskConfig, to_yaml
from multitask.errors import UserError
from multitask.tasks.base import TASK_TYPES
from multitask.utils import flatten

CONFIGS = sorted((ROOT / "configs").glob("[!s]*.yaml"))  # sweep.yaml is W&B's


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_mixture_of_the_repository_reads(path):
    assert read_command(["--config", str(path)]).config.tasks


def test_there_are_mixtures():
    assert {path.name for path in CONFIGS} >= {"quickstart.yaml", "glue_csqa.yaml"}


def test_values_come_from_the_defaults_the_file_and_the_command_line(mixture_config, write_config, monkeypatch):
    monkeypatch.setenv("MULTITASK_DATA_ROOT", "/from/environment")
    path = write_config(mixture_config)
    options = [
        "--training.learning_rate",
        "2e-5",
        "--tasks.animal.weight=2",
        "--tasks.animal.metrics",
        "[f1, accuracy]",
    ]
    command = read_command(["--config", path, *options, "--dry_run"])
    config = command.config
    assert config.training.weight_decay == 0.01  # a default
    assert config.training.batch_size == 12  # the file's
    assert config.training.learning_rate == 2e-5
    assert (config.tasks["animal"].weight, config.tasks["similar"].weight) == (2, 1)
    assert config.tasks["animal"].metrics == ["f1", "accuracy"]
    assert (command.dry_run, config.data_root) == (True, "/from/environment")
    assert read_command(["--config", path, "--data_root", "/given"]).config.data_root == "/given"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.seed = 1


@pytest.mark.parametrize(
    ("section", "options", "expected"),
    every_third(
        [
            ("absent", "", None),
            (None, "", None),
            ({}, "", AdapterConfig()),
            ({"rank": 2}, "", AdapterConfig(rank=2)),
            ("absent", "--adapters.rank 4", AdapterConfig(rank=4)),
            (None, "--adapters.rank 4 --adapters.scope both", AdapterConfig(rank=4, scope="both")),
            ({"rank": 2, "alpha": 3}, "--adapters.rank 4", AdapterConfig(rank=4, alpha=3.0)),
            (
                {"rank": 2},
                "--adapters.target_modules [query,value]",
                AdapterConfig(2, target_modules=["query", "value"]),
            ),
            ({"rank": 2}, "--adapters null", None),
        ]
    ),
)
def test_adapters_may_be_absent(mixture_config, write_config, tmp_path, section, options, expected):
    if section != "absent":
        mixture_config["adapters"] = section
    config = read_command(["--config", write_config(mixture_config), *options.split()]).config
    assert config.adapters == expected
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert read_command(["--config", str(tmp_path / "resolved.yaml")]).config == config


def test_the_resolved_configuration_reads_back_as_itself(mixture_config, write_config, tmp_path):
    config = read_command(["--config", write_config(mixture_config), "--tasks.animal.weight", "2"]).config
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert read_command(["--config", str(tmp_path / "resolved.yaml")]).config == config


def test_what_the_configuration_names_is_what_the_code_has():
    assert set(TASK_RULES) == set(TASK_TYPES) and len(TASK_TYPES) == 6
    assert {m for task_type in TASK_TYPES.values() for m in task_type.metrics} == METRIC_NAMES
    shown = str(TaskConfig.__doc__)  # in --help
    assert all(f"({name})" in shown for name in TASK_TYPES)


def test_the_set_of_options_is_what_it_was_meant_to_be():
    """An option needs a user: adding one means changing these counts, and the changelog."""
    config = Config(model=None, tasks=None, training=None)
    count = {
        f.name: len(dataclasses.fields(f.type)) for f in dataclasses.fields(config) if dataclasses.is_dataclass(f.type)
    }
    assert count == {"model": 4, "training": 29, "mixture": 6, "checkpoints": 1, "tracking": 4, "card": 2}
    assert len(dataclasses.fields(TaskConfig)) == 24
    assert len(dataclasses.fields(AdapterConfig)) == 6


def test_help_comes_from_the_docstrings(capsys):
    for option in ("--help", "--tasks.help", "--adapters.help"):
        with pytest.raises(SystemExit) as exit_:
            read_command([option])
        assert exit_.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--training.max_tokens_per_pass" in out
    assert "A device's share of a step that holds more tokens is split into several passes." in out
    assert "Factor on the loss of each of this task's examples." in out
    assert "What is added is scaled by alpha / rank." in out


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


# -- what a user may get wrong on the command line: (options, what is printed) -----------------------------------------

OPTIONS = {
    "--training.learning_rat 3": "--training.learning_rat: unknown key; did you mean 'learning_rate'? (valid: agreement_steps, allow_changed_data, batch_size, dataloader_num_workers, eval_steps, full_determinism, gradient_checkpointing, init_from_checkpoint, layerwise_lr_decay, learning_rate, load_best_model_at_end, logging_steps, loss_balancing, lr_scheduler_type, max_grad_norm, max_steps, max_tokens_per_pass, metric_for_best_model, num_train_epochs, output_dir, overwrite_output_dir, resume_from_checkpoint, save_steps, save_total_limit, seed, static_shapes, warmup_ratio, weight_averaging, weight_decay)",
    "--training.learning_rate x": "--training.learning_rate: found 'x', expected float",
    "--training.learning_rate=-1": "training.learning_rate: -1.0 is not a positive number",
    "--training.learning_rate .nan": "training.learning_rate: nan is not a positive number",
    "--learning_rate 1e-4": "--learning_rate: unknown option; did you mean '--training.learning_rate' or '--tasks.NAME.learning_rate'?",
    "--fp16 true": "--fp16: unknown option; did you mean accelerate launch --mixed_precision fp16?",
    "--max_steps 5": "--max_steps: unknown option; did you mean '--training.max_steps'?",
    "--rank 8": "--rank: unknown option; did you mean '--adapters.rank'?",
    "--taining.seed 1": "--taining.seed: unknown option; did you mean '--training'? (options: --adapters, --card, --checkpoint, --checkpoints, --config, --data_root, --debug, --dry_run, --help, --input, --mixture, --mode, --model, --model_root, --num_proc, --only, --output, --print_config, --push_to_hub, --seeds, --skip_bad_rows, --tasks, --tracking, --training, -h)",
    "--tasks.animal.wight 3": "--tasks.animal.wight: unknown key; did you mean 'weight'? (valid: adapter, calibrate, choice_labels, choices, class_weights, data_files, dataset, focal_gamma, inputs, label, label_names, label_smoothing_factor, learning_rate, max_eval_examples, max_train_examples, metrics, patience, rows, subset, teacher, train_split, type, validation_split, weight)",
    "--tasks.animal.weight 0": "tasks.animal.weight: 0.0 is not a positive number",
    "--tasks.animal.metrics [acuracy]": "--tasks.animal.metrics: unknown value 'acuracy'; did you mean 'accuracy'? (valid: accuracy, exact_match, f1, f1_macro, f1_micro, matthews_correlation, mse, pearson, precision, recall, spearmanr)",
    "--tasks.animal.type classificaton": "--tasks.animal.type: unknown value 'classificaton'; did you mean 'classification'? (valid: classification, multi_label_classification, multiple_choice, question_answering, regression, token_classification)",
    "--tasks.animal.choices a": "tasks.animal.choices: has no effect with type classification; it belongs to multiple_choice",
    "--tasks.choice.choices null": "tasks.choice.choices: missing; type multiple_choice needs the column(s) that hold the choices",
    "--tasks.animal.inputs []": "tasks.animal.inputs: 0 columns given, one or two are possible",
    "--tasks.animal.inputs [a,b,c]": "tasks.animal.inputs: 3 columns given, one or two are possible",
    "--tasks.animal.type token_classification --tasks.animal.inputs [a,b]": "tasks.animal.inputs: 2 columns given, the column with the words is needed",
    "--tasks.animal.type question_answering": "tasks.animal.inputs: 1 columns given, those of the question and of its context are needed",
    "--tasks.animal.data_files null": "tasks.animal.data_files: missing; dataset: json needs {train: FILE, validation: FILE}",
    "--mixture.sampling proportonal": "--mixture.sampling: unknown value 'proportonal'; did you mean 'proportional'? (valid: proportional, temperature, uniform, unimax, weights)",
    "--mixture.sampling weights": "mixture.weights: 'animal' has none; sampling: weights needs a number for each task",
    "--mixture.sampling weights --mixture.weights {animl:1}": "mixture.weights: 'animl' is not a task; did you mean 'animal'? (tasks: animal, choice, similar)",
    "--mixture.sampling weights --mixture.weights {animal:0,choice:0,similar:0}": "mixture.weights: {'animal': 0.0, 'choice': 0.0, 'similar': 0.0} must be numbers from 0 up, at least one of them above 0",
    "--mixture.weights {animal:1}": "mixture.weights: has no effect with sampling: proportional; use sampling: weights",
    "--training.lr_scheduler_type polynomial": "--training.lr_scheduler_type: unknown value 'polynomial' (valid: constant, cosine, linear)",
    "--training.batch_size 2": "training.batch_size: 2 examples a step cannot hold one of each of 3 tasks",
    "--training.max_steps 0": "training.max_steps: 0 is not a positive number",
    "--training.max_steps 1.5": "--training.max_steps: found 1.5, expected int | null",
    "--training.warmup_ratio 1": "training.warmup_ratio: 1.0 is not in the range 0 <= warmup_ratio < 1",
    "--training.agreement_steps=-1": "training.agreement_steps: -1 is not a number from 0 up",
    "--training.loss_balancing fano": "--training.loss_balancing: unknown value 'fano'; did you mean 'famo'? (valid: famo, size_of_label_space, static, uncertainty)",
    "--training.seed [1": "--training.seed: found '[1', expected int",
    "--training.output_dir=": "training.output_dir: empty; a run needs a folder of its own",
    "--tasks.animals.weight 2": "--tasks.animals: there is no such task; did you mean 'animal'? (tasks: animal, choice, similar)",
    "--tasks.animal.subset x": "tasks.animal.subset: has no effect with dataset: json",
    "--tasks.animal.validation_split dev": "tasks.animal.data_files.validation: not used; name it 'validation', or set validation_split: validation",
    "--tasks.choice.choices [a]": "tasks.choice.choices: ['a'] is one column; give its name alone if it holds the list",
    "--mixture.sampling temperature": "mixture.temperature: missing; it is needed with sampling: temperature",
    "--mixture.temperature 2": "mixture.temperature: has no effect with sampling: proportional",
    "--mixture.final_temperature 2": "mixture.final_temperature: there is no mixture.temperature to begin with; it needs sampling: temperature and both",
    "--mixture.sampling temperature --mixture.final_temperature 2": "mixture.final_temperature: there is no mixture.temperature to begin with; it needs sampling: temperature and both",
    "--mixture.sampling temperature --mixture.temperature 2 --mixture.final_temperature 2": "mixture.final_temperature: 2 is mixture.temperature; leave it out",
    "--mixture.sampling temperature --mixture.temperature 2 --mixture.final_temperature 0": "mixture.final_temperature: 0.0 is not a positive number",
    "--mixture.sampling unimax": "mixture.max_epochs: missing; it is needed with sampling: unimax",
    "--mixture.max_epochs 2": "mixture.max_epochs: has no effect with sampling: proportional",
    "--mixture.sampling uniform --mixture.cap 9": "mixture.cap: has no effect with sampling: uniform; it belongs to proportional and temperature",
    "--mixture.cap 0": "mixture.cap: 0 is not a positive number",
    "--tasks.animal.patience 2": "tasks.animal.patience: needs evaluations to count; set training.eval_steps",
    "--tasks.animal.patience 0": "tasks.animal.patience: 0 is not a positive number",
    "--tasks.animal.patiense 2": "--tasks.animal.patiense: unknown key; did you mean 'patience'? (valid: adapter, calibrate, choice_labels, choices, class_weights, data_files, dataset, focal_gamma, inputs, label, label_names, label_smoothing_factor, learning_rate, max_eval_examples, max_train_examples, metrics, patience, rows, subset, teacher, train_split, type, validation_split, weight)",
    "--tasks.animal.learning_rate=-1": "tasks.animal.learning_rate: -1.0 is not a positive number",
    "--mixture.sampling weights --mixture.weights {animal:0,choice:1,similar:1} --tasks.animal.learning_rate 1": "tasks.animal.learning_rate: has no effect, as mixture.weights gives animal nothing to learn",
    "--training.load_best_model_at_end true": "training.load_best_model_at_end: the only evaluation is at the end; set training.eval_steps",
    "--model.dropout 1": "model.dropout: 1.0 is not in the range 0 <= dropout < 1",
    "--training.output_dir $PATH": "training.output_dir: $PATH is a file; a run needs a folder of its own",
    "--adapters.scope per_tsk": "--adapters.scope: unknown value 'per_tsk'; did you mean 'per_task'? (valid: both, per_task, shared)",
    "--adapters.rnk 4": "--adapters.rnk: unknown key; did you mean 'rank'? (valid: alpha, dropout, merge, rank, scope, target_modules)",
    "--adapters 3": "--adapters: found 3, expected keys (of these: alpha, dropout, merge, rank, scope, target_modules)",
    "--adapters.rank x": "--adapters.rank: found 'x', expected int",
    "--adapters.rank 0": "adapters.rank: 0 is not a positive number",
    "--adapters.alpha=-1": "adapters.alpha: -1.0 is not a positive number",
    "--adapters.dropout 1": "adapters.dropout: 1.0 is not in the range 0 <= dropout < 1",
    "--adapters.target_modules []": "adapters.target_modules: empty; all-linear, or a list of modules such as [query, value]",
    "--tasks.animal.adapter x": "tasks.animal.adapter: has no effect without adapters; set adapters.rank to its rank",
    "--tasks.animal.adapter x --adapters.scope shared": "tasks.animal.adapter: has no effect with adapters.scope: shared; it belongs to per_task or both",
    "--config nothing.yaml": "--config: there is no file 'nothing.yaml' (in .: none)",
    "stray": "unrecognized arguments: stray",
}


@pytest.mark.parametrize("options", every_third(OPTIONS))
def test_mistakes_on_the_command_line(mixture_config, write_config, tmp_path, monkeypatch, options):
    file = tmp_path / "a_file"
    file.write_text("")
    monkeypatch.chdir(tmp_path / "..")
    words = options.replace("$PATH", str(file)).replace(":1", ": 1").replace(":0", ": 0")
    split = words.split(" --")
    arguments = [part for i, word in enumerate(split) for part in (("--" if i else "") + word).split(" ", 1)]
    with pytest.raises(UserError) as raised:
        read_command(["--config", write_config(mixture_config), *arguments])
    assert str(raised.value) == OPTIONS[options].replace("$PATH", str(file))


def test_an_abbreviated_option_is_not_taken_for_another(mixture_config, write_config):
    with pytest.raises(UserError, match="--training.learning: unknown key; did you mean 'learning_rate'"):
        read_command(["--config", write_config(mixture_config), "--training.learning", "3"])


def test_a_command_without_a_configuration():
    for arguments in ([], ["--dry_run"], ["--training.seed", "1"]):
        with pytest.raises(UserError, match="^--config is missing; for example --config configs/quickstart.yaml$"):
            read_command(arguments)


# -- and in the file: (change to the file, what is printed) ------------------------------------------------------------

FILES = {
    "models: {}": "FILE: models: unknown key; did you mean 'model'? (valid: adapters, card, checkpoints, data_root, mixture, model, model_root, num_proc, tasks, tracking, training)",
    "tasks: {}": "tasks: there are none; a mixture needs at least one task",
    "tasks: null": "FILE: tasks: missing",
    "tasks: [a]": "FILE: tasks: found ['a'], expected dict[str, multitask.config.schema.TaskConfig]",
    "tasks: {a: {dataset: csv, inputs: [a]}}": "FILE: tasks.a.type: missing",
    "tasks: {a: {type: regresion, dataset: csv, inputs: [a]}}": "FILE: tasks.a.type: unknown value 'regresion'; did you mean 'regression'? (valid: classification, multi_label_classification, multiple_choice, question_answering, regression, token_classification)",
    "tasks: {a/b: {type: regression, dataset: x, inputs: [a]}}": "tasks.a/b: a task's name becomes a folder: text of letters, digits, '_' and '-'",
    "tasks: {2024: {type: regression, dataset: x, inputs: [a]}}": "tasks.2024: a task's name becomes a folder: text of letters, digits, '_' and '-'",
    "tasks: {training: {type: regression, dataset: x, inputs: [a]}}": "tasks.training: the name 'training' is taken by PyTorch's modules; choose another",
    "tasks: {a: {type: regression, dataset: '', inputs: [a]}}": "tasks.a.dataset: empty; a hub id, a folder, or one of csv, tsv, json, jsonl, parquet",
    "mixture:": "FILE: mixture: found None, expected keys (of these: cap, final_temperature, max_epochs, sampling, temperature, weights)",
    "tasks: {train: {type: regression, dataset: x, inputs: [a]}}": "tasks.train: the name 'train' is taken by PyTorch's modules; choose another",
    "adapters: {scope: shred}": "FILE: adapters.scope: unknown value 'shred'; did you mean 'shared'? (valid: both, per_task, shared)",
    "adapters: {rnk: 8}": "FILE: adapters.rnk: unknown key; did you mean 'rank'? (valid: alpha, dropout, merge, rank, scope, target_modules)",
    "adapters: lora": "FILE: adapters: found 'lora', expected keys (of these: alpha, dropout, merge, rank, scope, target_modules)",
    "training: {batchsize: 3}": "FILE: training.batchsize: unknown key; did you mean 'batch_size'? (valid: ",
    "training: {batch_size: many}": "FILE: training.batch_size: found 'many', expected int",
    "training: {seed: 1, seed: 2}": "FILE: not valid YAML: key 'seed' stands twice in \"<unicode string>\", line ",
    "training: [1": 'FILE: not valid YAML: while parsing a flow sequence in "<unicode string>", line ',
}


@pytest.mark.parametrize("change", FILES)
def test_mistakes_in_the_file(mixture_config, tmp_path, change):
    mixture_config.pop(change.split(":")[0], None)
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump(mixture_config) + change + "\n")
    with pytest.raises(UserError) as raised:
        read_command(["--config", str(path)])
    assert str(raised.value).startswith(FILES[change].replace("FILE", str(path)))


def test_a_folder_for_a_file_and_a_name_with_a_space(mixture_config, write_config, tmp_path):
    with pytest.raises(UserError) as raised:
        read_command(["--config", str(tmp_path)])
    assert str(raised.value).startswith(f"--config: '{tmp_path}' is a folder")
    assert read_command(["--config", write_config(mixture_config, "my mixture.yaml")]).config.tasks


def test_keys_may_be_merged(mixture_config, tmp_path):
    mixture_config.pop("tasks")
    path = tmp_path / "merged.yaml"
    task = "{type: regression, dataset: json, data_files: {train: x}, inputs: [a]}"
    tasks = f"tasks:\n  one: &one {task}\n  two:\n    <<: *one\n    weight: 2\n    inputs: [b]\n"
    path.write_text(yaml.safe_dump(mixture_config) + tasks)
    config = read_command(["--config", str(path)]).config
    assert (config.tasks["two"].weight, config.tasks["two"].inputs, config.tasks["two"].dataset) == (2, ["b"], "json")


def test_a_file_that_is_not_a_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- a\n")
    with pytest.raises(UserError, match="list.yaml: not a mapping of the sections model, tasks, training"):
        read_command(["--config", str(path)])


def test_null_is_the_default_metrics(write_config, mixture_config):
    mixture_config["tasks"]["animal"]["metrics"] = None
    path = write_config(mixture_config)
    assert read_command(["--config", path]).config.tasks["animal"].metrics == []
    mixture_config["tasks"]["animal"]["metrics"] = ["f1"]
    path = write_config(mixture_config)
    assert read_command(["--config", path, "--tasks.animal.metrics", "null"]).config.tasks["animal"].metrics == []
