"""Lets Optuna choose λ, one run of train.py a trial: python examples/optuna_search.py [TRIALS] [key=value ...]

Needs `pip install optuna`. What is asked: the lowest test error, or the lowest val_error where `dataset.val` holds
images out of the training set, as a search that is reported should. A run is a folder named by its config, so that a
value that was tried before, or a search that was stopped, costs nothing: train.py finds it done.
"""

import json
import subprocess
import sys
from pathlib import Path

import optuna

from normloss.sweeps.composing import expand

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def error(words: list[str]) -> float:
    """Train the run that these words choose; its error in percent at the last epoch."""
    (cfg,) = expand(words)  # the config, and with it the id, without training
    ran = subprocess.run([sys.executable, TRAIN, *words])
    if ran.returncode == 3:  # diverged: worse than anything
        return 100.0
    ran.check_returncode()
    final = json.loads((Path(cfg.store) / cfg.id / "DONE").read_text())
    return final.get("val_error", final["test_error"])


def main(trials: int, fixed: list[str]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(trials):
        trial = study.ask()
        lam = f"{trial.suggest_float('lam', 1e-4, 1e-1, log=True):.1e}"  # two digits: near values are one run
        study.tell(trial, error([*fixed, f"reg.lam={lam}"]))
    print(f"best of {trials}: {study.best_params} with an error of {study.best_value:.2f} %")


if __name__ == "__main__":
    count = [word for word in sys.argv[1:] if word.isdigit()]
    words = [word for word in sys.argv[1:] if not word.isdigit()]
    main(int(count[0]) if count else 10, words or ["dataset=digits", "model=resnet8", "reg=nl", "wandb.mode=disabled"])
