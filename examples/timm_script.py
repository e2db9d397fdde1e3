"""timm's own train.py with norm loss: python examples/timm_script.py TRAIN_PY LAM [options of timm's script]

timm makes model and optimizer with create_optimizer_v2: that is where the hook goes. Give --weight-decay 0.
"""

import runpy
import sys

import timm.optim

import normloss


def hooked(model, *arguments, make=timm.optim.create_optimizer_v2, **options):
    optimizer = make(model, *arguments, **options)
    normloss.NormLoss(model, lam=lam).hook(optimizer)
    return optimizer


if __name__ == "__main__":
    script, lam = sys.argv[1], float(sys.argv[2])
    sys.argv = [script, *sys.argv[3:]]
    timm.optim.create_optimizer_v2 = hooked
    runpy.run_path(script, run_name="__main__")
