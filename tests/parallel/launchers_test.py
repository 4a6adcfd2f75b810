"""Who started this process, from the environment alone."""

import pytest

from mmjax.parallel import launchers

pytestmark = pytest.mark.quick
PLAIN = {"COORDINATOR_ADDRESS": "10.0.0.1:8476", "NUM_PROCESSES": "4", "PROCESS_ID": "3"}


@pytest.mark.parametrize("env", [
    {},
    PLAIN | {"NUM_PROCESSES": "1", "PROCESS_ID": "0"},
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"},                                     # sbatch, but not srun
    {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": ""},
    {"NUM_PROCESSES": "4"},                                                         # somebody else's
])
def test_a_process_alone(env):
    assert launchers.find(env) is None


@pytest.mark.parametrize("env, launcher", [
    ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, "SLURM"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "a TPU pod"),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "a TPU pod"),
])
def test_jax_finds_the_arguments_of_a_known_launcher(env, launcher):
    assert launchers.find(env) == (launcher, {})


@pytest.mark.parametrize("prefix", ["", "JAX_"])
def test_plain_variables(prefix):
    place = launchers.find({prefix + name: value for name, value in PLAIN.items()} | {"SLURM_PROCID": "0"})
    assert place.arguments == dict(coordinator_address="10.0.0.1:8476", num_processes=4, process_id=3,
                                   cluster_detection_method="deactivate")


@pytest.mark.parametrize("change, message", [
    ({"PROCESS_ID": ""}, "COORDINATOR_ADDRESS=10.0.0.1:8476 is set, but not PROCESS_ID; set all of"),
    ({"PROCESS_ID": "4"}, "PROCESS_ID=4 must be a number from 0 to NUM_PROCESSES-1, with NUM_PROCESSES=4"),
    ({"NUM_PROCESSES": "four"}, "PROCESS_ID=3 must be a number .* NUM_PROCESSES=four"),
    ({"COORDINATOR_ADDRESS": "10.0.0.1"}, "COORDINATOR_ADDRESS=10.0.0.1 must be host:port of process 0"),
])
def test_contradictions_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        launchers.find(PLAIN | change)
