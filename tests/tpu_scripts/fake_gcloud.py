#!/usr/bin/env python3
"""gcloud as far as tpu_scripts/queued.sh needs it: resources in a file, every call recorded.

FAKE_DIR holds `state.json`, `calls.json`, `bucket` and one directory a host, where what is sent to it
lies and its commands run. Call number FAKE_FAIL_AT fails: half of them before anything is done, half
after. `faults.json` is a list of faults, each of which happens once, to the first call that it fits:

    on: text that the call's words hold        host: NODE/WORKER that fails, if not the whole call
    how: before or after what is asked, hang, or preempt: the slice is taken away
    say: on stderr
"""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ.get("FAKE_DIR", "."))
WORKERS = 2


@contextlib.contextmanager
def held(name, default):
    """Gives a file's content to change; for `queued.sh` asks all slices at once."""
    file = HOME / name
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = json.loads(file.read_text()) if file.exists() else default
        yield content
        file.write_text(json.dumps(content))


def main(argv):
    argv = argv[argv[0] == "alpha" :]
    with held("calls.json", []) as calls:
        number = len(calls)
        calls.append(argv)
    with held("faults.json", []) as faults:
        text = " ".join(argv)
        fault = next((fault for fault in faults if fault["on"] in text and _fits(fault, text)), {})
        if fault:
            faults.remove(fault)
    if os.environ.get("FAKE_FAIL_AT") == str(number):
        fault = {"how": os.environ["FAKE_FAIL"]}
    whole = fault if "host" not in fault else {}
    if whole.get("how") == "before":
        sys.exit(whole.get("say", "ERROR: (gcloud) the connection was reset"))
    if argv[:2] == ["storage", "ls"]:
        sys.exit(list_bucket(argv[2]))
    if "list" in argv:
        sys.exit(0)
    assert argv[:2] == ["compute", "tpus"], argv
    options = dict(word[2:].partition("=")[::2] for word in argv[4:] if word.startswith("--"))
    plain = [word for word in argv[4:] if not word.startswith("--")]
    assert options["project"] == "my-project" and options["zone"] == "us-east5-b"
    verb = f"{argv[2]} {argv[3]}"
    if verb in ("tpu-vm ssh", "tpu-vm scp"):
        code = on_hosts(verb, plain, options, fault)
    else:
        with held("state.json", {"requests": {}, "nodes": {}}) as state:
            code = act(state, verb, plain, options)
    sys.exit("ERROR: (gcloud) the connection was reset" if whole else code)


def _fits(fault, text):
    return "host" not in fault or f" {fault['host'].partition('/')[0]}" in text


def list_bucket(pattern):
    found = glob.glob(
        str(HOME / "bucket" / pattern.removeprefix("gs://bucket/").removeprefix("runs/"))
    )
    if not found:
        return "ERROR: (gcloud.storage.ls) One or more URLs matched no objects."
    print("\n".join(found))
    return 0


def act(state, verb, plain, options):
    kind = state["requests" if verb.startswith("queued") else "nodes"]
    name = plain[0]
    if verb == "queued-resources create":
        if name in kind:
            return "ERROR: ALREADY_EXISTS"
        nodes = [options["node-id"]] if "node-id" in options else []
        if not nodes:
            nodes = [f"{options['node-prefix']}-{i}" for i in range(int(options["node-count"]))]
        kind[name] = {"state": "ACTIVE", "nodes": nodes, "options": options}
        for node in nodes:
            state["nodes"][node] = {"state": "READY"}
            for worker in range(WORKERS):
                (HOME / node / str(worker)).mkdir(parents=True)
    elif name not in kind:
        place = "queuedResources" if verb.startswith("queued") else "nodes"
        return f"ERROR: NOT_FOUND: Resource 'projects/p/locations/z/{place}/{name}' was not found."
    elif verb.endswith("describe"):
        print(kind[name]["state"])
    elif verb == "queued-resources delete":
        assert "force" in options and "quiet" in options
        for node in kind.pop(name)["nodes"]:
            state["nodes"].pop(node, None)
            end(node)
            shutil.rmtree(HOME / node, ignore_errors=True)
    elif verb == "tpu-vm delete":
        kind.pop(name)
        end(name)
    else:
        raise AssertionError(verb)
    return 0


def end(node):
    """Ends what runs on a slice's hosts, at once, as the loss of its power does."""
    for file in HOME.glob(f"{node}/*/ellama/train.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(file.read_text().split()[1]), signal.SIGKILL)


def on_hosts(verb, plain, options, fault):
    """Copies files to each host's home, or runs a command there."""
    *files, target = plain
    node, _, place = target.partition(":")
    if fault.get("how") == "preempt":
        with held("state.json", {}) as state:
            state["nodes"][node]["state"] = "PREEMPTED"
        end(node)
        return "ERROR: the connection was closed"
    with held("state.json", {}) as state:
        if state["nodes"].get(node, {}).get("state") != "READY":
            return "ERROR: the TPU is in an unusable state"
    workers = range(WORKERS) if options["worker"] == "all" else [int(options["worker"])]
    codes = []
    for worker in workers:
        host = HOME / node / str(worker)
        how = fault.get("how") if fault.get("host") == f"{node}/{worker}" else ""
        if how == "hang":
            time.sleep(600)
        if how == "before":
            codes.append(255)
            continue
        if verb == "tpu-vm scp":
            for file in files:
                if Path(file).is_dir():
                    assert "recurse" in options
                    shutil.copytree(file, host / place / Path(file).name, dirs_exist_ok=True)
                else:
                    shutil.copy(file, host / place)
            codes.append(0)
        else:
            env = {"PATH": f"{HOME / 'host_bin'}:/usr/bin:/bin", "HOME": str(host)}
            argv = ["bash", "-c", options["command"]]
            codes.append(subprocess.run(argv, cwd=host, env=env, timeout=60).returncode)
        if how == "after":
            codes[-1] = 255
    return max(codes)


if __name__ == "__main__":
    main(sys.argv[1:])
