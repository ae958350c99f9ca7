"""``python -m kaito_tuning``: the step ``tune`` of a tuning Workspace's Job.

Environment: YAML_FILE_PATH, DATASET_FOLDER_PATH, MODEL_PATH, MODEL_ID, MODEL_REVISION, METHOD, CONTEXT_LENGTH (tokens
of the preset), SERVE_RESULT (false: the model server need not be able to express the adapter), HOST, PORT, PROCESSES
(that train together; one per GPU if absent), TERMINATION_LOG, DEBUG_MODE.
Exit codes: 0 done (now or before), 1 may succeed when tried again, 2 never will, 143 stopped on request, to be
continued from what is on disk.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from kaito_tuning.process import launch, scratch
from kaito_tuning.process.stop import Stopped, StopRequest
from kaito_tuning.run import REFUSED, STOPPED, Settings, run

log = logging.getLogger("kaito_tuning")


def main() -> int:
    """The process: logging, signals, a home folder that can be written, one process per GPU."""
    stop = StopRequest()
    signal.signal(signal.SIGTERM, lambda *_: stop.ask())
    debug = os.environ.get("DEBUG_MODE", "").lower() == "true"
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with scratch.folder("kaito-tuning") as folder:
            os.environ.setdefault("HF_HOME", str(folder))
            os.environ |= {
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_CACHE": str(folder / "datasets"),
                "TOKENIZERS_PARALLELISM": "false",
            }
            if launch.is_worker(os.environ):
                return run(Settings.read(os.environ), stop=stop)
            return _start(folder, stop)
    except Stopped:
        log.info("stopped on request; the next start continues from the newest checkpoint")
        return STOPPED


def _start(folder: Path, stop: StopRequest) -> int:
    settings = Settings.read(os.environ)
    try:
        processes = launch.processes(os.environ, gpus=_gpus)
    except ValueError as error:
        log.error("ConfigInvalid: %s", error)
        return REFUSED
    if processes == 1:
        return run(settings, stop=stop)
    with stop.deferred():
        workers = launch.environments(os.environ, processes, port=launch.free_port(), folder=folder)
        code, rank = launch.run([sys.executable, "-m", "kaito_tuning"], workers, stop)
        sentence = launch.sentence(code, rank, workers)
        if sentence and settings.termination_log.exists():
            settings.termination_log.write_text(sentence)
        if stop.asked and code != STOPPED:
            log.info("stopped; a process ended with %d", code)
    return code


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    sys.exit(main())
