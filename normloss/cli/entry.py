"""Runs a Hydra main with the project's exit statuses: a user's mistake is one line, never a traceback."""

import errno
import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from normloss import signals
from normloss.cli import start, words
from normloss.config import CONFIGS, RETIRED, Config, default_model, did_you_mean, is_gone, section_keys
from normloss.errors import DEFECT, Interrupted, Stop, UserError
from normloss.runs.records import RunWarning
from normloss.sweeps import slurm, tuning
from normloss.sweeps.launch import launch, lines_of, run_queue
from normloss.training import distributed

REFUSED = (HydraException, OmegaConfBaseException, YAMLError)  # what explain() has a line for
MOST_WARNINGS = 20  # lines
STORE_ERRORS = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}


def statuses(task: Callable) -> Callable:
    """Under hydra.main: a Stop leaves with its line and status at once, before Hydra adds lines of its own."""

    @functools.wraps(task)
    def wrapper(*arguments: Any) -> Any:
        try:
            return task(*arguments)
        except Stop as stop:
            line, status = str(stop), stop.status
        except BrokenPipeError:
            line, status = _output_closed(), Interrupted.status
        except Exception:  # noqa: BLE001  shown whole, exit status 1
            traceback.print_exc()
            line, status = DEFECT, 1
        leave(line, status)  # out here the exception is gone, and with it the run's objects and workers

    return wrapper


def run(main: Callable[[], None]) -> None:
    """Call `main`; leave with 0, a Stop's status, 2 for what Hydra refuses, or 1 and a traceback."""
    start.prepare()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1
    try:
        words.check(sys.argv[1:])
        distributed.refuse_many_runs(words.asks_for_many(sys.argv[1:]))
        _refuse_swept_experiments(sys.argv[1:])
        if any(word.startswith("queue=") for word in sys.argv[1:]):
            sys.exit(run_queue(sys.argv[1:]))
        sys.argv[1:] = _with_default_model(sys.argv[1:])
        if tuning.asked(sys.argv[1:]):
            sys.exit(tuning.run(sys.argv[1:]))
        sys.argv[1:] = words.for_each_member(sys.argv[1:])
        if slurm.asked(sys.argv[1:]):
            sys.exit(launch(lines_of(sys.argv[1:]), sys.argv[1:]))
        main()
    except Stop as stop:
        leave(str(stop), stop.status)
    except REFUSED as error:
        leave(explain(error), UserError.status)
    except BrokenPipeError:
        leave(_output_closed(), Interrupted.status)
    except Exception as error:  # noqa: BLE001  shown whole, exit status 1
        # Hydra writes a sweep's multirun.yaml into the store
        if isinstance(error, OSError) and error.errno in STORE_ERRORS:
            leave(f"store: must be a folder that can be written, got {error.filename} ({error.strerror})", 2)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            leave(f"{error.strerror}; free some space and start it again to go on", Interrupted.status)
        traceback.print_exc()
        leave(DEFECT, 1)


def script(work: Callable[[], None]) -> int:
    """Do a script's work; its exit status, after one line where the user asked for what cannot be."""
    try:
        with signals.raised(), print_warnings():
            work()
        sys.stdout.flush()
    except Stop as stop:
        line, status = str(stop), stop.status
    except REFUSED as error:
        line, status = explain(error), UserError.status
    except BrokenPipeError:  # whoever reads, head for instance, has enough
        _output_closed()
        return 0
    except signals.Signalled as signalled:
        line, status = f"stopped by {signalled}; start it again to go on", Interrupted.status
    else:
        return 0
    print(f"normloss: {line}", file=sys.stderr, flush=True)
    return status


@contextmanager
def print_warnings() -> Iterator[None]:
    """Within this block each run that is left out is told once, at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RunWarning)
        try:
            yield
        finally:
            sys.stdout.flush()
            lines = dict.fromkeys(str(warning.message) for warning in caught if warning.category is RunWarning)
            for line in list(lines)[:MOST_WARNINGS]:
                print(f"normloss: warning: {line}", file=sys.stderr, flush=True)
            if len(lines) > MOST_WARNINGS:
                print(f"normloss: warning: and {len(lines) - MOST_WARNINGS} more", file=sys.stderr, flush=True)
    for warning in caught:
        if warning.category is not RunWarning:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def user_error(thing: str, kind: type[Exception]) -> Iterator[None]:
    """Within this block `kind` means that the user asked for what `thing` refuses."""
    try:
        yield
    except kind as error:
        raise UserError(f"{thing}: {error}") from None


@contextmanager
def written(name: str, folder: Path) -> Iterator[None]:
    """Within this block files of `folder`, which was given as `name`, are written; UserError where they cannot be."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{name}: must be a folder that can be written, got {folder} ({error.strerror})") from None


def leave(line: str, status: int) -> None:
    signals.leave_closed_terminal()
    print(f"normloss: {line}", file=sys.stderr, flush=True)
    sys.exit(status)


def _output_closed() -> str:
    """What to say where nobody reads the standard output any more, to which nothing may be written from here on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return "its output was closed; start it again to go on"


def _refuse_swept_experiments(arguments: list[str]) -> None:
    # Hydra would drop the sweep of each and train two default runs (hydra issue 2807)
    for argument in arguments:
        if re.match(r"\+?experiment=.*,", argument):
            raise UserError(f"{argument}: one experiment per command; start one after the other")


def _with_default_model(arguments: list[str]) -> list[str]:
    # the dataset's own file cannot say this: Hydra resolves ${dataset}_${model} before reading it
    chosen = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    model = default_model(chosen.get("dataset", ""))
    if model is None or "model" in chosen:
        return arguments
    place = arguments.index(f"dataset={chosen['dataset']}") + 1
    return [*arguments[:place], f"model={model}", *arguments[place:]]


def explain(error: Exception) -> str:
    """Hydra's or OmegaConf's error in one line: the thing, the requirement and what was got."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing_choice(error)
    text = str(error)
    if isinstance(error, OverrideParseException):
        return words.explain(error.override, text)
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if key and key[1] in RETIRED:
        return is_gone(key[1])
    if key:
        return f"{key[1]}: no such key{_nearest_key(key[1])}"
    group = re.search(r"No match in the defaults list", text) and re.search(r"Could not override '([^']+)'", text)
    if group:
        return f"{group[1]}: no such group; there are: {' '.join(_groups())}"
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]}: must be given"
    sweep = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text)
    if sweep and (word := sweep[1].partition("=")[0]) in RETIRED:
        return is_gone(word)
    if sweep:
        return f"{sweep[1]}: several values need a sweep: python train.py -m {sweep[1]}"
    return " ".join(text.split())


def _explain_missing_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = " ".join(error.options or [])
    if group == "recipe":
        return (
            f"no recipe for this pair of dataset and model ({choice}): there are {options};"
            " borrow one with recipe=cifar10_resnet110"
        )
    elsewhere = "; another sweeper starts python train.py key=value itself (docs/experiments.md)"
    hint = elsewhere if group == "hydra/sweeper" else ""
    return f"{group}: must be one of {options}, got {choice!r}{hint}"


def _groups() -> list[str]:
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def _nearest_key(key: str) -> str:
    """'; did you mean ...' over the keys of the same section, or of the whole config."""
    section, _, word = key.rpartition(".")
    if section in ("train", "wandb"):
        return did_you_mean(word, section_keys([section]), section)
    if section:
        return f"; python train.py --cfg job shows the keys of {section}"
    return did_you_mean(word, [*Config.model_fields, "recipe", "experiment", "debug"])
