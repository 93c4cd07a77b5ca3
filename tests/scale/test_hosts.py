"""Processes that decide together: threads of this process, on loopback."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxstab.config import ConfigError, UserError
from jaxstab.scale import many as many_module
from jaxstab.scale.cluster import HostsConfig, Place, place
from jaxstab.scale.many import Many
from jaxstab.scale.peers import call_roll

SILENCE = 1.0


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def together(*functions):
    """What functions return or raise that run at the same time."""

    def result(function):
        try:
            return function()
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(result, functions))


def places(count, port=None):
    port = port or free_port()
    return [Place("localhost", port, count, number) for number in range(count)]


def calls(count, seconds=10.0, which=None):
    return [
        lambda p=p: call_roll(p, seconds, f"node{p.process}")
        for p in places(count)
        if which is None or p.process in which
    ]


class Ended(list):
    """The lines by which processes end, by number."""


@pytest.fixture
def hosts(request):
    """As many processes as the test asks for; `ended` has the lines with which threads would have ended them."""
    count = getattr(request, "param", 3)
    here = places(count)
    rolls = together(*(lambda p=p: call_roll(p, 10.0, f"node{p.process}") for p in here))
    ended = {}
    many = []
    for p, (peers, names) in zip(here, rolls, strict=True):
        many.append(Many(p, peers, names, SILENCE, lambda line, n=p.process: ended.setdefault(n, line)))
    for each in many:
        each.ended = ended
    yield many
    for each in many:
        each._closing = True
    for each in many:
        for peer in each._peers.values():
            peer.close()


def test_all_are_connected_and_know_the_names():
    peers, names = zip(*together(*calls(3)), strict=True)
    assert names == (["node0", "node1", "node2"],) * 3
    assert [sorted(each) for each in peers] == [[1, 2], [0], [0]]


def test_who_is_missing_is_named_to_all_who_are_there():
    began = time.monotonic()
    first, second = together(*calls(4, seconds=1.0, which=(0, 2)))
    assert time.monotonic() - began < 5
    assert str(first) == str(second) == "processes 1, 3 of 4 have not started within 1 s"


def test_a_coordinator_that_isn_t_there_is_named():
    (error,) = together(*calls(2, seconds=0.5, which=(1,)))
    assert str(error).startswith("process 0 doesn't answer at localhost:")


def test_a_process_that_was_started_twice_or_with_another_number_of_them_is_named():
    here = places(3)
    twice = together(*(lambda p=p: call_roll(p, 3.0, f"node{p.process}") for p in (here[0], here[1], here[1])))
    assert "process 1 was started twice, on node1 and node1" in str(twice[0])
    two, three = places(2), places(3)
    other = [two[0], Place("localhost", two[0].port, 3, 1)]
    assert three and all(
        "as one of 3 processes, and process 0 (node0) as one of 2" in str(each)
        for each in together(*(lambda p=p: call_roll(p, 3.0, f"node{p.process}") for p in other))
    )


def test_strangers_at_the_port_are_sent_away():
    here = places(2)

    def stranger():
        for _ in range(50):
            try:
                with socket.create_connection(("localhost", here[0].port), 1) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return None
            except OSError:
                time.sleep(0.05)
        raise AssertionError("nobody listens")

    def late():
        time.sleep(0.5)
        return call_roll(here[1], 10.0, "node1")

    _, (_, names), _ = together(stranger, lambda: call_roll(here[0], 10.0, "node0"), late)
    assert names == ["node0", "node1"]


def test_process_0_tells(hosts):
    assert together(*(lambda h=h: h.told(lambda: [h.process, "x"]) for h in hosts)) == [[0, "x"]] * 3
    assert [h.writes for h in hosts] == [True, False, False]


def test_none_goes_on_before_all_have_met(hosts):
    at = {}

    def meet(h):
        time.sleep(0.3 * h.process)
        h.meet()
        at[h.process] = time.monotonic()

    began = time.monotonic()
    together(*(lambda h=h: meet(h) for h in hosts))
    assert min(at.values()) - began >= 0.6


def test_a_difference_is_named_to_all(hosts):
    values = [{"steps": 8, "seed": 0}, {"steps": 8, "seed": 0}, {"steps": 9, "seed": 0}]
    errors = together(*(lambda h=h: h.agree("config", values[h.process]) for h in hosts))
    assert {str(each) for each in errors} == {
        "process 2 of 3 (node2) has another config than process 0 (node0): steps (there 9, here 8)"
    }
    assert together(*(lambda h=h: h.agree("config", {"steps": 8}) for h in hosts)) == [None] * 3


def test_the_first_reason_is_told(hosts):
    reasons = ["", "", "bad file"]
    assert (
        together(*(lambda h=h: h.any_of(reasons[h.process]) for h in hosts)) == ["process 2 of 3 (node2): bad file"] * 3
    )
    assert together(*(lambda h=h: h.any_of("") for h in hosts)) == [""] * 3


@pytest.mark.parametrize("asking", [(0,), (2,), (0, 1, 2)])
def test_all_stop_at_the_same_boundary(hosts, asking):
    step = threading.Barrier(3)  # as collective operations do, none is more than a step ahead

    def run(h):
        for boundary in range(1, 200):
            time.sleep(0.002 * h.process)
            signal = h.stop(15 if boundary >= 20 and h.process in asking else None)
            if signal is not None:
                return boundary, signal
            if not any(each._stop for each in hosts):
                step.wait(5)
        return None

    results = together(*(lambda h=h: run(h) for h in hosts))
    assert len(set(results)) == 1 and results[0][1] == 15 and 20 <= results[0][0] <= 25


def test_nobody_stops_unasked(hosts):
    assert together(*(lambda h=h: [h.stop(None) for _ in range(100)] for h in hosts)) == [[None] * 100] * 3


def test_a_process_that_ends_ends_all(hosts):
    hosts[2]._closing = True
    hosts[2]._thread.join()
    hosts[2]._peers[0].close()
    time.sleep(1.5)
    assert sorted(hosts[0].ended) == [0, 1]
    assert "process 2 of 3 (node2) has ended" in hosts[0].ended[0]
    assert hosts[0].ended[1].startswith("process 1 of 3 (node1): process 2 of 3 (node2) has ended")


@pytest.mark.parametrize("silent", [0, 2])
def test_a_process_that_is_silent_ends_all(hosts, silent):
    hosts[silent]._tell = lambda **message: None  # it neither ends nor sends, as where the network is cut
    hosts[silent]._silence = 1000.0
    time.sleep(2.5 * SILENCE)
    others = [number for number in range(3) if number != silent]
    assert sorted(number for number in hosts[0].ended if number != silent) == others
    for number in others:
        assert f"process {silent} of 3 (node{silent}) has not been heard of for 1 s" in hosts[0].ended[number]


def test_an_error_of_one_ends_all_and_is_told(hosts, monkeypatch):
    monkeypatch.setattr(many_module, "GRACE", 0.2)

    def fail(h):
        try:
            h.fail(UserError("the disk is full"))
        except Exception as error:
            return error
        return None

    assert fail(hosts[1]) is None
    time.sleep(1.5)
    assert "process 1 of 3 (node1) has ended: the disk is full" in hosts[0].ended[0]
    assert "process 1 of 3 (node1) has ended: the disk is full" in hosts[0].ended[2]


def test_an_error_of_all_is_told_by_process_0_alone(hosts):
    def fail(h):
        try:
            h.fail(UserError("no such file"))
        except Exception as error:
            return type(error).__name__
        finally:
            for peer in h._peers.values() if h.process else ():
                peer.close()
        return "tells"

    assert together(*(lambda h=h: fail(h) for h in hosts)) == ["tells", "EndedElsewhere", "EndedElsewhere"]
    assert not hosts[0].ended


def test_a_process_is_found_by_the_config():
    config = HostsConfig(coordinator="node0:1234", processes=4, process=3)
    assert place(config, {}) == Place("node0", 1234, 4, 3)
    assert place(HostsConfig(), {}) is None
    assert place(HostsConfig(coordinator="node0:1", processes=1, process=0), {}) is None
    assert place(HostsConfig(coordinator="[::1]:77", processes=2, process=0), {}) == Place("::1", 77, 2, 0)
    assert place(HostsConfig(coordinator="node0", processes=2, process=0), {}) == Place("node0", 8476, 2, 0)


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[03,07-09]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "9",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, Place("gpu03", 61441, 4, 2)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"}, Place("gpu03", 61441, 4, 2, (5,))),
        (SLURM | {"JAX_COORDINATOR_PORT": "99"}, Place("gpu03", 99, 4, 2)),
        (OPEN_MPI, Place("10.96.0.1", 65535 - 4095 + 1531576320 // 4096 % 4096, 16, 9, (1,))),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_a_process_is_found_by_its_environment(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place(HostsConfig()) == expected
    assert place(HostsConfig(cluster="none")) is None


def test_the_environment_numbers_processes_where_the_config_has_the_coordinator():
    config = HostsConfig(coordinator="head:1")
    assert place(config, {"PMI_RANK": "1", "PMI_SIZE": "2"}) == Place("head", 1, 2, 1)
    with pytest.raises(ConfigError, match=r"needs hosts\.processes and hosts\.process"):
        place(config, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 2}, "need hosts.coordinator"),
        ({"coordinator": "node0:1", "processes": 2, "process": 2}, "numbered from 0"),
        ({"coordinator": "node0:x"}, "is no host:port"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        HostsConfig(**options)
