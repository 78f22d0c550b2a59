"""A command that is killed or interrupted, wherever that is, goes on to the files of one that was not."""

from __future__ import annotations

import signal
import time

import pytest

from tests.adapt.conftest import Adapt

pytestmark = pytest.mark.slow

MOMENTS = {
    "tuning": lambda one: any(one.runs.glob("tuned/.work-*")),
    "scoring": lambda one: any(one.runs.glob("retained/.work-*")),
    "sampling": lambda one: any(one.runs.glob("samples/.work-*/part-*")),
    "delivering": lambda one: (one.out / "model.part").exists() or (one.out / "model").exists(),
}
"""What shows on the disk that a moment has come, in the order in which they do."""
INTERRUPTED = "cfutils: interrupted; the same command goes on where it stopped\n"


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_to_the_same_files(adapted, tmp_path, kill):
    one = Adapt(tmp_path / "killed")
    for moment, has_come in MOMENTS.items():
        process = one.start()
        while not has_come(one):
            assert process.poll() is None, f"ended before {moment}: {process.communicate()[1]}"
            time.sleep(0.002)
        process.send_signal(kill)
        _, said = process.communicate(timeout=60)
        # to a shell an exit by the signal is 130 too; Python ends so where the interrupt came in the midst of an exec()
        assert process.returncode in ((130, -kill) if kill == signal.SIGINT else (-kill,)), said
        assert said.endswith(INTERRUPTED if kill == signal.SIGINT else "") and "Traceback" not in said
        assert not (one.out / "results.json").exists(), f"killed after {moment}"
    code, said = one.run()
    assert code == 0, said
    assert one.delivered() == adapted.delivered()
    assert not [*one.runs.rglob(".work-*"), *one.runs.rglob("*.part")]
    keys = [{path.name for path in some.runs.glob("*/*") if path.name[0] != "."} for some in (one, adapted)]
    assert keys[0] == keys[1]
