#!/usr/bin/env python3
"""gcloud as far as tpu_scripts/queued.sh needs it: resources in a file, every call recorded.

FAKE_DIR holds `state.json`, `calls.json` and one directory a host, where what is sent to it lies and
its commands run. Call number FAKE_FAIL_AT fails: half of them before anything is done, half after.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ.get("FAKE_DIR", "."))
STATE = HOME / "state.json"
CALLS = HOME / "calls.json"
WORKERS = 2


def main(argv):
    # Held until this process ends, for `stop` asks all slices at once.
    fcntl.flock(os.open(HOME / "lock", os.O_CREAT | os.O_WRONLY), fcntl.LOCK_EX)
    calls = json.loads(CALLS.read_text()) if CALLS.exists() else []
    CALLS.write_text(json.dumps([*calls, argv]))
    fails = os.environ.get("FAKE_FAIL_AT") == str(len(calls))
    early = os.environ.get("FAKE_FAIL") == "before"
    if fails and early:
        sys.exit("ERROR: (gcloud) the connection was reset")
    state = json.loads(STATE.read_text()) if STATE.exists() else {"requests": {}, "nodes": {}}
    assert argv[:2] == ["compute", "tpus"], argv
    options = dict(word[2:].partition("=")[::2] for word in argv[4:] if word.startswith("--"))
    plain = [word for word in argv[4:] if not word.startswith("--")]
    try:
        code = act(state, f"{argv[2]} {argv[3]}", plain, options)
    except SystemExit as error:
        code = error.code
    STATE.write_text(json.dumps(state))
    sys.exit("ERROR: (gcloud) the connection was reset" if fails else code)


def act(state, verb, plain, options):
    assert options["project"] == "my-project" and options["zone"] == "us-east5-b"
    if verb.endswith("ssh") or verb.endswith("scp"):
        return {"tpu-vm ssh": ssh, "tpu-vm scp": scp}[verb](state, plain, options)
    kind = state["requests" if verb.startswith("queued") else "nodes"]
    name = plain[0]
    if verb == "queued-resources create":
        if name in kind:
            sys.exit("ERROR: ALREADY_EXISTS")
        create(state, name, options)
    elif name not in kind:
        sys.exit(f"ERROR: NOT_FOUND: Resource {name} was not found")
    elif verb.endswith("describe"):
        print(kind[name]["state"])
    elif verb == "queued-resources delete":
        assert "force" in options and "quiet" in options
        for node in kind.pop(name)["nodes"]:
            state["nodes"].pop(node, None)
            shutil.rmtree(HOME / node, ignore_errors=True)
    elif verb == "tpu-vm delete":
        kind.pop(name)
    else:
        raise AssertionError(verb)
    return 0


def create(state, name, options):
    nodes = [options["node-id"]] if "node-id" in options else []
    if not nodes:
        nodes = [f"{options['node-prefix']}-{i}" for i in range(int(options["node-count"]))]
    state["requests"][name] = {"state": "ACTIVE", "nodes": nodes, "options": options}
    for node in nodes:
        state["nodes"][node] = {"state": "READY"}
        for worker in range(WORKERS):
            (HOME / node / str(worker)).mkdir(parents=True)


def hosts(state, node, options):
    if node not in state["nodes"]:
        sys.exit("ERROR: NOT_FOUND")
    workers = range(WORKERS) if options["worker"] == "all" else [int(options["worker"])]
    return [HOME / node / str(worker) for worker in workers]


def scp(state, plain, options):
    *files, target = plain
    node, _, place = target.partition(":")
    for host in hosts(state, node, options):
        for file in files:
            shutil.copy(file, host / place)
    return 0


def ssh(state, plain, options):
    """Runs the command in each host's home; installing and starting are only noted there."""
    codes = []
    for host in hosts(state, plain[0], options):
        env = {"PATH": f"{HOME / 'host_bin'}:/usr/bin:/bin", "HOME": str(host)}
        argv = ["bash", "-c", options["command"]]
        codes.append(subprocess.run(argv, cwd=host, env=env, timeout=60).returncode)
    return max(codes)


if __name__ == "__main__":
    main(sys.argv[1:])
