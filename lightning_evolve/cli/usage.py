"""The help texts, short and by hand; ``fit --print_config`` shows every option there is."""

from __future__ import annotations

OVERVIEW = """\
usage: lightning-evolve COMMAND [options]

Classifiers that keep improving themselves: a learned update rule on top of PyTorch Lightning.

commands:
  fit        train, then report on held-out tasks
  validate   score a checkpoint on the validation tasks
  test       score a checkpoint on the test tasks, with the table of rivals
  predict    write predictions.csv
  repeat     fit once for each of several seeds, and give means and intervals over them
  sweep      fit with many settings from a sweep file of W&B, and find the best; needs no server
  export     save the rule that a run has learned, for LearnedOptimizer
  evolve     keep a classifier current for as long as records arrive
  history    who was champion when, and why
  rollback   put an earlier champion in use again
  serve      answer over HTTP with the champion of an evolving run, and take corrections

options:
  -h, --help     this text; COMMAND --help for the options of a command
  --version      print the version

examples:
  lightning-evolve fit --config experiments/quickstart.yaml
  lightning-evolve test --config experiments/quickstart.yaml --ckpt_path best
"""

_COMMON = """\
  -c, --config FILE     YAML file; several are laid over each other, and options over them all
  --run_dir DIR         directory of the run (default: runs/NAME after the config file)
  --seed N              seed of everything that is drawn (default: 0)
  --data.K VALUE        option K of the data, such as --data.source FOLDER
  --model.K VALUE       option K of the model, such as --model.steps 20
  --trainer.K VALUE     option K of Lightning's Trainer, such as --trainer.devices 4
  --print_config        print every option with its value and stop
"""

_FIT = f"""\
usage: lightning-evolve fit --config FILE [options]

Trains, and then reports on held-out tasks. The run's directory gets config.yaml, metrics.csv,
checkpoints/, results.json and curves.png; one that exists is never overwritten.

options:
{_COMMON}\
  --alpha X             inner step size
  --beta X              outer step size
  --steps K             inner steps an episode
  --ckpt_path last      go on with the run in its directory, from its last checkpoint
  --ckpt_path FILE      start a new run from a checkpoint
  --checkpoints.K VALUE monitor, mode (min or max), every_n_train_steps
  --comparison.K VALUE  enabled, rivals, tuning_tasks, points
  --wandb [MODE]        log to Weights & Biases too: offline (if no MODE is given) or online
  --wandb.K VALUE       project, and checkpoint (true logs the best one as an artifact)

examples:
  lightning-evolve fit --config experiments/quickstart.yaml
  lightning-evolve fit --config experiments/quickstart.yaml --alpha 0.03 --beta 1e-3 --seed 1
  lightning-evolve fit --run_dir runs/quickstart --ckpt_path last
"""

_EVALUATE = """\
usage: lightning-evolve {command} --config FILE [options]

{what}

options:
{common}\
  --ckpt_path WHAT      best, last or a file (default: best)
With --run_dir alone, the configuration is that of the run.

examples:
  lightning-evolve {command} --config experiments/quickstart.yaml --ckpt_path best
  lightning-evolve {command} --run_dir runs/quickstart
"""

_REPEAT = """\
usage: lightning-evolve repeat --seeds N --config FILE [options of fit]

Runs fit for the seeds 0 to N-1, one after the other, into runs/NAME-seeds/seed-0 and so on, prints
means with 95% intervals over the seeds, and writes them to summary.json. Seeds that are finished
are kept, and one that was interrupted goes on, so the same command again resumes.

options:
  --seeds N             how many seeds (default: 5)
  --run_dir DIR         directory of all the runs (default: runs/NAME-seeds)

example:
  lightning-evolve repeat --seeds 5 --config experiments/quickstart.yaml
"""

_SWEEP = """\
usage: lightning-evolve sweep FILE [--count N] [--jobs J] [options of fit]

Runs fit once for each choice of the parameters in a sweep file of Weights & Biases (grid, random or
bayes; early termination by hyperband), each in a process of its own, and prints a table, the best
run and its command. Runs go into runs/NAME-sweep/run-000 and so on with their results.json; one
that fails is recorded, and the rest goes on. No server: wandb sweep and wandb agent take the same
file, but are not needed.

options:
  --count N             how many trials (default: the whole grid, else the file's run_cap or 20)
  --jobs J              runs at a time (default: 1)
  --seeds S             runs a trial, with the seeds 0 to S-1; the objective is their mean
                        (default: 1, with the seed of the experiment or of --seed)
  --run_dir DIR         directory of all the runs (default: runs/NAME-sweep)
  --resume              go on with a sweep that was interrupted; finished runs are kept, and those
                        that failed are tried again
  --wandb MODE          off, offline or online for all runs (default: off, whatever the file says)

examples:
  lightning-evolve sweep sweeps/alpha_beta.yaml --count 20 --jobs 2
  lightning-evolve sweep sweeps/alpha_beta.yaml --resume
"""

