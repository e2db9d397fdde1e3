"""A run's mirror in Weights & Biases. The store is the truth: nothing here may stop or slow training."""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from normloss.config import Config
from normloss.errors import named
from normloss.runs.store import Run

PROBE_SECONDS, INIT_SECONDS, FINISH_SECONDS = 2, 15, 60


class Tracker:
    """The mirror of a run; without a W&B run, as with wandb.mode=disabled or a service that failed, it does nothing.

    The run's id is the W&B id and its steps are W&B's, so that a resumed run continues the same W&B run. W&B leaves
    out a step that it has: what a run that was killed logs again is there once. A thread talks to the client, whose
    log() can take seconds; training only leaves things for it.
    """

    def __init__(self, run: Any = None) -> None:
        self.run = run
        self.queue: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="wandb tracker", daemon=True)
        if run is not None:
            self.thread.start()
            self.queue.put(lambda: run.define_metric("*", step_metric="step"))

    def log(self, record: dict[str, Any]) -> None:
        """Log an epoch's metrics."""
        if self.run is not None:
            self.queue.put(lambda: send(self.run, record))

    def close(self, final: dict[str, Any] | None = None) -> None:
        """Log the final metrics, if training came to its end, and close."""
        if self.thread.is_alive():
            if final is not None:
                self.queue.put(lambda: self.run.summary.update(final))
            self.queue.put(lambda: self.run.finish())
            self.queue.put(None)
            self.thread.join(FINISH_SECONDS + 5)

    def _work(self) -> None:
        """Do what is in the queue; a failing service costs its line and the tracker, never the training."""
        try:
            for call in iter(self.queue.get, None):
                call()
        except Exception as error:  # noqa: BLE001  whatever the service or its client raises
            print(f"W&B failed and is off from here ({named(error)}); the store has everything", flush=True)
            self.run = None


def send(run: Any, record: dict[str, Any]) -> None:
    """Log the numbers of an epoch's record to W&B at the epoch's last step."""
    run.log({key: value for key, value in record.items() if not isinstance(value, list)}, step=record["step"])


def open_tracker(cfg: Config, run: Run) -> Tracker:
    """Open the run's tracker in its wandb.mode.

    auto: as W&B's own variables and settings say; else online if there is a key and the host answers within two
    seconds, else offline.
    """
    mode: str = cfg.wandb.mode
    if mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"):
        return Tracker()
    try:
        import wandb
    except Exception as error:  # noqa: BLE001  not installed, or not with these versions
        print(f"W&B cannot be imported and is off ({named(error)})", flush=True)
        return Tracker()

    # after a failed online start the client must be torn down before it may start offline
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            if attempt == "auto":
                attempt = choose_mode(wandb)
            tracker = Tracker(start(wandb, cfg, run.path, attempt))
            if attempt == "online":  # offline the client warns that there is no address
                run.note(wandb=tracker.run.url)
            return tracker
        except Exception as error:  # noqa: BLE001  UsageError, CommError, AuthenticationError, ...
            print(f"W&B cannot start {attempt} ({named(error)}): the store has everything", flush=True)
            wandb.teardown()
    return Tracker()


def start(wandb: Any, cfg: Config, folder: Any, mode: str, finish_seconds: float = FINISH_SECONDS) -> Any:
    """Call wandb.init for the run of a config; the client's own files go into `folder`."""
    logging.getLogger("wandb").setLevel(logging.ERROR)
    own = cfg.wandb
    ours = {  # each with the variable of W&B's that wins under wandb.mode=auto
        "project": ("WANDB_PROJECT", own.project),
        "entity": ("WANDB_ENTITY", own.entity),
        "group": ("WANDB_RUN_GROUP", own.group),
        "tags": ("WANDB_TAGS", own.tags),
        "name": ("WANDB_NAME", cfg.label),
        "dir": ("WANDB_DIR", folder),
    }
    return wandb.init(
        id=cfg.id,
        config=cfg.model_dump(mode="json"),
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            init_timeout=INIT_SECONDS, finish_timeout=finish_seconds, silent=True, console="off", x_disable_stats=False
        ),
        **{key: value for key, (name, value) in ours.items() if own.mode != "auto" or not os.environ.get(name)},
    )


def choose_mode(wandb: Any) -> str:
    """Return the mode of WANDB_MODE or `wandb offline`; else online if that is possible."""
    mode = {"dryrun": "offline", "run": "online"}.get(said := wandb.setup().settings.mode, said)
    if mode != "online" or os.environ.get("WANDB_MODE"):
        return mode
    return "online" if reachable(wandb) else "offline"


def reachable(wandb: Any) -> bool:
    """Return whether W&B's host takes a connection in two seconds and there is a key (environment, settings, netrc)."""
    url = urlsplit(wandb.setup().settings.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return wandb.login(prompt=False, verify=False)
