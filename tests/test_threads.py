"""Two threads that load at once: what belongs to the whole process is put back as it was."""

import os
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import gguf
import pytest
import torch
from huggingface_hub import constants
from transformers.utils import logging

from alignscope.probes.gguf_file import alone
from alignscope.probes.loading import load
from alignscope.probes.quiet import quiet_loading

Switched = Callable[[], AbstractContextManager]


def overlapping(first: Switched, second: Switched) -> None:
    """The second begins while the first is inside, and ends after it: the order that left the settings behind."""
    inside, begun = threading.Event(), threading.Event()

    def one() -> None:
        with first():
            inside.set()
            begun.wait(10)
            time.sleep(0.1)

    def other() -> None:
        inside.wait(10)
        begun.set()
        with second():
            time.sleep(0.3)

    threads = [threading.Thread(target=one), threading.Thread(target=other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_overlapping_loads_leave_the_process_online_and_as_loud_as_before(online):
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    overlapping(lambda: quiet_loading(offline=True), lambda: quiet_loading(offline=True))
    assert "HF_HUB_OFFLINE" not in os.environ
    assert constants.HF_HUB_OFFLINE is False
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)) == before
    assert torch.equal(torch.rand(1), expected)


def test_a_load_that_may_ask_the_hub_is_not_cut_off_by_one_that_may_not(online):
    seen = []

    class Asking:
        def __enter__(self):
            self.quiet = quiet_loading(offline=False)
            self.quiet.__enter__()
            seen.append(constants.HF_HUB_OFFLINE)

        def __exit__(self, *error):
            return self.quiet.__exit__(*error)

    overlapping(lambda: quiet_loading(offline=True), Asking)
    assert seen == [False]


def test_a_load_within_a_load_goes_on_and_the_outermost_puts_back(online):
    with quiet_loading(offline=True):
        with quiet_loading(offline=True):
            assert constants.HF_HUB_OFFLINE is True
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False


def test_overlapping_gguf_files_leave_the_reader_as_it_was(tmp_path):
    original = gguf.GGUFReader
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        file.write_bytes(b"")
    overlapping(lambda: alone(files[0], "first"), lambda: alone(files[1], "second"))
    assert gguf.GGUFReader is original


def test_models_loaded_by_threads_at_once_are_those_loaded_in_turn(zoo, online):
    found = {}
    names = ["llama", "gpt2", "qwen3", "gemma"]
    threads = [threading.Thread(target=lambda name=name: found.update({name: load(zoo[name])})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {name: subject.fingerprint for name, subject in found.items()} == {
        name: load(zoo[name]).fingerprint for name in names
    }
    assert constants.HF_HUB_OFFLINE is False
