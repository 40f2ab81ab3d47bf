"""Two veths with a switch between them, a generator and a sink, for measurements of forwarding: offloadd's, and Open vSwitch's.

    gen eth0 ──── p1 [ switch under test ] p2 ──── eth0 sink        three network namespaces

The generator runs on one processor, the switch on another. What reaches the sink's interface counts. Everything started here runs in
namespaces and directories of its own, and is gone at the end.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAME = Path(sys.argv[0]).name
ROOT = Path(__file__).resolve().parents[2]
GENERATOR_CPU, SWITCH_CPU = "0", "1"
WARM_UP = 1.0  # seconds of traffic before the window
LIMIT = 30.0  # seconds that anything may take
MOST_WAITING = 0.05  # of the window that a switch may wait for its processor; above it the pair says nothing
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


@contextlib.contextmanager
def program(log, *command, env=None):
    """A running program, ended with SIGTERM by its process id."""
    with open(log, "a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
    # A session of its own is a group of its own to the scheduler; this one goes before the others.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text("-20")
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(what, come, process=None):
    end = time.monotonic() + LIMIT
    while not come():
        if time.monotonic() > end or process and process.poll() is not None:
            sys.exit(f"{NAME}: in vain: {what}")
        time.sleep(0.01)


class Bench:
    def __init__(self, stack):
        self.generator = [ROOT / "target/release/examples/afgen"]
        self.dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{NAME}.")))
        self.log = self.dir / "log"
        self.gen, self.switch, self.sink = (f"bench-{os.getpid()}-{place}" for place in ("gen", "switch", "sink"))
        for name in self.gen, self.switch, self.sink:
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "del", name)
            # Nobody but the generator says anything.
            self.inside(name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        for port, peer in ("p1", self.gen), ("p2", self.sink):
            run("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", peer)
            run("ip", "-n", self.switch, "link", "set", port, "up")
            run("ip", "-n", peer, "link", "set", "eth0", "up")
        self.env = dict(os.environ)
        for name in "OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR":
            self.env[name] = str(self.dir)
        self.database = f"unix:{self.dir}/db.sock"

    def inside(self, place, *command, **options):
        return run("ip", "netns", "exec", place, *command, **options)

    def received(self, place, interface):
        link = json.loads(run("ip", "-n", place, "-s", "-j", "link", "show", "dev", interface))
        return link[0]["stats64"]["rx"]["packets"]

    @contextlib.contextmanager
    def nobody(self):
        yield None

    @contextlib.contextmanager
    def offloadd(self, kind="packet", device="none", flows=(), more_rules="", cpus=SWITCH_CPU):
        """With ports of this kind, and `flows` by hand, on rules that send each port's packets to the other one."""
        rules = self.dir / "rules"
        rules.write_text(f"in_port=1,actions=output:2\nin_port=2,actions=output:1\n{more_rules}")
        log = self.dir / "offloadd.log"
        log.write_text("")
        command = [ROOT / "target/release/offloadd", "--unixctl", self.dir / "ctl", "--rules", rules, "--offload", device]
        for number in "1", "2":
            command += ["--port", f"p{number},type={kind},port_no={number}"]
        with program(log, "ip", "netns", "exec", self.switch, "taskset", "-c", cpus, *command) as process:
            until("offloadd is ready", lambda: "is ready" in log.read_text(), process)
            if flows:
                self.add_flows([ROOT / "target/release/offloadctl", "-t", self.dir / "ctl"], flows)
            yield thread(process.pid, "poller")

    def add_flows(self, client, flows):
        file = self.dir / "flows"
        file.write_text("".join(f"add {flow}\n" for flow in flows))
        run(*client, "dpctl/add-flows", file, env=self.env)

    @contextlib.contextmanager
    def ovsdb(self, kind="system"):
        run("ovsdb-tool", "create", self.dir / "conf.db", SCHEMA)
        command = ["ovsdb-server", self.dir / "conf.db", f"--remote=p{self.database}", f"--unixctl={self.dir}/ovsdb.ctl"]
        with program(self.log, *command, env=self.env) as process:
            until("ovsdb-server listens", (self.dir / "db.sock").exists, process)
            self.vsctl("--no-wait", "init")
            self.vsctl("--no-wait", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=secure")
            for number in "1", "2":
                request = ["set", "interface", f"p{number}", f"ofport_request={number}", *([f"type={kind}"] if kind != "system" else [])]
                self.vsctl("--no-wait", "add-port", "br0", f"p{number}", "--", *request)
            yield

    def vsctl(self, *arguments):
        return run("ovs-vsctl", f"--db={self.database}", f"--timeout={LIMIT:.0f}", *arguments, env=self.env)

    @contextlib.contextmanager
    def ovs(self, flows=()):
        control = self.dir / "vswitchd.ctl"
        command = ["ovs-vswitchd", self.database, f"--unixctl={control}", "--disable-system"]
        with program(self.log, "ip", "netns", "exec", self.switch, "taskset", "-c", SWITCH_CPU, *command, env=self.env) as process:
            management = self.dir / "br0.mgmt"
            until("ovs-vswitchd has its bridge", management.exists, process)
            ofctl = lambda *arguments: run("ovs-ofctl", *arguments, env=self.env)
            until("ovs-vswitchd has its ports", lambda: "(p2)" in ofctl("show", f"unix:{management}"), process)
            for rule in "in_port=1,actions=output:2", "in_port=2,actions=output:1":
                ofctl("add-flow", f"unix:{management}", rule)
            if flows:
                self.add_flows(["ovs-appctl", "-t", control], flows)
            # For system ports it has no poll-mode thread: its main thread forwards.
            yield thread(process.pid, "pmd") or process.pid

    def measure(self, switch, flows, seconds):
        """Packets a second offered and forwarded, the part of the window that the switch waited for its processor, and its
        processor time a packet in ns, spinning in vain included."""
        with switch() as tid:
            # Ended below; by itself only if this script is killed.
            total = WARM_UP + seconds + 60
            command = ["taskset", "-c", GENERATOR_CPU, *self.generator, "eth0", str(flows), str(total)]
            with program(self.log, "ip", "netns", "exec", self.gen, *command) as generator:
                time.sleep(WARM_UP)
                sample = lambda: (time.monotonic(), self.received(self.switch, "p1"), self.received(self.sink, "eth0"), *scheduled(tid), *used())
                before = sample()
                time.sleep(seconds)
                if generator.poll() is not None:
                    sys.exit(f"{NAME}: the generator has ended:\n{self.log.read_text()}")
                window, offered, forwarded, ran, waited, *cpu = (b - a for a, b in zip(before, sample()))
        self.cpu = [ns / max(forwarded, 1) for ns in cpu]
        return offered / window, forwarded / window, waited / window, ran * 1e9 / max(forwarded, 1)


def thread(pid, name):
    """The number of the process's thread whose name begins so; `None`: it has none."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith(name):
            return int(task.name)
    return None


def used():
    """Time of the switch's processor so far, in ns: in user space, in the kernel for it, and in the kernel for frames."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{SWITCH_CPU} "))
    user, nice, system, _, _, irq, softirq, *_ = (int(ticks) * 1e9 / os.sysconf("SC_CLK_TCK") for ticks in line.split()[1:])
    return user + nice, system, irq + softirq


def scheduled(tid):
    """Seconds that a thread has run, and waited for a processor."""
    ran, waited, _ = Path(f"/proc/{tid}/schedstat").read_text().split() if tid else (0, 0, 0)
    return int(ran) / 1e9, int(waited) / 1e9


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
