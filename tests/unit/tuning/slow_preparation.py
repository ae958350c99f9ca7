"""One of two processes that prepare a training whose rows take long to render, and say how they fared.

Arguments: the model's folder and a folder that both share. Environment: that of torch.distributed.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from tests.eventually import eventually
from tests.unit.tuning.job import boxes
from tests.unit.tuning.trained import configuration, job, table

from kaito_tuning.process.stop import StopRequest
from kaito_tuning.progress.history import History
from kaito_tuning.training import build
from kaito_tuning.training.watcher import Watcher

SECONDS = 1
"""How long a process waits for another once the rows are prepared, less than preparing them takes."""
SLOW = (
    "{% for i in range(1500) %}{% for j in range(3000) %}{% endfor %}{% endfor %}"
    "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
)


def main(model: Path, folder: Path) -> None:
    """Writes ``prepared-RANK`` when the rows are, and ``gave-up`` when the second has waited for the first in vain."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    dist.barrier()
    dist.group.WORLD.set_timeout(timedelta(seconds=SECONDS))
    arguments = {"ddp_timeout": SECONDS, "max_length": 64, "max_steps": 1}
    config = configuration(ModelConfig={"chat_template": SLOW}, TrainingArguments=arguments)
    rows = table(boxes(8))
    work = job(model, folder / f"output-{rank}", config, rows, processes=2, rank=rank)
    watcher = Watcher(lambda _: None, StopRequest(), History(), key=work.key, processes=2)
    trainer, *_ = build.build(work, work.load_base(), watcher, [], halve=False)
    assert trainer.args.ddp_timeout == SECONDS
    (folder / f"prepared-{rank}").touch()
    if rank == 1:
        try:
            dist.barrier()
        except RuntimeError:
            (folder / "gave-up").touch()
    eventually((folder / "gave-up").exists, timeout=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
