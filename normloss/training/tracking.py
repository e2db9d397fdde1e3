"""The Weights & Biases mirror of a run. The store is the truth: nothing here may stop or slow training."""

import logging
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from normloss.config import Config
from normloss.errors import Stop
from normloss.runs.store import Run

PROBE_SECONDS, INIT_SECONDS, FINISH_SECONDS = 2, 15, 60
POINTS_PER_EPOCH = 20  # step cross entropies sent


class Mirror:
    """No mirror: wandb.mode=disabled, and what is left once the service failed."""

    def log(self, record: dict[str, Any], ce: np.ndarray) -> None:
        """An epoch's metrics and the cross entropies of its steps."""

    def finish(self, final: dict[str, Any]) -> None:
        """The final metrics."""

    def leave(self) -> None:
        """Training stopped before its end."""


class WandBMirror(Mirror):
    """The run's id is the W&B id, so that a resumed run goes on in the same W&B run."""

    def __init__(self, run: Any) -> None:
        self.run = run
        run.define_metric("*", step_metric="step")

    def log(self, record: dict[str, Any], ce: np.ndarray) -> None:
        first = record["step"] - len(ce)
        for i in range(0, len(ce), max(1, len(ce) // POINTS_PER_EPOCH)):
            self._guard(lambda i=i: self.run.log({"step": first + i + 1, "ce": float(ce[i])}))
        numbers = {key: value for key, value in record.items() if not isinstance(value, list)}
        self._guard(lambda: self.run.log(numbers))

    def finish(self, final: dict[str, Any]) -> None:
        self._guard(lambda: self.run.summary.update(final))
        self.leave()

    def leave(self) -> None:
        self._guard(lambda: self.run.finish())

    def _guard(self, call: Callable[[], Any]) -> None:
        """A failing service costs its line and the mirror, never the training."""
        if self.run is None:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001  whatever the service or its client raises
            print(f"W&B failed and is left out from here ({_line(error)}); the store has everything", flush=True)
            self.run = None


def open_mirror(cfg: Config, run: Run) -> Mirror:
    """auto: online when a key is there and the host answers within two seconds, else offline."""
    if cfg.wandb.mode == "disabled":
        return Mirror()
    try:
        import wandb
    except Exception as error:  # noqa: BLE001  not installed, or not with these versions
        print(f"W&B cannot be imported and is left out ({_line(error)})", flush=True)
        return Mirror()

    # after a failed online start the client must be torn down before it may start offline
    for attempt in dict.fromkeys((cfg.wandb.mode, "offline")):
        try:
            if attempt == "auto":
                attempt = "online" if reachable(wandb) else "offline"
            mirror = WandBMirror(start(wandb, cfg, run, attempt))
            if attempt == "online":  # offline the client warns that there is no address
                run.note(wandb=mirror.run.url)
            return mirror
        except Stop:  # a signal
            raise
        except Exception as error:  # noqa: BLE001  UsageError, CommError, AuthenticationError, ...
            print(f"W&B cannot start {attempt} ({_line(error)}): the store has everything", flush=True)
            wandb.teardown()
    return Mirror()


def start(wandb: Any, cfg: Config, run: Run, mode: str) -> Any:
    logging.getLogger("wandb").setLevel(logging.ERROR)
    return wandb.init(
        id=run.id,
        name=cfg.label,
        project=cfg.wandb.project,
        entity=cfg.wandb.entity,
        group=cfg.wandb.group,
        tags=cfg.wandb.tags,
        config=cfg.model_dump(mode="json"),
        dir=run.path,
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, silent=True, console="off", x_disable_stats=False
        ),
    )


def reachable(wandb: Any) -> bool:
    """Whether W&B's host takes a connection within two seconds and a key is there (environment, settings, netrc)."""
    url = urlsplit(wandb.setup().settings.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return wandb.login(prompt=False, verify=False)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
