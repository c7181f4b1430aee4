"""One process at a time computes on a GPU; which GPU it is does not matter here, so none is needed."""

import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from flows.orchestration.gpu_slot import gpu_slot
from flows.orchestration.progress import RunStoppedError

_HOLD = """
import sys
from flows.orchestration.gpu_slot import gpu_slot

with gpu_slot(sys.argv[1], on_wait=print, check=lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def gpu() -> str:
    return f"test {secrets.token_hex(4)}"


@pytest.fixture
def holder(gpu: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the GPU until it is killed."""
    command = [sys.executable, "-c", _HOLD, gpu]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_run_waits_for_the_process_that_has_the_gpu_and_says_so_once(gpu: str, holder: subprocess.Popen[str]) -> None:
    said: list[str] = []
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:  # a killed holder keeps nobody waiting
            holder.kill()

    with gpu_slot(gpu, on_wait=said.append, check=look):
        holder.wait(10)
    assert looks >= 3
    assert [text.split("(")[0] for text in said] == [
        f"GPU {gpu} is in use by another run on this machine; waiting for it. "
    ]


def test_run_that_is_stopped_waits_no_longer(gpu: str, holder: subprocess.Popen[str]) -> None:
    def stop() -> None:
        raise RunStoppedError("stopped")

    with pytest.raises(RunStoppedError), gpu_slot(gpu, on_wait=lambda text: None, check=stop):
        pytest.fail("the other process has it")
    holder.kill()
    holder.wait(10)
    with gpu_slot(gpu, on_wait=pytest.fail, check=lambda: None):
        pass


@pytest.mark.parametrize(("num_threads", "at_once"), [(2, True), (8, False)], ids=["together", "coming and going"])
def test_threads_of_a_process_share_their_turn_and_take_nobody_for_another_run(
    gpu: str, num_threads: int, at_once: bool
) -> None:
    together = threading.Barrier(num_threads, timeout=10)
    said: list[str] = []

    def use() -> None:
        for _ in range(20):
            if not at_once:
                together.wait()
            with gpu_slot(gpu, on_wait=said.append, check=lambda: None):
                if at_once:
                    together.wait()

    threads = [threading.Thread(target=use) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == []
    assert not together.broken


def test_other_gpus_are_free(gpu: str, holder: subprocess.Popen[str]) -> None:
    with gpu_slot(f"{gpu} b", on_wait=pytest.fail, check=lambda: None):
        assert holder.poll() is None
