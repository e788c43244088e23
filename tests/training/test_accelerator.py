"""The CPU threads of a process. What the accelerator refuses is tested in test_trainer.py and test_sharding.py."""

import os
from pathlib import Path

import psutil
import pytest
import torch

from diffvit_timm.training import accelerator as module
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.run_config import RunConfig

LAUNCHERS = {"torchrun": "LOCAL_RANK", "accelerate launch": "ACCELERATE_MIXED_PRECISION"}


@pytest.fixture
def environment(monkeypatch):
    """Function: launcher or None, OMP_NUM_THREADS or None, environment of the parent process or its error."""

    class Process:
        parent_environment: object = None

        def parent(self):
            return None if self.parent_environment is None else self

        def environ(self):
            if isinstance(self.parent_environment, Exception):
                raise self.parent_environment
            return self.parent_environment

    def set_environment(launcher=None, threads=None, parent=None):
        for name in (*LAUNCHERS.values(), "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        if launcher:
            monkeypatch.setenv(LAUNCHERS[launcher], "0")
        if threads:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
        Process.parent_environment = parent

    monkeypatch.setattr(module.psutil, "Process", Process)
    return set_environment


def test_threads_that_nobody_set_are_not_the_users(environment):
    environment()
    assert not module._user_set_threads()


def test_threads_that_are_set_without_a_launcher_are_the_users(environment):
    environment(threads="1", parent={})
    assert module._user_set_threads()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_passes_on_the_threads_that_its_own_environment_has(environment, launcher):
    environment(launcher, threads="3", parent={"OMP_NUM_THREADS": "3"})
    assert module._user_set_threads()


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("parent", [{}, None, psutil.AccessDenied(), psutil.NoSuchProcess(1)])
def test_the_one_thread_that_a_launcher_sets_on_its_own_is_not_the_users(environment, launcher, parent):
    environment(launcher, threads="1", parent=parent)
    assert not module._user_set_threads()


def test_a_launcher_without_threads_is_not_asked_for_its_environment(environment):
    environment("torchrun", parent={"OMP_NUM_THREADS": "3"})
    assert not module._user_set_threads()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a process with a GPU keeps torch's threads")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_gets_its_share_of_the_cores_unless_the_user_set_the_threads(environment, monkeypatch, processes):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    environment()
    make_accelerator(RunConfig(), Path("run"))
    assert chosen == [6 // processes]
    environment(threads="4")
    make_accelerator(RunConfig(), Path("run"))
    assert chosen == [6 // processes]
    environment("accelerate launch", threads="1", parent={})
    make_accelerator(RunConfig(), Path("run"))
    assert chosen == [6 // processes] * 2