_EXPORT = """\
usage: lightning-evolve export RUN FOLDER

Saves the rule that a run has learned, of its best checkpoint (of the last, where no best one was
kept), as a folder for LearnedOptimizer.from_pretrained: rule.safetensors, config.json and a model
card. A rule that is there already is replaced.

example:
  lightning-evolve export runs/quickstart my_rule
"""

_EVOLVE = """\
usage: lightning-evolve evolve --config FILE [options]

Keeps a classifier current for as long as records arrive: collects them, processes them, grows
challengers from the champion by the meta-learned update, and promotes one where the gate lets it
pass. The run's directory holds a journal and all champions; killed at any moment, the same command
goes on. It ends when nothing is due; --watch waits for more.

options:
  -c, --config FILE     YAML file; a run that exists needs none
  --run_dir DIR         directory of the run (default: runs/NAME after the config file)
  --generations N       stop when the run has so many
  --watch               wait for more records
  --dry-run             say what the next generation would do, and change nothing
  --seed N              seed of everything that is drawn (default: 0)
  --SYSTEM.K VALUE      option K of pretrained, processing, training, optimisation, gate or monitor
  --print_config        print every option with its value and stop

examples:
  lightning-evolve evolve --config experiments/evolution.yaml
  lightning-evolve evolve --run_dir runs/evolution --watch
"""

_HISTORY = """\
usage: lightning-evolve history RUN

Prints the generations of a run of evolve with their data, scores and verdicts, who was champion
when, the alarms, and what became of the records.

example:
  lightning-evolve history runs/evolution
"""

_ROLLBACK = """\
usage: lightning-evolve rollback RUN [--to N]

Puts an earlier champion in use again, exactly as it was; a server picks it up. Records stay, and
the next generation grows from that champion.

options:
  --to N                generation of that champion (default: the one before)

example:
  lightning-evolve rollback runs/evolution --to 3
"""

_SERVE = """\
usage: lightning-evolve serve RUN [--port N] [options]

Answers over HTTP with the champion of a run of evolve; one that is promoted or rolled back
meanwhile is picked up within seconds. Needs pip install 'lightning-evolve[serve]'.

  POST /predict    JSON with "text" or "texts"; answers are kept in the run before they leave
  POST /feedback   JSON with the "id" of an answer and its right "label", for evolve to learn
  GET  /           a page for people: scores over generations, alarms, a text to try and correct
  GET  /health     whether it is ready, and with which champion
  GET  /metrics    for Prometheus
  GET  /state      what the page shows, as JSON

options:
  --port N              port to listen on (default: 8000)
  --host ADDRESS        127.0.0.1 (default), 0.0.0.0 or ::; the last two let other machines ask,
                        and need a token of 16 or more characters in LIGHTNING_EVOLVE_TOKEN. Where
                        that is set, clients send Authorization: Bearer TOKEN
  --rate R              requests a second of each client, with bursts of twice as many; more are
                        answered by 429 (default: any number on 127.0.0.1, else 100)
  --keep_days N         delete predictions after so many days (default: never); what they were
                        corrected to stays
  --max_batch_size N    requests that are predicted for together (default: 32)
  --batch_timeout S     seconds that the first of a batch waits for others (default: 0.002)

examples:
  lightning-evolve serve runs/evolution --port 8000
  export LIGHTNING_EVOLVE_TOKEN=$(openssl rand -hex 16)
  lightning-evolve serve runs/evolution --host 0.0.0.0
"""


def _evaluate(command: str, what: str) -> str:
    return _EVALUATE.format(command=command, what=what, common=_COMMON)


USAGE = {
    "fit": _FIT,
    "validate": _evaluate(
        "validate",
        "Scores a checkpoint on the validation tasks; writes validate.json to the run's directory.",
    ),
    "test": _evaluate(
        "test",
        "Scores a checkpoint on the test tasks; writes test.json to the run's directory.",
    ),
    "predict": _evaluate(
        "predict",
        "Predicts with a checkpoint; writes predictions.csv to the run's directory.",
    ),
    "repeat": _REPEAT,
    "sweep": _SWEEP,
    "export": _EXPORT,
    "evolve": _EVOLVE,
    "history": _HISTORY,
    "rollback": _ROLLBACK,
    "serve": _SERVE,
}
