"""Waiting policies of thread pools are set for a process unless the user has set them."""

from __future__ import annotations

import os

import pytest

from backdoor_lab.core.resources import WAITING, wait_briefly


def test_thread_waiting_policies_set_by_the_user_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *others = WAITING
    for name in WAITING:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(first, "7")
    wait_briefly()
    assert os.environ[first] == "7"
    assert {name: os.environ[name] for name in others} == {n: WAITING[n] for n in others}
