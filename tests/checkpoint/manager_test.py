"""What is saved comes back bit for bit on any mesh; whatever is damaged is named and never restored."""

import errno
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.checkpoint import digests, manager
from mmjax.checkpoint.manager import CheckpointError, CheckpointManager
from mmjax.parallel import make_mesh

pytestmark = pytest.mark.quick

SPLIT = P("fsdp", "model")


def make_state(mesh_sizes=None, spec=SPLIT):
    mesh = make_mesh(mesh_sizes or {"fsdp": 8})
    w = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    return {"step": jnp.int32(3),
            "trainable": {"lm": {"w": jax.device_put(w, NamedSharding(mesh, spec))}},
            "frozen": {"lm": {"b": jnp.arange(3, dtype=jnp.bfloat16)}, "vision": {"w": jnp.float32([0.1, 0.2])}},
            "opt_state": ({"count": jnp.int32(7)}, None, {"mu": jnp.ones(2)})}


def template(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 5 and 10; tests that damage it work on a copy."""
    run = tmp_path_factory.mktemp("run")
    with CheckpointManager(run) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, make_state(), b"data %d" % step, {"seed": step})
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_restores_the_latest_or_a_given_step(saved):
    state = make_state()
    with CheckpointManager(saved) as checkpoints:
        latest, first = checkpoints.restore(template(state)), checkpoints.restore(template(state), step=5)
    assert_same(latest.state, state)
    assert latest[1:] == ((b"data 10",), {"seed": 10}, 10)
    assert first[1:] == ((b"data 5",), {"seed": 5}, 5)
    assert sorted(p.name for p in (saved / "checkpoints" / "10").iterdir() if p.is_dir()) == ["config", "data", "state"]


@pytest.mark.parametrize("sizes, spec", [({"fsdp": 4, "model": 2}, SPLIT), ({"data": 8}, P()),
                                         ({"model": 8}, P(None, "model"))])
def test_restores_onto_another_mesh(saved, sizes, spec):
    state = make_state(sizes, spec)
    with CheckpointManager(saved) as checkpoints:
        got = checkpoints.restore(template(state)).state
    assert_same(got, state)
    assert got["trainable"]["lm"]["w"].sharding == state["trainable"]["lm"]["w"].sharding


def test_a_save_is_a_snapshot_even_if_the_state_is_donated_at_once(tmp_path):
    double = jax.jit(lambda x: jax.tree.map(lambda v: v * 2, x), donate_argnums=0)
    state = {"trainable": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
    want, spec = np.asarray(state["trainable"]["w"]).copy(), template(state)
    with CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(1, state, b"", {})
        for _ in range(3):
            state = double(state)
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(spec).state["trainable"]["w"], want)


def test_keeps_the_latest_and_clears_what_a_killed_save_left(tmp_path):
    left = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    with CheckpointManager(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jnp.ones(2)}, b"", {})
        checkpoints.save(3, {"w": jnp.zeros(2)}, b"", {})       # already there: not written again
        checkpoints.wait()
        assert manager.steps(tmp_path) == [2, 3] and not left.exists()
        assert checkpoints.restore(template({"w": jnp.ones(2)})).state["w"][0] == 1


def test_a_save_in_flight_outlives_an_exception(tmp_path):
    with pytest.raises(SystemExit), CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(4, make_state(), b"", {})
        raise SystemExit(0)
    assert manager.steps(tmp_path) == [4]


def test_a_save_that_fails_is_reported_and_leaves_no_checkpoint(run, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    match = "could not be written .*No space left.*checkpoints there: 5, 10"
    with pytest.raises(CheckpointError, match=match), CheckpointManager(run) as checkpoints:
        monkeypatch.setattr(digests, "write_manifest", full)
        checkpoints.save(15, make_state(), b"", {})
    with pytest.raises(CheckpointError, match=match), CheckpointManager(run) as checkpoints:
        checkpoints.save(15, make_state(), b"", {})
        checkpoints.wait()
    assert manager.steps(run) == [5, 10]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def test_one_flipped_bit_in_any_file_is_detected(run):
    step = run / "checkpoints" / "10"
    files = [p for p in step.rglob("*") if p.is_file() and str(p.relative_to(step)) not in digests.REWRITTEN]
    assert len(files) >= 8
    for path in files:
        flip(path)
        assert digests.damage(step) == [f"{path} has changed since it was written (CRC-32 differs)"]
        flip(path)
    assert digests.damage(step) == []
    halves = digests.damage(step, 0, 2) + digests.damage(step, 1, 2)
    assert halves == []


@pytest.mark.parametrize("how, message", [
    (lambda p: p.write_bytes(p.read_bytes()[:-1]), r"/state/manifest.ocdbt has \d+ bytes, but \d+ were written"),
    (lambda p: p.unlink(), r"/state/manifest.ocdbt is missing"),
    (lambda p: (p.parent.parent / "digests.json").unlink(), r"/10/digests.json is missing: the save was not completed"),
    (lambda p: (p.parent.parent / "digests.json").write_text("{"), r"/10/digests.json is not readable as JSON"),
    (lambda p: shutil.rmtree(p.parent.parent / "data"), r"/data/commit_success.txt is missing \(and 1 more files\)"),
])
def test_damage_is_one_message_with_the_file_and_the_way_out(run, how, message):
    how(run / "checkpoints" / "10" / "state" / "manifest.ocdbt")
    with CheckpointManager(run) as checkpoints:
        with pytest.raises(CheckpointError, match=f"step 10 is damaged: .*{message}.*fall back to step 5") as error:
            checkpoints.restore(template(make_state()))
        assert "\n" not in str(error.value)
        assert checkpoints.restore(template(make_state()), step=5).step == 5
    with pytest.raises(CheckpointError, match="is damaged"):
        manager.restore_params(run)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")   # TensorStore's reads that came late
def test_unreadable_arrays_behind_intact_digests_are_one_line(run):
    step = run / "checkpoints" / "5"
    (step / "state" / "manifest.ocdbt").write_bytes(b"nonsense")
    digests.write_manifest(step)
    with pytest.raises(CheckpointError, match="5/state is not readable: .*it is the oldest") as error:
        manager.restore_params(run, step=5)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)
    del error
    gc.collect()


def test_a_missing_checkpoint_is_named(tmp_path, run):
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}/none/checkpoints; train first"):
        manager.restore_params(tmp_path / "none")
    with pytest.raises(CheckpointError, match="choose one of its stages: run"):
        manager.restore_params(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint of step 7 in .*, only 5, 10"):
        manager.restore_params(run, step=7)


@pytest.mark.parametrize("change, message", [
    (lambda s: s["trainable"]["lm"].update(w=jnp.zeros((16, 9))), r"trainable/lm/w with shape \(16, 8\), .*\(16, 9\)"),
    (lambda s: s["frozen"]["vision"].update(v=jnp.zeros(2)), r"lacks 'frozen/vision/v'; nearest .*: frozen/vision/w"),
    (lambda s: s["frozen"].pop("vision"), r"has the unexpected 'frozen/vision/w'"),
])
def test_arrays_of_another_model_are_refused_by_name(saved, change, message):
    state = make_state()
    change(state)
    with CheckpointManager(saved) as checkpoints, pytest.raises(CheckpointError, match=message):
        checkpoints.restore(template(state))


def test_another_number_of_processes_gets_the_data_states_of_all(run, monkeypatch):
    monkeypatch.setattr(manager, "_data_name", lambda: "process_0-of-2")
    with CheckpointManager(run) as checkpoints:
        assert checkpoints.restore(template(make_state())).data == (b"data 10",)


def test_params_come_whole_or_by_part_whatever_was_trained(saved):
    state = make_state()
    want = {"lm": {**state["frozen"]["lm"], **state["trainable"]["lm"]}, "vision": state["frozen"]["vision"]}
    assert_same(manager.restore_params(saved), want)
    assert_same(manager.restore_params(saved, "lm"), want["lm"])
    part = template(want["lm"]) | {"b": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=want["lm"]["b"].sharding)}
    got = manager.restore_params(saved, "lm", part)
    assert_same(got, {"b": jnp.arange(3, dtype=jnp.float32), "w": want["lm"]["w"]})
    assert got["w"].sharding == want["lm"]["w"].sharding


def test_params_that_do_not_fit_are_refused_by_name(saved):
    lm = template(make_state()["frozen"]["lm"])
    with pytest.raises(CheckpointError, match="no parameters under 'lmm', only under lm, vision"):
        manager.restore_params(saved, "lmm")
    with pytest.raises(CheckpointError, match="has the unexpected 'lm/w'"):
        manager.restore_params(saved, "lm", lm)
    with pytest.raises(CheckpointError, match="lacks 'vision/b'"):
        manager.restore_params(saved, "vision", lm)
