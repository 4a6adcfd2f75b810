"""Shares of time by a clock we set ourselves, and a trace of real steps."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.training import goodput


def test_shares_add_up_to_one(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    run = goodput.Goodput()
    with run.phase("compile"):
        now[0] += 3
    now[0] += 6
    with pytest.raises(KeyError), run.phase("data"):        # what fails has taken its time, too
        now[0] += 1
        raise KeyError
    shares = run.shares()
    assert shares["time/goodput"] == pytest.approx(0.6) and shares["time/compile"] == pytest.approx(0.3)
    assert shares["time/data"] == pytest.approx(0.1) and sum(shares.values()) == pytest.approx(1)
    assert run.text() == "60% of the time in steps (compile 30%, data 10%)"


def test_a_profile_holds_the_steps_between(tmp_path):
    said = []
    with goodput.Profile((2, 3), tmp_path / "profile") as profile:
        for step in range(1, 5):
            profile.before(step)
            said.append(profile.after(step, {"loss": jnp.float32(step) + 1}))
    assert [bool(s) for s in said] == [False, False, True, False] and str(tmp_path) in said[2]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_profile_that_the_run_ends_first_is_closed(tmp_path):
    with goodput.Profile((1, 99), tmp_path / "profile") as profile:
        profile.before(1)
        jax.block_until_ready(jnp.ones(2))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_profile_writes_nothing(tmp_path):
    with goodput.Profile(None, tmp_path / "profile") as profile:
        profile.before(1)
        assert profile.after(1, {}) is None
    assert not (tmp_path / "profile").exists()
